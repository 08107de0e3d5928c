"""What a Trainer does beside training: records of a run, tables of results, exports."""

from ipvrm_lightning.callbacks.hf_export import HFExport

__all__ = ["HFExport"]
