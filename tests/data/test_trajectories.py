"""The data module of rollouts: splits, pairs, lengths, and training that stops and goes on."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from ipvrm_lightning.data import DataError, TrajectoryDataModule, build_pairs, splits
from ipvrm_lightning.data.rollouts import tokenize_rollouts
from ipvrm_lightning.data.splits import Sources, share
from ipvrm_lightning.types import TrajectoryBatch, Window
from tests.data.tokenizers import STRIPPING, byte_level

TOKENIZER = byte_level()


def grouped(folder: Path, prompts: Iterable[int], name: str = "train.jsonl", responses: int = 3) -> str:
    """Prompt i has responses of growing length, of which i % (responses + 1) are right."""
    path = folder / name
    with path.open("w") as file:
        for i in prompts:
            answers = [f"answer {j} " * (j + 1) + str(i) for j in range(responses)]
            scores = [int(j < i % (responses + 1)) for j in range(responses)]
            file.write(json.dumps({"prompt": f"problem {i}", "responses": answers, "scores": scores}) + "\n")
    return str(path)


def module(train: str | list[str], **options: Any) -> TrajectoryDataModule:
    data = TrajectoryDataModule(train=train, **options)
    data.with_tokenizer(TOKENIZER)
    data.setup()
    return data


def groups(dataset: Any) -> set[str]:
    return set() if dataset is None else set(dataset.groups)


def test_split_is_by_prompt_and_adding_data_moves_none(tmp_path: Path) -> None:
    small = module(grouped(tmp_path, range(60), "small.jsonl"), validation_fraction=0.3)
    large = module(grouped(tmp_path, range(120), "large.jsonl"), validation_fraction=0.3)
    assert not groups(small.train_set) & groups(small.val_set)
    assert len(groups(small.train_set) | groups(small.val_set)) == 60
    assert groups(small.train_set) < groups(large.train_set) and groups(small.val_set) < groups(large.val_set)
    assert 0.15 < len(groups(large.val_set)) / 120 < 0.45  # five standard deviations of a binomial around 0.3
    other = module(str(tmp_path / "small.jsonl"), validation_fraction=0.3, seed=1)
    assert groups(other.val_set) != groups(small.val_set)
    assert all(0 <= share(group, 0, "x") < 1 for group in groups(small.train_set))


def test_what_cannot_be_learned_from_or_held_out_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = grouped(tmp_path, range(4))
    right, wrong = grouped(tmp_path, range(3, 4), "right.jsonl"), grouped(tmp_path, range(0, 1), "wrong.jsonl")

    def said(path: str, **options: Any) -> list[str]:
        caplog.clear()
        module(path, **options)
        return [record.getMessage() for record in caplog.records]

    held_out = {"validation_fraction": 0.0}
    assert said(file, validation_fraction=0.5) == []
    assert said(file, validation_fraction=0.001) == [
        "no prompt was held out (0.001 of 4 prompts); raise validation_fraction"
    ]
    assert said(file, **held_out) == said(file, **held_out, keep="right") == said(right, **held_out, keep="right") == []
    (line,) = said(right, **held_out)
    assert line.startswith("all 3 training responses are right: a reward model needs wrong ones as well")
    assert said(wrong, **held_out) == ["all 3 training responses are wrong: a reward model needs right ones as well"]


def test_the_same_prompt_in_two_forms_is_one_group(tmp_path: Path) -> None:
    rows = [
        {"prompt": "q", "completion": "a", "label": 1},
        {"prompt": [{"role": "user", "content": "q\n"}], "completion": "b", "label": 0},
    ]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    data = module(str(path), validation_fraction=0.0)
    assert data.train_set is not None and len(data.train_set) == 2 and len(data.train_set.groups) == 1


def test_prompts_of_validation_files_leave_training(tmp_path: Path) -> None:
    train, validation = grouped(tmp_path, range(10)), grouped(tmp_path, range(8, 14), "validation.jsonl")
    data = module(train, validation=validation)
    assert data.train_set is not None and data.val_set is not None
    assert (len(data.train_set), len(data.val_set)) == (8 * 3, 6 * 3)
    assert not groups(data.train_set) & groups(data.val_set)
    assert data.report == {"taken out of training: prompt is in validation": 6}
    assert data.test_sets == [data.val_set]


def test_prompts_of_test_files_leave_training(tmp_path: Path) -> None:
    train, test = grouped(tmp_path, range(10)), grouped(tmp_path, range(7, 12), "test.jsonl")
    data = module(train, validation_fraction=0.0, test=test)
    assert data.train_set is not None and [len(tested) for tested in data.test_sets] == [5 * 3]
    assert len(data.train_set) == 7 * 3 and not groups(data.train_set) & groups(data.test_sets[0])
    assert data.report == {"taken out of training: prompt is in test": 9}


@pytest.mark.parametrize("prompt_format", ["chat", "plain"])
def test_a_response_that_was_cut_off_has_no_end_token(tmp_path: Path, prompt_format: Any) -> None:
    path = tmp_path / "rows.jsonl"
    row = {"prompt": "3+4?\n", "responses": ["It is 7.", "It is", "It is 8."], "scores": [1, 0, 0]}
    path.write_text(json.dumps({**row, "finished": [True, False, True]}))
    data = module(str(path), validation_fraction=0.0, prompt_format=prompt_format, pairwise=True)
    dataset = data.train_set
    assert dataset is not None and data.train_pairs == [(0, 1), (0, 2)]
    texts = [str(TOKENIZER.decode(dataset[i].input_ids[dataset[i].response_start :])) for i in range(3)]
    assert texts == ["It is 7.<|im_end|>", "It is", "It is 8.<|im_end|>"]
    # as a policy samples it: the prompt's own tokens, then the response's
    prompt = dataset[0].input_ids[: dataset[0].response_start]
    assert dataset[1].input_ids == [*prompt, *TOKENIZER("It is", add_special_tokens=False)["input_ids"]]
    (window,) = data.train_dataloader()
    assert window.counts["tokens"] == dataset.response_lengths.sum()


def test_fewer_prompts_are_a_part_of_more(tmp_path: Path) -> None:
    path = grouped(tmp_path, range(40))
    few, more = (groups(module(path, max_prompts=n, validation_fraction=0.0).train_set) for n in (5, 20))
    assert len(few) == 5 and len(more) == 20 and few < more


def test_which_prompts_are_used_depends_on_the_seed_and_not_on_their_order(tmp_path: Path) -> None:
    path, turned = grouped(tmp_path, range(40)), grouped(tmp_path, reversed(range(40)), "turned.jsonl")
    options = {"max_prompts": 5, "validation_fraction": 0.0}
    first, again, other = (
        groups(module(source, **options, seed=seed).train_set) for source, seed in ((path, 0), (turned, 0), (path, 1))
    )
    assert first == again != other


def test_pairs_are_every_right_with_every_wrong(tmp_path: Path) -> None:
    data = module(grouped(tmp_path, range(8)), pairwise=True, validation_fraction=0.0, batch_size=4)
    dataset, pairs = data.train_set, data.train_pairs
    assert dataset is not None and pairs is not None and dataset.outcomes is not None
    # of three answers 0, 1, 2, 3 are right, twice over: 0, 2, 2, 0 pairs
    assert len(pairs) == len(set(pairs)) == 8
    for chosen, rejected in pairs:
        assert dataset.group_ids[chosen] == dataset.group_ids[rejected]
        assert (dataset.outcomes[chosen], dataset.outcomes[rejected]) == (1, 0)
    assert [window.counts["pairs"] for window in data.train_dataloader()] == [4, 4]
    dataset.pairs = None
    limited = build_pairs(dataset, max_pairs_per_prompt=1, seed=0)
    assert len(limited) == 4 and set(limited) < set(pairs)
    assert limited == build_pairs(dataset, max_pairs_per_prompt=1, seed=0)
    # rows in no pair are not kept: a cached reference would compute them
    assert set(range(len(dataset))) == {row for pair in pairs for row in pair}
    assert data.report == {"left out: in no pair": 12}


def test_a_pairwise_file_keeps_its_own_pairs(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(4)]
    rows.append({"prompt": "q", "chosen": "long " * 200, "rejected": "bad"})
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(rows))
    data = module(str(path), pairwise=True, validation_fraction=0.0, max_length=100)
    assert data.train_pairs == [(0, 1), (2, 3), (4, 5), (6, 7)] and data.train_set is not None
    assert len(data.train_set) == 8
    lost = {"pairs lost: one half was dropped": 1, "left out: in no pair": 1}
    assert data.report == {"dropped: longer than 100 tokens": 1, **lost}


def test_pairs_of_a_file_and_those_built_from_groups_stand_beside_each_other(tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps([{"prompt": "q", "chosen": "good", "rejected": "bad"}]))
    files = [str(path), str(path), grouped(tmp_path, [1, 2])]  # the same file twice: two pairs
    data = module(files, pairwise=True, validation_fraction=0.0)
    assert data.train_set is not None and data.train_pairs is not None and data.train_set.outcomes is not None
    assert data.train_pairs[:2] == [(0, 1), (2, 3)] and len(data.train_pairs) == 2 + 2 + 2
    assert all((data.train_set.outcomes[a], data.train_set.outcomes[b]) == (1, 0) for a, b in data.train_pairs)


def test_why_there_is_no_pair_is_said(tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps([{"prompt": "q", "chosen": "long " * 200, "rejected": "bad"}]))
    with pytest.raises(ValueError, match=r"no pair in .*; left out: \{'dropped: longer than 100 tokens': 1"):
        module(str(path), pairwise=True, validation_fraction=0.0, max_length=100)


def test_a_question_is_held_out_under_any_system_message(tmp_path: Path) -> None:
    held_out = tmp_path / "held_out.json"
    questions = [json.loads(line)["prompt"] for line in Path(grouped(tmp_path, range(4))).read_text().splitlines()]
    held_out.write_text(json.dumps([{"prompt": q, "completion": "7", "label": 1} for q in questions[:2]]))
    asked = [[{"role": "system", "content": "Think."}, {"role": "user", "content": q}] for q in questions]
    path = tmp_path / "train.json"
    path.write_text(json.dumps([{"prompt": q, "completion": "7", "label": 1} for q in asked]))
    data = module(str(path), validation=str(held_out))
    assert data.train_set is not None and len(data.train_set) == 2
    assert data.report == {"taken out of training: prompt is in validation": 2}


def test_right_responses_alone_are_tested_on_too(tmp_path: Path) -> None:
    test = grouped(tmp_path, range(8, 12), "test.jsonl")
    data = module(grouped(tmp_path, range(8)), keep="right", test=test)
    assert data.train_set is not None and data.train_set.outcomes is not None and data.train_set.outcomes.all()
    assert data.test_sets[0].outcomes is not None and data.test_sets[0].outcomes.all()
    with pytest.raises(ValueError, match=r"no usable test example in .*test\.jsonl; left out: "):
        module(grouped(tmp_path, range(8)), keep="right", test=grouped(tmp_path, [4, 8], "test.jsonl"))


@pytest.mark.parametrize(
    "options",
    [
        {"keep": "wrong"},
        {"over_length": "cut"},
        {"on_bad_rows": "ignore"},
        {"prompt_format": "Chat"},
        {"max_prompts": -1},
        {"max_pairs_per_prompt": 0},
    ],
)
def test_arguments_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(options))} must be "):
        TrajectoryDataModule(train="x", **options)


def test_over_long_is_dropped_or_cut_on_the_right_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        {"prompt": "q", "completion": "short", "label": 1},
        {"prompt": "q", "completion": "long " * 100, "label": 0},
        {"prompt": "prompt " * 100, "completion": "short", "label": 0},
    ]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    with caplog.at_level(logging.WARNING):
        dropped = module(str(path), max_length=80, validation_fraction=0.0)
    assert dropped.train_set is not None and len(dropped.train_set) == 1
    assert dropped.report == {"dropped: longer than 80 tokens": 1, "dropped: prompt alone is longer than 80 tokens": 1}
    assert [record.getMessage() for record in caplog.records if "dropped" in record.getMessage()] == [
        "TrajectoryDataModule: 1 dropped: longer than 80 tokens; 1 dropped: prompt alone is longer than 80 tokens"
    ]
    cut = module(str(path), max_length=80, validation_fraction=0.0, over_length="truncate")
    whole = module(str(path), max_length=10000, validation_fraction=0.0).train_set
    assert cut.train_set is not None and whole is not None
    assert cut.train_set.lengths.tolist() == [whole.lengths[0], 80]
    assert cut.train_set[1].input_ids == whole[1].input_ids[:80]
    assert cut.report == {"truncated to 80 tokens": 1, "dropped: prompt alone is longer than 80 tokens": 1}


@pytest.mark.parametrize("over_length", ["drop", "truncate"])
def test_what_is_just_long_enough_is_kept_whole(tmp_path: Path, over_length: Any) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"prompt": "q", "completion": "It is 7.", "label": 1}]))
    options: dict[str, Any] = {"validation_fraction": 0.0, "over_length": over_length}
    (whole,) = module(str(path), **options).train_set  # type: ignore[misc]
    length, start = len(whole.input_ids), whole.response_start
    data = module(str(path), max_length=length, **options)
    assert data.train_set is not None and list(data.train_set) == [whole] and data.report == {}
    with pytest.raises(ValueError, match=f"'dropped: prompt alone is longer than {start} tokens': 1"):
        module(str(path), max_length=start, **options)
    if over_length == "truncate":
        cut = module(str(path), max_length=start + 1, **options).train_set
        assert cut is not None and cut[0].input_ids == whole.input_ids[: start + 1]


def test_a_row_whose_prompt_has_no_token_of_its_own_is_named_or_skipped(tmp_path: Path) -> None:
    rows = [{"prompt": q, "completion": a, "label": 1} for q, a in (("x", " 7"), ("S", "tep 1"), ("y", " 8"))]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    options: dict[str, Any] = {"validation_fraction": 0.0, "prompt_format": "plain"}
    with pytest.raises(DataError, match=r"rows\.json, row 2, field 'prompt': no token of the prompt stands"):
        module(str(path), **options)
    data = module(str(path), **options, on_bad_rows="skip")
    texts = [TOKENIZER.decode(example.input_ids) for example in data.train_set or ()]
    assert texts == ["x 7<|im_end|>", "y 8<|im_end|>"] and sum(data.report.values()) == 1


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_the_split_is_that_of_each_part(tmp_path: Path, part: str) -> None:
    folder = tmp_path / "both"
    folder.mkdir()
    grouped(folder, range(2), "train.jsonl")
    grouped(folder, range(2, 5), "test.jsonl")
    files = {"train": grouped(tmp_path, range(9)), "validation": None, "test": None, part: str(folder)}
    data = module(**files, validation_fraction=0.0, split="test")  # type: ignore[arg-type]
    found = {"train": data.train_set, "validation": data.val_set, "test": next(iter(data.test_sets), None)}[part]
    assert found is not None and len(found) == 3 * 3


def test_a_template_that_cannot_hold_a_row_names_it_or_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "q", "completion": "a", "label": 1}\n{"prompt": "q", "completion": " a", "label": 1}\n')
    options = {"train": str(path), "validation_fraction": 0.0}
    with pytest.raises(
        DataError, match=r"rows\.jsonl, row 2, field 'chat_template': the chat template changes the resp"
    ):
        TrajectoryDataModule(**options).with_tokenizer(byte_level(STRIPPING)).setup("fit")  # type: ignore[arg-type]
    data = TrajectoryDataModule(**options, on_bad_rows="skip")  # type: ignore[arg-type]
    data.with_tokenizer(byte_level(STRIPPING)).setup("fit")
    assert data.train_set is not None and len(data.train_set) == 1 and sum(data.report.values()) == 1


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
@pytest.mark.parametrize("pairwise", [False, True])
def test_only_a_fit_tokenises_what_is_trained_on(
    stage: str, pairwise: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, tokenised = grouped(tmp_path, range(40)), []

    def counting(rollouts: Any, *arguments: Any, **options: Any) -> Any:
        tokenised.extend(rollouts)
        return tokenize_rollouts(rollouts, *arguments, **options)

    monkeypatch.setattr("ipvrm_lightning.data.trajectories.tokenize_rollouts", counting)
    data = TrajectoryDataModule(train=path, validation_fraction=0.2, pairwise=pairwise).with_tokenizer(TOKENIZER)
    data.setup(stage)
    held_out = data.val_set
    assert held_out is not None and len(tokenised) == len(held_out) and data.test_sets == [held_out]
    data.setup(stage)
    assert data.train_set is None and data.val_set is held_out
    data.setup("fit")
    whole = module(path, validation_fraction=0.2, pairwise=pairwise)
    assert data.train_set is not None and whole.train_set is not None and data.val_set is not None
    assert data.train_set.fingerprint() == whole.train_set.fingerprint()
    assert data.train_pairs == whole.train_pairs and (data.train_pairs is not None) == pairwise
    assert data.val_set.fingerprint() == held_out.fingerprint()


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    path = grouped(tmp_path, range(0, 8, 4))  # no prompt with a right answer
    with pytest.raises(ValueError, match=r"no pair in .*train\.jsonl"):
        module(path, pairwise=True, validation_fraction=0.0)
    with pytest.raises(ValueError, match="needs a tokenizer"):
        TrajectoryDataModule(train=path).setup()
    with pytest.raises(ValueError, match="no training data"):
        TrajectoryDataModule(train=path).train_dataloader()
    with pytest.raises(ValueError, match="no usable training example"):
        module(path, max_length=3)
    with pytest.raises(ValueError, match=r"left out: {'held out for validation \(validation_fraction\)': 6}$"):
        module(path, validation_fraction=0.999)  # two prompts of three responses
    with pytest.raises(ValueError, match="validation_fraction"):
        TrajectoryDataModule(train=path, validation_fraction=1.0)


def test_tokenizer_comes_from_a_folder_or_the_module(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path / "tokenizer")
    path = grouped(tmp_path, range(4))
    named = TrajectoryDataModule(train=path, validation_fraction=0.0, tokenizer=str(tmp_path / "tokenizer"))
    named.setup()
    asked = TrajectoryDataModule(train=path, validation_fraction=0.0)
    model = SimpleNamespace(build_tokenizer=lambda: TOKENIZER)
    asked.trainer = SimpleNamespace(lightning_module=SimpleNamespace(language_model=model))  # type: ignore[assignment]
    asked.setup()
    assert named.train_set is not None and asked.train_set is not None
    assert named.train_set.fingerprint() == asked.train_set.fingerprint()


class Recorder(LightningModule):
    """Writes down what it is given; has one parameter so that it can be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[list[int]]] = []
        self.validated: list[int] = []
        self.predicted: list[int] = []

    def training_step(self, window: Window, batch_idx: int) -> torch.Tensor:
        assert isinstance(window, Window) and isinstance(window.micro_batches[0], TrajectoryBatch)
        self.seen.append([batch.index.tolist() for batch in window.micro_batches])
        return self.weight * window.counts["tokens"]

    def validation_step(self, batch: TrajectoryBatch, batch_idx: int) -> None:
        self.validated += batch.index.tolist()

    def predict_step(self, batch: TrajectoryBatch, batch_idx: int) -> None:
        self.predicted += batch.index.tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


