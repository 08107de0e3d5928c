"""What a Trainer does beside training: tables of results, exports, plots."""

from ipvrm_lightning.callbacks.hf_export import HFExport

__all__ = ["HFExport"]
