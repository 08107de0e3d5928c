"""The stages of the paper as docs/policies.md gives them, one command after the other, on a tiny model."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from ipvrm_lightning.cli import main
from ipvrm_lightning.worlds.arithmetic import ArithmeticWorld

from .conftest import REPOSITORY

CPU = "--trainer.accelerator cpu --trainer.precision 32-true --trainer.enable_progress_bar false"


def commands() -> list[list[str]]:
    """The words of each command of the page's section, without `ipvrm`."""
    page = (REPOSITORY / "docs" / "policies.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"## From a base model to a policy.*?```\n(.*?)```", page, flags=re.DOTALL)
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines]


def write_prompts(world: ArithmeticWorld, file: Path) -> None:
    """Prompts with the last line of a right response for their ground truth."""
    rows = [json.loads(line) for line in (world.folder / "train.jsonl").read_text().splitlines()]
    right = [(row["prompt"], row["responses"][row["scores"].index(1)]) for row in rows if 1 in row["scores"]]
    file.write_text("".join(json.dumps({"prompt": p, "answer": r.splitlines()[-1]}) + "\n" for p, r in right))


def test_the_stages_follow_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, micro_world: ArithmeticWorld
) -> None:
    monkeypatch.chdir(tmp_path)
    write_prompts(micro_world, tmp_path / "prompts.jsonl")
    world, own = micro_world.folder, "--data.train prompts.jsonl --data.system_prompt null"
    short = "--model.sampling.max_new_tokens 48 --model.evaluation.max_new_tokens 48 --model.stop_tokens null"
    few = (
        "--model.sampling.group_size 8 --data.batch_size 4 --model.update.mini_batches 2 --model.reward.mini_batches 2"
    )
    smaller = [
        f"{CPU} --model.language_model.name {world}/policy --data.train {world}/train.jsonl --trainer.max_epochs 1",
        "",
        "--prompts.train prompts.jsonl --prompts.system_prompt null --source.stop_tokens null --verifier ExactMatch"
        " --source.language_model.dtype float32 --sampling.group_size 8 --sampling.max_new_tokens 48",
        f"{CPU} --trainer.max_epochs 1",
        f"{CPU} --data.path {world}/test_format0.jsonl --data.subsets null --data.system_prompt null",
        f"{CPU} {own} {short} {few} --model.verifier ExactMatch --trainer.limit_train_batches 1"
        " --trainer.val_check_interval 1",
        "",
    ]
    for command, options in zip(commands(), smaller, strict=True):
        main([*command, *options.split()])
    policies = [
        AutoModelForCausalLM.from_pretrained(place) for place in (world / "policy", "outputs/sft", "outputs/policy")
    ]
    start, supervised, policy = (dict(model.named_parameters()) for model in policies)
    for before, after in ((start, supervised), (supervised, policy)):
        assert before.keys() == after.keys()
        change = max(float((after[name] - before[name]).detach().abs().max()) for name in before)
        assert 0 < change < 0.01
    (results,) = tmp_path.glob("outputs/ipvrm_qwen/*-test/results.json")
    assert "step_f1" in results.read_text()
