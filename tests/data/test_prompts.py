"""Prompts with ground truths: their forms, tokens, splits and order, and training that stops and goes on."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from ipvrm_lightning.data import DataError, PromptDataModule, PromptLoader, PromptModule, encode_example
from ipvrm_lightning.data.prompt_loading import PromptEvalLoader, PromptStream
from ipvrm_lightning.types import PromptBatch, PromptExample
from tests.data.tokenizers import CHATML, THINKING, byte_level

TOKENIZER = byte_level()


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def problems(folder: Path, numbers: range, name: str = "prompts.jsonl") -> str:
    rows = [{"prompt": f"problem {i} " + "x " * (i % 5), "answer": i, "id": f"p{i}"} for i in numbers]
    return write(folder / name, rows)


def module(tokenizer: Any = TOKENIZER, stage: str = "fit", **options: Any) -> PromptDataModule:
    data = PromptDataModule(**options)
    data.with_tokenizer(tokenizer)
    data.setup(stage)
    return data


def examples(count: int) -> list[PromptExample]:
    return [PromptExample([7] * (1 + i % 4), f"problem {i}", str(i), "tests", f"p{i}") for i in range(count)]


def ids(prompts: list[PromptExample]) -> list[str]:
    return [prompt.id for prompt in prompts]


MESSAGES = [{"role": "user", "content": "1 + 1?"}]
ROWS = {
    "verl": {"prompt": MESSAGES, "reward_model": {"ground_truth": "2", "style": "rule"}, "data_source": "amc"},
    "ground_truth": {"prompt": "1 + 1?", "ground_truth": 2, "dataset": "amc"},
    "answer": {"question": "1 + 1?", "answer": 2.0, "subset": "amc"},
    "solution": {"problem": "1 + 1?", "solution": "2", "data_source": "amc", "level": 3},
    "answer before solution": {"problem": "1 + 1?", "solution": "it is 2", "answer": "2", "data_source": "amc"},
}


@pytest.mark.parametrize("name", ROWS)
def test_forms_are_recognised_by_their_columns(name: str, tmp_path: Path) -> None:
    (prompt,) = module(train=write(tmp_path / "rows.jsonl", [ROWS[name]])).train_prompts
    assert (prompt.ground_truth, prompt.data_source, prompt.id) == ("2", "amc", "rows-1")
    assert prompt.prompt == (MESSAGES if name == "verl" else "1 + 1?")
    assert TOKENIZER.decode(prompt.input_ids) == "<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(("number", "text"), [(0.5, "0.5"), (-2.0, "-2"), (-0.25, "-0.25"), (10**20, str(10**20))])
def test_a_number_that_is_right_becomes_text(tmp_path: Path, number: float, text: str) -> None:
    (prompt,) = module(train=write(tmp_path / "rows.jsonl", [{"prompt": "q", "answer": number}])).train_prompts
    assert prompt.ground_truth == text


def test_split_and_seed_are_those_of_the_arguments(tmp_path: Path) -> None:
    problems(tmp_path, range(9), "train.jsonl")
    problems(tmp_path, range(10, 20), "test.jsonl")

    def drawn(**options: Any) -> list[str]:
        data = module(train=str(tmp_path), validation_fraction=0.0, **options)
        return ids(next(iter(data.train_dataloader())).take(9))

    first = drawn()
    assert sorted(first) == [f"p{i}" for i in range(9)]
    assert first == drawn(seed=0) != drawn(seed=1)
    assert set(drawn(split="test")) < {f"p{i}" for i in range(10, 20)}


BAD = {
    "list": ({"prompt": "q", "answer": ["2"]}, "answer", "['2']"),
    "null": ({"prompt": "q", "answer": None}, "answer", "None"),
    "bool": ({"prompt": "q", "answer": True}, "answer", "True"),
    "blank": ({"prompt": "q", "answer": " "}, "answer", "' '"),
    "not a number": ({"prompt": "q", "answer": float("nan")}, "answer", "nan"),
    "no prompt": ({"prompt": "", "answer": "2"}, "prompt", "''"),
    "role": ({"prompt": [{"role": "me", "content": "q"}], "answer": "2"}, "prompt[0].role", "'me'"),
    "opened": ({"prompt": [*MESSAGES, {"role": "assistant", "content": "It"}], "answer": "2"}, "prompt", "'It'"),
    "tools": ({"prompt": "q", "answer": "2", "tools": [{"name": "add"}]}, "tools", "'add'"),
    "missing": ({"prompt": "q"}, "answer", "['prompt']"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_named_or_counted(name: str, tmp_path: Path) -> None:
    row, field, found = BAD[name]
    path = write(tmp_path / "rows.jsonl", [{"prompt": "q", "answer": "2"}, row])
    with pytest.raises(DataError) as error:
        module(train=path)
    assert (error.value.source, error.value.row, error.value.field) == (path, 2, field)
    assert found in str(error.value) and "\n" not in str(error.value)
    data = module(train=path, on_bad_rows="skip")
    assert len(data.train_prompts) == 1 and sum(data.report.values()) == 1


def test_bad_nested_ground_truth_and_unknown_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"prompt": "q", "reward_model": {"style": "rule"}}])
    with pytest.raises(DataError, match="field 'reward_model': no mapping with ground_truth, found"):
        module(train=path)
    path = write(tmp_path / "rows.jsonl", [{"text": "q", "answer": "2"}])
    with pytest.raises(DataError, match="row 1: no prompt in the columns answer, text; known are prompt, problem"):
        module(train=path, on_bad_rows="skip")
    with pytest.raises(ValueError, match="none is given"):
        module()


def test_ids_are_unique_and_rows_added_change_none(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "answer": 1, "id": "x"},
        {"prompt": "b", "answer": 1, "id": "x"},
        {"prompt": "c", "answer": 1, "id": "x-2"},
        {"prompt": "d", "answer": 1, "extra_info": {"index": 0}, "data_source": "amc"},
        {"prompt": "e", "answer": 1, "extra_info": {"index": 0}, "data_source": "math"},
        {"prompt": "f", "answer": 1},
    ]
    names = ids(module(train=write(tmp_path / "rows.jsonl", rows)).train_prompts)
    assert names == ["x", "x-2", "x-2-2", "amc-0", "math-0", "rows-6"]
    longer = ids(module(train=write(tmp_path / "rows.jsonl", [*rows, *rows])).train_prompts)
    assert longer[:6] == names and len(set(longer)) == 12


@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("prompt", ["What is 3 + 4?\n", [*MESSAGES, {"role": "assistant", "content": "2"}, *MESSAGES]])
def test_prompt_tokens_are_those_that_responses_are_trained_after(tmp_path: Path, prompt: Any, system: Any) -> None:
    path = write(tmp_path / "rows.jsonl", [{"prompt": prompt, "answer": "7"}])
    (example,) = module(train=path, system_prompt=system).train_prompts
    whole, start = encode_example(TOKENIZER, prompt, "The sum is 7.", system_prompt=system)
    assert example.input_ids == whole[:start]
    response = TOKENIZER("The sum is 7.", add_special_tokens=False)["input_ids"]
    assert example.input_ids + response + [TOKENIZER.eos_token_id] == whole
    # What is kept with responses holds the system prompt: it renders the same without being told again.
    assert encode_example(TOKENIZER, example.prompt, "The sum is 7.") == (whole, start)


@pytest.mark.parametrize("kwargs", [None, {"enable_thinking": False}])
def test_a_prompt_has_the_tokens_that_training_puts_before_its_response(
    kwargs: dict[str, Any] | None, tmp_path: Path
) -> None:
    tokenizer = byte_level(THINKING)
    path = write(tmp_path / "rows.jsonl", [{"prompt": "q", "answer": "7"}])
    (example,) = module(tokenizer, train=path, chat_template_kwargs=kwargs).train_prompts
    whole, start = encode_example(tokenizer, "q", "7", chat_template_kwargs=kwargs)
    assert example.input_ids == whole[:start]
    assert ("</think>" in str(tokenizer.decode(example.input_ids))) is (kwargs is not None)


@pytest.mark.parametrize(("template", "bos"), [(None, False), (None, True), (CHATML, True)])
def test_plain_prompts_begin_with_what_the_tokenizer_adds(template: str | None, bos: bool, tmp_path: Path) -> None:
    tokenizer = byte_level(template, bos=bos)
    path = write(tmp_path / "rows.jsonl", [{"prompt": "What is 3 + 4?\n", "answer": "7"}])
    (example,) = module(tokenizer, train=path, prompt_format="plain").train_prompts
    whole, start = encode_example(tokenizer, "What is 3 + 4?\n", "The sum is 7.", prompt_format="plain")
    assert example.input_ids == whole[:start]
    assert (example.input_ids[0] == tokenizer.bos_token_id) is bos
    assert tokenizer.eos_token_id not in example.input_ids
    for row, options in (({"prompt": MESSAGES}, {}), ({"prompt": "q"}, {"system_prompt": "s"})):
        bad = write(tmp_path / "bad.jsonl", [{**row, "answer": "2"}])
        with pytest.raises(DataError, match=r"bad\.jsonl, row 1.*chat template"):
            module(tokenizer, train=bad, prompt_format="plain", **options)


def test_long_prompts_are_counted_or_an_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "rows.jsonl", [{"prompt": "x" * n, "answer": n} for n in (5, 50, 90)])
    limit = len(module(train=path).train_prompts[1].input_ids)
    data = module(train=path, max_prompt_length=limit)
    assert [prompt.ground_truth for prompt in data.train_prompts] == ["5", "50"]
    assert data.report == {f"dropped: prompt is longer than {limit} tokens": 1}
    assert f"1 dropped: prompt is longer than {limit} tokens" in caplog.text
    with pytest.raises(DataError, match=rf"row 3, field 'prompt'.*max_prompt_length {limit}"):
        module(train=path, max_prompt_length=limit, over_length="error")
    with pytest.raises(ValueError, match="no usable prompt"):
        module(train=path, max_prompt_length=1)


def test_splits_are_by_prompt(tmp_path: Path) -> None:
    small = module(train=problems(tmp_path, range(60)), validation_fraction=0.3)
    large = module(train=problems(tmp_path, range(120)), validation_fraction=0.3)
    train, validation = set(ids(small.train_prompts)), set(ids(small.val_prompts))
    assert not train & validation and len(train | validation) == 60 and 5 < len(validation) < 35
    assert train < set(ids(large.train_prompts)) and validation < set(ids(large.val_prompts))
    assert small.test_prompts == small.val_prompts

    held_out, test = problems(tmp_path, range(8, 14), "val.jsonl"), problems(tmp_path, range(13, 16), "test.jsonl")
    data = module(train=problems(tmp_path, range(20)), validation=held_out, test=test)
    assert ids(data.train_prompts) == [f"p{i}" for i in [*range(8), *range(16, 20)]]
    assert ids(data.val_prompts) == [f"p{i}" for i in range(8, 14)] and ids(data.test_prompts) == ["p13", "p14", "p15"]
    assert data.report == {
        "taken out of training: prompt is in validation": 6,
        "taken out of training: prompt is in test": 2,
    }
    judged = module(stage="test", train=problems(tmp_path, range(20)), test=test)
    assert [name for name in judged.report if "a run that was fitted without data.test has seen it" in name]
    split = module(train=problems(tmp_path, range(20)), validation_fraction=0.5, test=test)
    assert not set(ids(split.train_prompts)) & set(ids(split.val_prompts) + ids(split.test_prompts))
    assert len(set(ids(split.train_prompts) + ids(split.val_prompts) + ids(split.test_prompts))) == 20

    few = [set(ids(module(train=problems(tmp_path, range(30)), max_prompts=n).train_prompts)) for n in (5, 12)]
    assert len(few[0]) == 5 and len(few[1]) == 12 and few[0] < few[1]


def test_prompts_that_were_held_out_of_another_split_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = problems(tmp_path, range(20))
    fitted = module(train=path, validation_fraction=0.3)
    fitted.train_dataloader()
    for seed, said in ((0, False), (1, True)):
        judged = module(train=path, validation_fraction=0.3, seed=seed)
        judged.trainer = SimpleNamespace(state=SimpleNamespace(fn="validate"))  # type: ignore[assignment]
        judged.load_state_dict(fitted.state_dict())
        assert ("the fit held out other prompts" in caplog.text) == said


def test_evaluation_needs_no_training_prompts(tmp_path: Path) -> None:
    data = module(test=problems(tmp_path, range(3)))
    assert len(data.test_prompts) == 3 and data.val_dataloader() == []
    with pytest.raises(ValueError, match="no training prompts"):
        data.train_dataloader()


@pytest.mark.parametrize("sizes", [[1] * 20, [3, 0, 4, 1, 12], [20]])
def test_a_pass_holds_every_prompt_once_whatever_is_drawn(sizes: list[int]) -> None:
    stream = PromptStream(examples(10), seed=3)
    drawn = ids([prompt for size in sizes for prompt in stream.take(size)])
    assert set(drawn[:10]) == set(drawn[10:]) and len(set(drawn[:10])) == 10 and drawn[:10] != drawn[10:]
    assert drawn == ids(PromptStream(examples(10), seed=3).take(20))
    assert drawn != ids(PromptStream(examples(10), seed=4).take(20))


def draws(loader: PromptLoader, sizes: list[int]) -> list[list[str]]:
    return [ids(stream.take(size)) for stream, size in zip(loader, sizes, strict=False)]


def test_steps_per_epoch() -> None:
    assert [len(PromptLoader(examples(10), batch_size=size, seed=0)) for size in (1, 3, 10, 11)] == [10, 3, 1, 1]
    loader = PromptLoader(examples(10), batch_size=3, seed=0)
    first, second = draws(loader, [3] * 9), draws(loader, [3] * 9)
    assert len(first) == len(second) == 3 and first != second  # the stream runs on


@pytest.mark.parametrize("stop", [0, 1, 2, 3])
def test_a_loader_goes_on_with_the_next_prompt(stop: int) -> None:
    sizes = [4, 1, 7]
    whole = PromptLoader(examples(10), batch_size=3, seed=0)
    expected, states = [], [whole.state_dict()]
    for _ in range(2):
        for stream, size in zip(whole, sizes, strict=True):
            expected.append(ids(stream.take(size)))
            states.append(whole.state_dict())
    state = json.loads(json.dumps(states[stop]))
    again = PromptLoader(examples(10), batch_size=3, seed=0)
    again.load_state_dict(state)
    iter(again)  # made and not used
    epoch = stop // 3
    again.set_epoch(epoch)  # as Lightning does
    remaining = draws(again, sizes[stop % 3 :])
    assert again.state_dict() == {**states[3 if stop < 3 else 6], "epoch": epoch + 1, "steps": 0}
    assert remaining == expected[stop : 3 if stop < 3 else 6]
    assert len(draws(again, sizes)) == 3


def test_a_loader_refuses_other_prompts_and_seeds() -> None:
    state = PromptLoader(examples(10), batch_size=3, seed=0).state_dict()
    changed = examples(10)
    changed[4] = PromptExample(changed[4].input_ids, changed[4].prompt, "other", "tests", changed[4].id)
    for prompts, seed, named in ((examples(11), 0, "prompts"), (changed, 0, "prompts"), (examples(10), 1, "seed 0")):
        with pytest.raises(ValueError, match=f"cannot resume: .*{named}"):
            PromptLoader(prompts, batch_size=3, seed=seed).load_state_dict(state)


@pytest.mark.parametrize("count", [0, 1, 3, 10, 17])
@pytest.mark.parametrize("world_size", [1, 3])
def test_processes_share_evaluation_prompts(count: int, world_size: int) -> None:
    prompts = examples(count)
    loaders = [PromptEvalLoader(prompts, batch_size=4, rank=r, world_size=world_size) for r in range(world_size)]
    assert len({len(loader) for loader in loaders}) == 1
    assert Counter(name for loader in loaders for batch in loader for name in ids(batch.prompts)) == Counter(
        ids(prompts)
    )
    for batch in (batch for loader in loaders for batch in loader):
        lengths = [len(prompt.input_ids) for prompt in batch.prompts]
        assert lengths == sorted(lengths, reverse=True) and len(lengths) <= 4


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_limited_evaluation_is_of_prompts_of_all_lengths(world_size: int) -> None:
    prompts = [PromptExample([7] * (1 + i), f"problem {i}", str(i), "tests", f"p{i}") for i in range(800)]
    first = []
    for rank in range(world_size):
        loader = PromptEvalLoader(prompts, batch_size=4, rank=rank, world_size=world_size)
        again = PromptEvalLoader(prompts, batch_size=4, rank=rank, world_size=world_size)
        assert [ids(batch.prompts) for batch in loader] == [ids(batch.prompts) for batch in again]
        first += [list(loader)[number] for number in range(40 // world_size)]
    lengths = [len(prompt.input_ids) for batch in first for prompt in batch.prompts]
    # 160 of 800 in blocks of 4 or 8: the mean of 1 to 800 with a standard error of at most 50
    assert len(lengths) == 160 and abs(sum(lengths) / len(lengths) - 400.5) < 125


class Recorder(LightningModule):
    """Draws one prompt more at every second step; writes down what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[str]] = []
        self.validated: list[str] = []

    def training_step(self, stream: PromptStream, batch_idx: int) -> torch.Tensor:
        assert isinstance(stream, PromptStream)
        self.seen.append(ids(stream.take(3 + self.global_step % 2)))
        return self.weight * 1.0

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        self.validated += ids(batch.prompts)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class GivenPrompts(PromptModule):
    """As the built-in world does: prompts that are not read from files."""

    def setup(self, stage: str | None = None) -> None:
        self.train_prompts, self.val_prompts = examples(13), examples(5)


