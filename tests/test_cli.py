from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import LightningModule

from ipvrm_lightning.cli import main
from ipvrm_lightning.lightning_cli import _check_command
from ipvrm_lightning.metrics import read_scores
from ipvrm_lightning.metrics.token_file import TokenRecord, read_tokens
from ipvrm_lightning.models import PretrainedLanguageModel
from ipvrm_lightning.models.checkpoints import newest_checkpoint
from ipvrm_lightning.types import ScoredSolution
from ipvrm_lightning.worlds.arithmetic import ArithmeticWorld

from .conftest import REPOSITORY
from .modules.conftest import QWEN

CONFIGS = sorted(
    path.relative_to(REPOSITORY / "configs").as_posix() for path in (REPOSITORY / "configs").rglob("*.yaml")
)
EXPERIMENTS = [name for name in CONFIGS if "/" not in name and not name.startswith("rollout")]
OVERLAYS = [name for name in CONFIGS if name.startswith("objective/")]
STRATEGIES = [name for name in CONFIGS if name.startswith("strategy/")]


@pytest.fixture(scope="session")
def real_inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A tiny tokenizer with a chat template, rollouts and stepwise solutions on disk."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("inputs")
    tokens = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=tokens, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer.save_pretrained(folder / "tokenizer")
    rows = [
        {"prompt": f"{n} + 1?", "responses": [f"it is {n + 1}", f"maybe {n}", f"{n + 1}"], "scores": [1, 0, 1]}
        for n in range(30)
    ]
    (folder / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    steps = [
        {
            "id": f"gsm8k-{n}",
            "problem": f"{n} + 1?",
            "steps": ["add", f"so {n + n % 2}"],
            "label": -1 if n % 2 else 1,
            "final_answer_correct": bool(n % 2),
        }
        for n in range(12)
    ]
    (folder / "processbench").mkdir()
    (folder / "processbench" / "gsm8k.json").write_text(json.dumps(steps))
    return {
        "tokenizer": str(folder / "tokenizer"),
        "rollouts": str(folder / "rollouts.jsonl"),
        "processbench": str(folder / "processbench"),
    }


def tiny_overlay(folder: Path, real_inputs: dict[str, str], config: str) -> str:
    """Replaces what a config would download: the model becomes a random tiny one, keeping LoRA where it is used."""
    whole = yaml.safe_load((REPOSITORY / "configs" / config).read_text())
    factory = whole["model"]["init_args"]["language_model"]["init_args"]
    arguments = {"config": {**QWEN, "vocab_size": 300}, "tokenizer": real_inputs["tokenizer"]}
    if "lora" in factory:
        arguments["lora"] = factory["lora"]
    overlay = {
        "model": {
            "init_args": {
                "language_model": {
                    "class_path": "ipvrm_lightning.models.RandomLanguageModel",
                    "init_args": arguments,
                }
            }
        },
        "trainer": {"default_root_dir": str(folder), "accelerator": "cpu", "devices": 1},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(overlay))
    return str(folder / "tiny.yaml")


def test_there_are_as_many_configs_as_the_tests_run() -> None:
    assert len(EXPERIMENTS) == 8
    assert len(OVERLAYS) == 7
    assert len(STRATEGIES) == 8  # tests/strategies/test_overlays.py
    assert (
        len(CONFIGS) == len(EXPERIMENTS) + len(OVERLAYS) + len(STRATEGIES) + 4
    )  # data/processbench, world/comparisons, rollout_*


@pytest.mark.parametrize("config", [n for n in EXPERIMENTS if n.startswith(("ipvrm", "sft")) and "arithmetic" not in n])
def test_every_config_fits_a_tiny_model(config: str, tmp_path: Path, real_inputs: dict[str, str]) -> None:
    cache = str(tmp_path / "cache")
    main(
        [
            *("fit", "--config", str(REPOSITORY / "configs" / config)),
            *("--config", tiny_overlay(tmp_path, real_inputs, config)),
            *("--data.train", real_inputs["rollouts"], "--trainer.fast_dev_run", "1", "--trainer.precision", "32"),
            *(("--model.init_args.reference.init_args.cache_dir", cache) if config.startswith("ipvrm") else ()),
        ]
    )
    assert list(tmp_path.glob("cache/*/*.safetensors")) or not config.startswith("ipvrm")


def test_the_worlds_of_reward_model_and_policy_are_the_same() -> None:
    overlay, policy = (
        yaml.safe_load((REPOSITORY / "configs" / name).read_text())
        for name in ("world/comparisons.yaml", "distrl_arithmetic.yaml")
    )
    for part in (lambda c: c["model"]["init_args"]["language_model"], lambda c: c["data"]):
        assert part(overlay)["init_args"]["overrides"] == part(policy)["init_args"]["overrides"]
    assert policy["model"]["init_args"]["reward"]["checkpoint"] == overlay["trainer"]["default_root_dir"]


@pytest.mark.parametrize("config", ["distrl_qwen.yaml", "grpo_qwen.yaml"])
def test_every_policy_config_fits_a_tiny_model(
    config: str, tmp_path: Path, real_inputs: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ipvrm_lightning.modules import DistRLModule

    sampled = []
    collect = DistRLModule.collect
    monkeypatch.setattr(
        DistRLModule, "collect", lambda self, stream: sampled.append(collect(self, stream)) or sampled[-1]
    )
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"{n} + 1?", "reward_model": {"ground_truth": str(n + 1)}} for n in range(8)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    untrained = tmp_path / "untrained.yaml"
    untrained.write_text(yaml.safe_dump({"model": {"init_args": {"reward": {"checkpoint": None}}}}))
    main(
        [
            *("fit", "--config", str(REPOSITORY / "configs" / config)),
            *("--config", tiny_overlay(tmp_path, real_inputs, config)),
            *("--data.train", str(prompts), "--data.batch_size", "2", "--data.system_prompt", "null"),
            *("--data.validation_fraction", "0.3"),
            *("--model.sampling.max_new_tokens", "6", "--model.evaluation.max_new_tokens", "6"),
            *("--model.sampling.group_size", "4", "--model.verifier", "tests.rollouts.judges.EvenLength"),
            *(("--config", str(untrained)) if config.startswith("distrl") else ()),
            *("--trainer.fast_dev_run", "2", "--trainer.precision", "32"),
        ]
    )
    assert len(sampled) == 2
    assert all(len(group.attempts) == 4 for collection in sampled for group in collection.sampled)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lines for the user that go by Lightning's logger."""
    lines: list[str] = []
    for module in ("lightning_cli", "models.initial_reward"):
        monkeypatch.setattr(f"ipvrm_lightning.{module}.rank_zero_info", lines.append)
    return lines


def check_tokens(records: list[TokenRecord], solutions: list[ScoredSolution]) -> None:
    """TD advantages of a step's tokens sum to its score, and the last value is that of the whole."""
    scored = {one.id: one for one in solutions}
    assert {record.id for record in records} == scored.keys()
    for record in records:
        pairs = list(zip(record.step_ids, record.td_advantages, strict=True))
        for step, score in enumerate(scored[record.id].step_scores["step_sum"]):
            assert sum(value for at, value in pairs if at == step) == pytest.approx(score, rel=1e-3, abs=1e-4)
        assert record.values[-1] == pytest.approx(scored[record.id].final_value, rel=1e-4, abs=1e-6)
        assert "".join(record.tokens).startswith("Step 1: add")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_objective_stacks_on_an_experiment_and_is_judged(
    overlay: str, tmp_path: Path, real_inputs: dict[str, str], capsys: pytest.CaptureFixture[str], said: list[str]
) -> None:
    base = [
        *("--config", str(REPOSITORY / "configs" / "ipvrm_smollm2.yaml")),
        *("--config", str(REPOSITORY / "configs" / overlay)),
        *("--config", tiny_overlay(tmp_path, real_inputs, "ipvrm_smollm2.yaml")),
        *("--model.init_args.reference.init_args.cache_dir", str(tmp_path / "cache")),
    ]
    trained = "endo" not in overlay
    if trained:
        main(["fit", *base, "--data.train", real_inputs["rollouts"], "--trainer.max_steps", "2"])
    main(
        [
            *("test", *base, "--config", str(REPOSITORY / "configs" / "data" / "processbench.yaml")),
            *("--data.path", real_inputs["processbench"], "--data.subsets", "[gsm8k]"),
            *(("--ckpt_path", "last") if trained else ()),
        ]
    )
    told = [line.partition(" ")[0] for line in said]
    assert told == ["objective", "optimizer", "Checkpoint:"] * trained and (not trained or said[-1].endswith("step 2"))
    printed = capsys.readouterr().out
    assert "random scores (floor)" in printed and "longest step (floor)" in printed
    (results,) = tmp_path.glob("*-test/results.json")
    report = json.loads(results.read_text())
    assert report["reports"]["step_f1"]["subsets"]["gsm8k"]
    (scores,) = tmp_path.glob("*-test/scores.jsonl")
    assert len(scores.read_text().splitlines()) == 12
    (tokens,) = tmp_path.glob("*-test/tokens.jsonl")
    check_tokens(read_tokens(tokens), read_scores(scores))
    if overlay == "objective/ipvrm.yaml":
        main(["report", str(tmp_path)])
        assert "gsm8k-11" in (tmp_path / "report.html").read_text()
    assert list(tmp_path.glob("*-test/config.yaml"))
    (record,) = tmp_path.glob("*-test/run.json")
    assert json.loads(record.read_text())["seed"] == 0


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_inherits_no_number_of_the_objective_below_it(
    overlay: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """jsonargparse keeps arguments that the new class has too: IPVRM's margin of 5 would become DPO-RM's."""
    import inspect

    from ipvrm_lightning import objectives

    own = yaml.safe_load((REPOSITORY / "configs" / overlay).read_text())["model"]["init_args"]["objective"]
    known = set(inspect.signature(getattr(objectives, own["class_path"].rpartition(".")[2])).parameters)
    assert set(own["init_args"]) == known


def test_predict_writes_values_beside_the_metadata(
    tmp_path: Path, real_inputs: dict[str, str], said: list[str], recwarn: pytest.WarningsRecorder
) -> None:
    main(
        [
            *("predict", "--config", str(REPOSITORY / "configs" / "ipvrm_smollm2.yaml")),
            *("--config", tiny_overlay(tmp_path, real_inputs, "ipvrm_smollm2.yaml")),
            *("--config", str(REPOSITORY / "configs" / "data" / "processbench.yaml")),
            *("--model.init_args.reference.init_args.cache_dir", str(tmp_path / "cache")),
            *("--data.path", real_inputs["processbench"], "--data.subsets", "[gsm8k]"),
        ]
    )
    assert said == ["This is the model as it starts. The newest checkpoint: --ckpt_path last"]
    assert not [warning for warning in recwarn if "batch indices" in str(warning.message)]
    (file,) = tmp_path.glob("*-predict/predictions.jsonl")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert {record["id"] for record in records} == {f"gsm8k-{n}" for n in range(12)}
    assert all(len(record["values"]) == len(record["token_ids"]) for record in records)


def test_the_built_in_world_is_trained_and_judged_by_the_demo_commands(
    tmp_path: Path, micro_world: ArithmeticWorld, capsys: pytest.CaptureFixture[str], said: list[str]
) -> None:
    world = {"size": "small", "seed": micro_world.seed, "root": micro_world.root, "overrides": micro_world.overrides}
    overlay = {
        "model": {
            "init_args": {
                "language_model": {"init_args": world},
                "reference": {"init_args": {"cache_dir": str(tmp_path / "cache")}},
            }
        },
        "data": {"init_args": world},
        "trainer": {"default_root_dir": str(tmp_path), "max_epochs": 1},
    }
    (tmp_path / "micro.yaml").write_text(yaml.safe_dump(overlay))
    config = [
        "--config",
        str(REPOSITORY / "configs" / "ipvrm_arithmetic.yaml"),
        "--config",
        str(tmp_path / "micro.yaml"),
    ]
    main(["fit", *config])
    main(["test", *config, "--ckpt_path", "last"])
    printed = capsys.readouterr().out
    for expected in ("Step F1 on format0", "Step F1 on format2", "longest step (floor)", "majority vote", "the truth"):
        assert expected in printed
    (results,) = tmp_path.glob("*-test/results.json")
    assert set(json.loads(results.read_text())["reports"]) == {"step_f1", "best_of_n", "calibration", "prefix_truth"}
    (tmp_path / "policy.yaml").write_text(
        yaml.safe_dump(
            {
                "model": {
                    "init_args": {
                        "language_model": {"init_args": world},
                        "reward": {"checkpoint": str(tmp_path)},
                        "sampling": {"max_new_tokens": 60},
                        "evaluation": {"max_new_tokens": 60},
                    }
                },
                "data": {"init_args": {**world, "batch_size": 4}},
                "trainer": {
                    "limit_train_batches": 2,
                    "val_check_interval": 2,
                    "default_root_dir": str(tmp_path / "rl"),
                },
            }
        )
    )
    policy = [
        "--config",
        str(REPOSITORY / "configs" / "distrl_arithmetic.yaml"),
        "--config",
        str(tmp_path / "policy.yaml"),
    ]
    main(["fit", *policy])
    assert said[-1].startswith(f"reward.checkpoint: from {tmp_path}/")
    main(["test", *policy, "--ckpt_path", "last"])
    assert "pass@4" in capsys.readouterr().out
    (responses,) = tmp_path.glob("rl/*-test/responses.jsonl")
    assert len(responses.read_text().splitlines()) == 16
    assert list(tmp_path.glob("rl/*-fit/responses-step2.jsonl"))


BAD_COMMANDS = {
    "an option before the config": (
        ["fit", "--data.train", "rollouts.jsonl", "--config", "{config}"],
        2,
        "Option 'train' comes before the config that names its class: give that one first",
    ),
    "unknown key": (["fit", "--config", "{config}", "--model.init_args.betaa", "3"], 2, "betaa"),
    "missing data": (
        ["fit", "--config", "{config}", "--data.train", "nowhere/rollouts.jsonl"],
        1,
        "nowhere/rollouts.jsonl",
    ),
    "no checkpoint": (["test", "--config", "{config}", "--ckpt_path", "last"], 1, "no checkpoint under"),
    "a checkpoint that is not there": (
        ["test", "--config", "{config}", "--ckpt_path", "run/best.ckpt"],
        1,
        "--ckpt_path run/best.ckpt: no such checkpoint",
    ),
    "a name that Lightning knows": (
        ["test", "--config", "{config}", "--ckpt_path", "best"],
        1,
        "--ckpt_path best: no such checkpoint; give the path of one (a run's best lies beside its last.ckpt)",
    ),
    "no scores": (["judge", "nowhere.jsonl"], 1, "nowhere.jsonl"),
}


@pytest.mark.parametrize("name", BAD_COMMANDS)
def test_bad_input_gives_one_line_and_a_failing_exit(
    name: str, tmp_path: Path, real_inputs: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    command, status, message = BAD_COMMANDS[name]
    config = str(REPOSITORY / "configs" / "ipvrm_smollm2.yaml")
    command = [config if word == "{config}" else word for word in command]
    if command[0] != "judge":
        command += ["--config", tiny_overlay(tmp_path, real_inputs, "ipvrm_smollm2.yaml")]
    with pytest.raises(SystemExit) as exit_info:
        main(command)
    assert exit_info.value.code == status
    error = capsys.readouterr().err
    (line,) = [line for line in error.splitlines() if line.startswith("ipvrm ")]
    assert message in line
    assert "Traceback" not in error and "usage:" not in error


@pytest.mark.parametrize("command", ["test", "predict"])
def test_a_command_that_a_module_has_no_step_for_names_those_that_it_has(
    command: str, tmp_path: Path, real_inputs: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(REPOSITORY / "configs" / "sft_smollm2.yaml")
    with pytest.raises(SystemExit):
        main([command, "--config", config, "--config", tiny_overlay(tmp_path, real_inputs, "sft_smollm2.yaml")])
    said = f"ipvrm {command}: SFTModule has no step for `ipvrm {command}`, only for fit, validate\n"
    assert capsys.readouterr().err.endswith(said)


def test_a_module_of_ones_own_is_asked_for_the_step_of_its_command_alone() -> None:
    """Lightning cannot tell of whatever else stands in place of a method."""

    class Own(LightningModule):
        forward = staticmethod(print)

        def training_step(self, batch: Any, batch_idx: int) -> None:
            pass

    _check_command("fit", Own())


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_the_help_offers_no_checkpoint_that_a_command_refuses(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    _, _, told = capsys.readouterr().out.partition("  --ckpt_path CKPT_PATH\n")
    (told, *_) = told.split("\n  --")
    assert "`last`" in told and "best" not in told and "registry" not in told


def test_what_a_constructor_refuses_is_all_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    objective = {"class_path": "ipvrm_lightning.objectives.ImplicitPRM"}
    trainer = {"default_root_dir": str(tmp_path)}
    overlay = {"model": {"init_args": {"reward": {"objective": objective}}}, "trainer": trainer}
    (tmp_path / "overlay.yaml").write_text(yaml.safe_dump(overlay))
    config = str(REPOSITORY / "configs" / "distrl_arithmetic.yaml")
    with pytest.raises(SystemExit):
        main(["fit", "--config", config, "--config", str(tmp_path / "overlay.yaml")])
    assert capsys.readouterr().err.splitlines()[-1] == (
        "ipvrm fit: ImplicitPRM has no outcome weights or margins to balance: set reward.adaptive_difficulty_boundary"
        " and reward.dynamic_loss_weighting to false"
    )


def test_a_bad_row_is_named_before_a_model_is_built(
    tmp_path: Path, real_inputs: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ipvrm_lightning.models import RandomLanguageModel

    monkeypatch.setattr(RandomLanguageModel, "build_model", lambda self: pytest.fail("a model was built"))
    bad = tmp_path / "bad.jsonl"
    bad.write_text(
        '{"prompt": "1?", "responses": ["a"], "scores": [1]}\n{"prompt": "2?", "responses": ["a"], "scores": [7]}\n'
    )
    with pytest.raises(SystemExit):
        main(
            [
                *("fit", "--config", str(REPOSITORY / "configs" / "ipvrm_smollm2.yaml")),
                *("--config", tiny_overlay(tmp_path, real_inputs, "ipvrm_smollm2.yaml")),
                *("--data.train", str(bad), "--data.on_bad_rows", "error"),
            ]
        )
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ipvrm fit:")]
    assert "bad.jsonl" in line and "row 2" in line and "scores" in line and "7" in line


def test_the_newest_checkpoint_is_found(tmp_path: Path) -> None:
    for number, name in enumerate(("b", "a")):
        file = tmp_path / name / "checkpoints" / "last.ckpt"
        file.parent.mkdir(parents=True)
        file.touch()
        os.utime(file, (number, number))
    assert newest_checkpoint(tmp_path, what="test") == tmp_path / "a" / "checkpoints" / "last.ckpt"


def test_parsing_a_config_loads_no_model(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("build_model", "build_tokenizer"):
        monkeypatch.setattr(PretrainedLanguageModel, part, lambda self: pytest.fail("something was loaded"))
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", str(REPOSITORY / "configs" / "ipvrm_qwen.yaml"), "--print_config"])
    assert ended.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["init_args"]["language_model"]["init_args"]["name"] == "Qwen/Qwen3-0.6B-Base"