EVERY_STEP = {"every_n_train_steps": 1, "save_top_k": -1}


def fit(
    path: str,
    folder: Path,
    *,
    resume: str | None = None,
    workers: int = 0,
    checkpoints: dict[str, Any] = EVERY_STEP,
    **options: Any,
) -> Recorder:
    seed_everything(0, verbose=False)
    data = TrajectoryDataModule(train=path, batch_size=10, max_tokens=600, validation_fraction=0.1, num_workers=workers)
    recorder = Recorder()
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(folder, filename="{step}", **checkpoints)],
        **options,
    )
    trainer.fit(recorder, datamodule=data.with_tokenizer(TOKENIZER), ckpt_path=resume, weights_only=True)
    assert data.train_set is not None
    return recorder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("stop", "workers"), [(3, 0), (3, 2), (8, 0), (12, 0), (15, 0)])
@pytest.mark.parametrize("limit", [{"max_epochs": 3}, {"max_steps": 24, "max_epochs": -1}])
def test_training_goes_on_exactly_where_it_stopped(
    tmp_path: Path, stop: int, workers: int, limit: dict[str, Any]
) -> None:
    path = grouped(tmp_path, range(27))
    whole = fit(path, tmp_path / "whole", **limit).seen
    assert len(whole) == 24 and whole[:8] != whole[8:16] != whole[16:]  # three epochs of eight windows
    # The first run dies in mid-epoch: its checkpoint is one of the whole run's.
    checkpoint = next((tmp_path / "whole").glob(f"step={stop}.ckpt"))
    resumed = fit(path, tmp_path / "resumed", resume=str(checkpoint), workers=workers, **limit).seen
    assert resumed == whole[stop:]