def fit(folder: Path, *, resume: str | None = None, **options: Any) -> Recorder:
    recorder = Recorder()
    checkpoints = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, callbacks=[checkpoints], **options,
    )  # fmt: skip
    trainer.fit(recorder, datamodule=GivenPrompts(batch_size=3, eval_batch_size=2), ckpt_path=resume, weights_only=True)
    trainer.save_checkpoint(folder / "last.ckpt")
    return recorder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("limit", [{"max_epochs": 3}, {"max_steps": 12, "max_epochs": -1}])
def test_training_goes_on_exactly_where_it_stopped(tmp_path: Path, limit: dict[str, Any]) -> None:
    whole = fit(tmp_path / "whole", **limit)
    assert len(whole.seen) == 12  # three epochs of 13 // 3 steps
    drawn = [name for step in whole.seen for name in step]
    assert drawn == ids(PromptStream(examples(13), seed=0).take(len(drawn)))
    assert Counter(whole.validated[-5:]) == Counter(ids(examples(5)))
    for stop in (1, 4, 6, 11):
        resumed = fit(tmp_path / f"from{stop}", resume=str(tmp_path / "whole" / f"step={stop}.ckpt"), **limit)
        assert resumed.seen == whole.seen[stop:]


@pytest.mark.filterwarnings("ignore")
def test_an_epoch_that_ends_before_its_last_step_is_followed_by_a_whole_one(tmp_path: Path) -> None:
    limit = {"max_epochs": 3, "limit_train_batches": 3}  # of 4
    whole = fit(tmp_path / "whole", **limit)
    assert len(whole.seen) == 9
    for stop in (2, 3, 5, 6):
        resumed = fit(tmp_path / f"from{stop}", resume=str(tmp_path / "whole" / f"step={stop}.ckpt"), **limit)
        assert resumed.seen == whole.seen[stop:]
    fit(tmp_path / "first", **{**limit, "max_epochs": 1})
    resumed = fit(tmp_path / "second", resume=str(tmp_path / "first" / "last.ckpt"), **limit)
    assert resumed.seen == whole.seen[3:]


def test_a_stream_that_would_begin_anew_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reload_dataloaders_every_n_epochs would begin the stream of prompts anew"):
        fit(tmp_path, max_epochs=1, reload_dataloaders_every_n_epochs=1)


def test_real_prompts(shared_dir: Path) -> None:
    data = module(train=str(shared_dir / "data" / "policy_eval" / "val.parquet"), max_prompt_length=100_000)
    assert len(data.train_prompts) == 1620 and len(set(ids(data.train_prompts))) == 1620 and data.report == {}
    assert Counter(prompt.data_source for prompt in data.train_prompts)["math-500"] == 500
    assert data.train_prompts[0].id == "aimo-amc-0" and data.train_prompts[0].ground_truth == "142.0"
