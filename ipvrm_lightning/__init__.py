"""Implicit prefix-value reward models and distribution-level policy optimisation on Lightning (arXiv:2604.13197)."""

__version__ = "0.1.0"