@pytest.mark.filterwarnings("ignore")
def test_going_on_at_the_end_of_an_epoch(tmp_path: Path) -> None:
    path = grouped(tmp_path, range(27))
    whole = fit(path, tmp_path / "whole", max_epochs=3).seen
    checkpoint = next((tmp_path / "whole").glob("step=8.ckpt"))
    assert fit(path, tmp_path / "resumed", resume=str(checkpoint), max_epochs=3).seen == whole[8:]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("interval", [3, 1.0])
def test_going_on_from_checkpoints_of_validation(tmp_path: Path, interval: float) -> None:
    path = grouped(tmp_path, range(27))
    options: dict[str, Any] = {"max_epochs": 3, "val_check_interval": interval}
    checkpoints = {"every_n_epochs": 1, "save_top_k": -1}
    whole = fit(path, tmp_path / "whole", checkpoints=checkpoints, **options).seen
    found = sorted((tmp_path / "whole").glob("*.ckpt"))
    assert len(found) >= 3 and len(whole) == 24
    for number, checkpoint in enumerate(found):
        step = int(checkpoint.stem.removeprefix("step="))
        folder = tmp_path / f"resumed{number}"
        assert fit(path, folder, resume=str(checkpoint), checkpoints=checkpoints, **options).seen == whole[step:]


