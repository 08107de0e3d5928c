"""`TokenFile`: keeps what lies behind the step scores of a test run, token by token, for `ipvrm report`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ipvrm_lightning.callbacks.run_files import from_all_processes, run_folder, writes_files
from ipvrm_lightning.metrics.resampling import stable_hash
from ipvrm_lightning.metrics.token_file import TokenRecord, record_to_line, write_tokens


class TokenFile(Callback):
    """Writes texts, TD advantages and values of the tokens of judged solutions to the run's folder.

    The module's `test_step` returns `td_advantages` and `values`, [B, T] each; rows whose data set knows their first
    wrong step are kept. With `fast_dev_run` nothing is written.

    Args:
        max_tokens: response tokens of all solutions together, at most; a token takes about 30 bytes. Whole solutions
            are kept, chosen by a hash of their ids; 0 writes no file.
    """

    def __init__(self, *, max_tokens: int = 2_000_000) -> None:
        if max_tokens < 0:
            raise ValueError(f"max_tokens: expected 0 or more, found {max_tokens}")
        self.max_tokens = max_tokens
        self._chosen: list[set[int]] = []
        self._lines: list[tuple[str, str, str]] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the solutions to keep, the same on all processes."""
        self._lines = []
        self._chosen = choose_rows(getattr(trainer.datamodule, "test_sets", []), self.max_tokens)  # type: ignore[attr-defined]

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the batch's chosen rows."""
        if not isinstance(outputs, Mapping) or not {"td_advantages", "values"} <= set(outputs):
            return
        chosen = self._chosen[dataloader_idx] if dataloader_idx < len(self._chosen) else set()
        rows = [(row, index) for row, index in enumerate(batch.index.tolist()) if index in chosen]
        if not rows:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        tokenizer, dataset = data.load_tokenizer(), data.test_sets[dataloader_idx]
        advantages, values = outputs["td_advantages"].tolist(), outputs["values"].tolist()
        for row, index in rows:
            example, length = dataset[index], int(batch.response_lengths[row])
            record = TokenRecord(
                id=example.metadata["id"],
                subset=example.metadata["subset"],
                label=example.step_label,
                prompt=tokenizer.decode(example.input_ids[: example.response_start], skip_special_tokens=True),
                tokens=token_texts(tokenizer, example.input_ids[example.response_start :]),
                step_ids=example.step_ids,
                td_advantages=advantages[row][:length],
                values=values[row][:length],
            )
            self._lines.append((record.subset, record.id, record_to_line(record)))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather on all processes, write on the first."""
        folder = run_folder(trainer)
        everywhere = (line for part in from_all_processes(self._lines) for line in part)
        lines = [line for _, _, line in sorted(everywhere)]
        if lines and writes_files(trainer):
            write_tokens(folder / "tokens.jsonl", lines)
        self._lines = []


def choose_rows(datasets: Sequence[Any], max_tokens: int) -> list[set[int]]:
    """Rows of each data set to keep: solutions with a known label, in the order of a hash of their ids.

    Args:
        datasets: those of the test loaders.
        max_tokens: response tokens of the chosen rows together, at most.
    """
    candidates = []
    for number, dataset in enumerate(datasets):
        known = getattr(dataset, "step_labels", None) is not None
        for row in range(len(dataset) if known else 0):
            metadata = dataset.metadata(row)
            order = stable_hash(f"{metadata['subset']}/{metadata['id']}")
            candidates.append((order, number, row, int(dataset.response_lengths[row])))
    chosen: list[set[int]] = [set() for _ in datasets]
    for _, number, row, length in sorted(candidates):
        max_tokens -= length
        if max_tokens < 0:
            break
        chosen[number].add(row)
    return chosen


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Text of each token, so that together they are the text of all.

    A character of several tokens stands at its last one. Ids that make no text in their order (bytes that are not
    UTF-8, which no solution has) are decoded one by one.

    Args:
        tokenizer: a fast one.
        ids: tokens in their order.
    """
    from tokenizers.decoders import DecodeStream

    backend = tokenizer.backend_tokenizer
    stream = DecodeStream(skip_special_tokens=False)
    try:
        return [stream.step(backend, token) or "" for token in ids]
    except Exception:  # tokenizers raises nothing narrower
        return [backend.decode([token], skip_special_tokens=False) for token in ids]
