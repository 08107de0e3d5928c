"""Serve a reward model over HTTP: `ipvrm serve`; its libraries come with `pip install -e ".[serve]"`."""