@pytest.mark.filterwarnings("ignore")
def test_validation_and_prediction_see_every_example_once(tmp_path: Path) -> None:
    data = TrajectoryDataModule(train=grouped(tmp_path, range(30)), validation_fraction=0.3, max_tokens=300)
    data.with_tokenizer(TOKENIZER)
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "default_root_dir": tmp_path}
    trainer, recorder = Trainer(**options), Recorder()  # type: ignore[arg-type]
    trainer.validate(recorder, datamodule=data, verbose=False)
    trainer.predict(recorder, datamodule=data)
    assert data.val_set is not None and len(data.val_set) > 3
    assert sorted(recorder.validated) == sorted(recorder.predicted) == list(range(len(data.val_set)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("options", "trained"),
    [
        ({}, False),
        ({"validation_fraction": 0.05}, False),
        ({"validation_fraction": 0.2}, True),
        ({"seed": 1}, True),
        ({"seed": 1, "test": "test.jsonl"}, False),
    ],
)
def test_rollouts_that_were_held_out_of_another_split_are_told_from_those_of_the_fit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, options: dict[str, Any], trained: bool
) -> None:
    path = grouped(tmp_path, range(60))
    fit(path, tmp_path / "fit", max_steps=1)  # holds a tenth out
    if "test" in options:
        options = {**options, "test": grouped(tmp_path, range(60, 62), options["test"])}
    data = TrajectoryDataModule(train=path, **{"validation_fraction": 0.1, **options}).with_tokenizer(TOKENIZER)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    trainer.predict(Recorder(), datamodule=data, ckpt_path=str(tmp_path / "fit" / "step=1.ckpt"), weights_only=True)
    assert ("the fit held out other prompts" in caplog.text) == trained


