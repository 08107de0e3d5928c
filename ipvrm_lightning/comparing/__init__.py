"""`ipvrm compare`: test runs of several settings and seeds in one table."""
