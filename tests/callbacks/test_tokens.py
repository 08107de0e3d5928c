from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule

from ipvrm_lightning.callbacks.tokens import TokenFile, choose_rows, token_texts
from ipvrm_lightning.data.dataset import TrajectoryDataset, collate
from ipvrm_lightning.metrics.token_file import record_from_line
from ipvrm_lightning.types import Example
from tests.data.tokenizers import byte_level


def dataset(lengths: list[int], *, subset: str = "s", labelled: bool = True) -> Any:
    return type(
        "Rows",
        (),
        {
            "__len__": lambda self: len(lengths),
            "step_labels": np.zeros(len(lengths)) if labelled else None,
            "response_lengths": np.array(lengths),
            "metadata": lambda self, row: {"subset": subset, "id": f"r{row}"},
        },
    )()


def test_whole_solutions_are_kept_up_to_a_number_of_tokens() -> None:
    rows = [dataset([10] * 20), dataset([10] * 20, labelled=False), SimpleNamespace(), dataset([10] * 20, subset="t")]
    everything = choose_rows(rows, 10_000)
    assert [len(chosen) for chosen in everything] == [20, 0, 0, 20]
    some = choose_rows(rows, 105)
    assert sum(map(len, some)) == 10 and all(few <= more for few, more in zip(some, everything, strict=True))
    assert some[0] and some[3]  # not the first that come
    assert choose_rows(rows, 105) == some
    assert not any(choose_rows(rows, 9))
    assert TokenFile(max_tokens=0).max_tokens == 0 and not any(choose_rows(rows, 0))
    with pytest.raises(ValueError, match="max_tokens: expected 0 or more, found -1"):
        TokenFile(max_tokens=-1)


def test_what_is_kept_of_a_solution_ends_with_it_whatever_else_is_in_its_batch() -> None:
    tokenizer, steps = byte_level(), [[0, 1], [0, 0, 1, 1]]
    metadata = [{"id": f"r{row}", "subset": "s"} for row in range(2)]
    rows = TrajectoryDataset(
        Example([5, 6, *range(7, 7 + len(ids))], 2, "p", step_ids=ids, step_label=-1, metadata=metadata[row])
        for row, ids in enumerate(steps)
    )
    trainer: Any = SimpleNamespace(datamodule=SimpleNamespace(test_sets=[rows], load_tokenizer=lambda: tokenizer))
    kept, module = TokenFile(), LightningModule()
    kept.on_test_start(trainer, module)
    padded = torch.arange(8.0).reshape(2, 4)
    kept.on_test_batch_end(trainer, module, {"td_advantages": padded, "values": -padded}, collate(rows, [0, 1]), 0)
    found = [record_from_line(line, "here") for _, _, line in kept._lines]
    assert [(one.id, one.step_ids) for one in found] == [("r0", steps[0]), ("r1", steps[1])]
    assert [one.td_advantages for one in found] == [[0.0, 1.0], [4.0, 5.0, 6.0, 7.0]]
    assert [one.values for one in found] == [[-0.0, -1.0], [-4.0, -5.0, -6.0, -7.0]]


def test_texts_of_tokens_are_the_text() -> None:
    tokenizer = byte_level()
    text = "2 \u00d7 3 = 6 → ¥ \u201cso\u201d\n\n\U0001d7de"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    texts = token_texts(tokenizer, ids)
    assert len(texts) == len(ids) > len(text)
    assert "".join(texts) == text
    # half a character: each id by itself
    assert len(token_texts(tokenizer, ids[:3])) == 3
