"""`HFExport`: the best checkpoint of a fit as a Hugging Face folder, when it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from ipvrm_lightning.callbacks.run_files import run_folder, writes_files


class HFExport(Callback):
    """Exports the best checkpoint that the run's `ModelCheckpoint` knows, else its last, into the run's folder.

    Args:
        folder: name of the folder within the run's.
        merge: add an adapter's update to the weights; otherwise the adapter is exported alone.
    """

    def __init__(self, *, folder: str = "export", merge: bool = False) -> None:
        self.folder, self.merge = folder, merge

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse now what could not be exported after training, on the first process.

        Raises:
            FileExistsError: there is something in the place of the export, which is none.
            FileNotFoundError: the run's folder has no config, which the command line keeps there.
            ValueError: the run keeps no checkpoints, or is of a kind that an export cannot hold.
        """
        from ipvrm_lightning.exporting.folder import check_place
        from ipvrm_lightning.exporting.refusals import check_run

        run = run_folder(trainer)
        if not writes_files(trainer):
            return
        if trainer.checkpoint_callback is None:
            raise ValueError("HFExport needs a ModelCheckpoint")
        kept = run / "config.yaml"
        if not kept.is_file():
            raise FileNotFoundError(f"HFExport needs the config of the run, which `ipvrm fit` keeps as {kept}")
        check_place(run / self.folder, overwrite=True)
        check_run(kept, pl_module, merge=self.merge)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export, on the first process.

        Raises:
            ValueError: the run kept no checkpoint.
        """
        from ipvrm_lightning.exporting import export_checkpoint

        run = run_folder(trainer)
        if not writes_files(trainer):
            return
        kept: Any = trainer.checkpoint_callback
        best = kept.best_model_path or kept.last_model_path
        if not best:
            raise ValueError("HFExport needs a ModelCheckpoint that has kept a checkpoint")
        # a `dirpath` of its own may lie outside the run's folder
        out = export_checkpoint(Path(best), run / self.folder, merge=self.merge, overwrite=True, run_folder=run)
        rank_zero_info(f"Exported {best} to {out}")
