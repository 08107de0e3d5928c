"""`ipvrm report`: one HTML file to look at a run."""