def test_a_fit_that_is_validated_on_other_files_has_held_out_nothing(caplog: pytest.LogCaptureFixture) -> None:
    own, other = (
        Sources(
            train="train.jsonl", validation=validation, validation_fraction=0.1, test=None, split="train",
            max_prompts=None, seed=0,
        )
        for validation in (None, "validation.jsonl")
    )  # fmt: skip
    assert (own.held_out(), other.held_out()) == (
        {"seed": 0, "validation_fraction": 0.1},
        {"seed": 0, "validation_fraction": 0.0},
    )
    for command, judged in (("validate", True), ("test", True), ("predict", True), ("fit", False), (None, False)):
        caplog.clear()
        own.warn_of_trained(own.held_out(), command)
        other.warn_of_trained(own.held_out(), command)
        assert not caplog.text
        own.warn_of_trained(other.held_out(), command)
        assert ("the fit held out other prompts" in caplog.text) == judged


def test_sets_of_the_hub_are_downloaded_before_processes_read_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(splits, "read_hub", lambda name, split: iter(asked.append((name, split)) or ["a row"]))
    file = grouped(tmp_path, range(2))
    TrajectoryDataModule(train=[file, "owner/many"], validation="owner/few", test="owner/test:main").prepare_data()
    assert asked == [(name, "train") for name in ("owner/many", "owner/few", "owner/test:main")]


