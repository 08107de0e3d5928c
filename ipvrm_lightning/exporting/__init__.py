"""Checkpoints as ordinary Hugging Face folders."""

from ipvrm_lightning.exporting.folder import export_checkpoint

__all__ = ["export_checkpoint"]