@pytest.mark.filterwarnings("ignore")
def test_training_without_validation_set(tmp_path: Path) -> None:
    data = TrajectoryDataModule(train=grouped(tmp_path, range(6)), validation_fraction=0.0, batch_size=6)
    recorder = Recorder()
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, max_epochs=1, default_root_dir=tmp_path
    )
    trainer.fit(recorder, datamodule=data.with_tokenizer(TOKENIZER))
    assert len(recorder.seen) == 3 and recorder.validated == []


def test_lightning_puts_no_sampler_of_its_own_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.trainer.states import RunningStage

    data = module(grouped(tmp_path, range(30)), validation_fraction=0.3)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    assert trainer._accelerator_connector.use_distributed_sampler
    monkeypatch.setattr(type(trainer._accelerator_connector), "is_distributed", property(lambda self: True))
    for loader, stage in (
        (data.train_dataloader(), RunningStage.TRAINING),
        (data.val_dataloader()[0], RunningStage.PREDICTING),
    ):
        assert trainer._data_connector._prepare_dataloader(loader, shuffle=False, mode=stage) is loader


def test_real_rollouts(shared_dir: Path) -> None:
    folder = shared_dir / "data" / "rollouts"
    options: dict[str, Any] = {"max_length": 100000, "validation_fraction": 0.1}
    data = module(str(folder / "pointwise.parquet"), **options)
    assert data.train_set is not None and data.val_set is not None and data.report == {}
    assert len(data.train_set) + len(data.val_set) == 850
    assert len(groups(data.train_set)) + len(groups(data.val_set)) == 208
    pairs = module(str(folder / "pairwise.parquet"), pairwise=True, **{**options, "validation_fraction": 0.0})
    assert pairs.train_pairs is not None and pairs.train_set is not None
    assert len(pairs.train_pairs) == 425 and len(pairs.train_set) == 850
    assert pairs.train_set.outcomes is not None and pairs.train_set.outcomes.mean() == 0.5
