"""Configs and arguments: keys that do not exist, values of the wrong kind, classes of the wrong kind, broken YAML."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from .bases import bases
from .driver import Case
from .records import DAMAGE

#: Small numbers only: a model of a million layers is a wish, not a mistake.
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 0.5, 3.5, -0.5, 1e308, float("nan"), float("inf"), "", " ", "abc", "\ud800", "null",
    "1e-3", "nul\\0", "../../../x", "/nowhere/at/all", "a/b", "${oc.env:HOME}", "{{ 7 * 7 }}", [], {}, [1], ["a"], {"a": 1},
    {"class_path": "os.system"}, {"init_args": {}}, [[[]]], "x" * 3000,
]  # fmt: skip
CLASS_PATHS = [
    "nowhere.Class", "ipvrm_lightning.Nothing", "ipvrm_lightning.data.TrajectoryDataModule", "torch.nn.Linear", "os.system",
    "subprocess.Popen", "builtins.eval", "ipvrm_lightning.data.schema.check_text", "int", "", "...", "IPVRMModule", "a b.c",
    "ipvrm_lightning.objectives.Objective", "ipvrm_lightning.models.reference.Reference", "lightning.pytorch.LightningModule",
    "ipvrm_lightning.modules.SFTModule", "ipvrm_lightning.modules.DistRLModule", "ipvrm_lightning.data.PromptDataModule",
    "ipvrm_lightning.rollouts.Endpoint", "ipvrm_lightning.objectives.DPORM", "ipvrm_lightning.models.PretrainedLanguageModel",
]  # fmt: skip
#: Arguments of `ipvrm fit` that the base config leaves at their defaults.
SETTINGS = [
    "model.optimizer.lr", "model.optimizer", "model.scheduler.warmup", "model.scheduler.name", "model.gradient_clip_val",
    "model.chunk_size", "model.threshold", "model.reference", "model.objective.margin", "model.objective.reduction",
    "model.language_model.dtype", "model.language_model.seed", "model.language_model.attn_implementation",
    "model.language_model.lora.r", "model.language_model.lora.alpha", "model.language_model.lora.dropout",
    "model.language_model.lora.target_modules", "model.language_model.gradient_checkpointing", "data.max_tokens",
    "data.max_length", "data.over_length", "data.keep", "data.pairwise", "data.max_pairs_per_prompt", "data.max_prompts",
    "data.prompt_format", "data.system_prompt", "data.tokenizer", "data.seed", "data.split", "data.on_bad_rows",
    "data.validation", "data.test", "data.validation_fraction", "data.batch_size", "trainer.precision", "trainer.max_time",
    "trainer.limit_train_batches", "trainer.val_check_interval", "trainer.log_every_n_steps", "trainer.callbacks",
    "trainer.gradient_clip_val", "trainer.accumulate_grad_batches", "trainer.accelerator", "trainer.profiler", "ckpt_path",
    "trainer.logger", "trainer.plugins", "seed_everything", "weights_only",
]  # fmt: skip
#: Arguments that cannot go together, or not with this command.
PAIRS: list[tuple[str, ...]] = [
    ("--data.keep", "right", "--data.pairwise", "true"),
    ("--data.pairwise", "true"),
    ("--model.objective", "ipvrm_lightning.objectives.DPORM"),
    ("--model.objective", "ipvrm_lightning.objectives.EndoRM"),
    ("--model.reference", "ipvrm_lightning.models.AdaptersOff"),
    ("--model.reference", "ipvrm_lightning.models.FrozenCopy", "--model.language_model.lora", "{r: 2}"),
    ("--model.language_model.lora", "{r: 2, target_modules: [lm_head]}"),
    ("--model.language_model.lora", "{r: 2, target_modules: [nothing]}"),
    ("--ckpt_path", "last"),
    ("--ckpt_path", "/nowhere/last.ckpt"),
    ("--weights_only", "false"),
    ("--data", "ipvrm_lightning.data.ProcessBenchDataModule", "--data.path", "/nowhere"),
    ("--data", "ipvrm_lightning.data.PromptDataModule", "--data.train", "/nowhere"),
    ("--trainer.accelerator", "cuda"),
    ("--trainer.precision", "16-mixed"),
    ("--trainer.precision", "16-true"),
    ("--trainer.max_steps", "0"),
    ("--trainer.limit_train_batches", "0"),
    ("--trainer.fast_dev_run", "true", "--trainer.max_steps", "3"),
    ("--trainer.accumulate_grad_batches", "4"),
    ("--trainer.gradient_clip_val", "1.0"),
    ("--trainer.strategy", "fsdp"),
    ("--trainer.strategy", "deepspeed"),
    ("--trainer.devices", "0"),
    ("--trainer.devices", "many"),
    ("--model.language_model.config", "{model_type: nothing}"),
    ("--model.language_model.config", "{hidden_size: 3}"),
    ("--model.language_model.config", "{model_type: bert}"),
    ("--model.language_model.config", "/nowhere"),
    ("--model.language_model.tokenizer", "null"),
    ("--model.language_model.tokenizer", "/nowhere"),
]
#: YAML that is none, or too much.
TEXTS = {
    "unclosed": "model: [1, 2\ndata: }",
    "tabs": "model:\n\t- a",
    "runs a command": "model: !!python/object/apply:os.system ['touch ran']",
    "makes an object": "model: !!python/object/new:subprocess.Popen [['touch', 'ran']]",
    "names a module": "model: !!python/module:os",
    "contains itself": "model: &a {b: *a}",
    "grows": "a: &a [1, 1, 1, 1, 1, 1, 1, 1]\n"
    + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 8)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    "deep": "model: " + "[" * 3000,
    "two documents": "model: null\n---\ndata: null",
    "a list": "- model\n- data",
    "a number": "42",
    "a key twice": "trainer: {max_steps: 1, max_steps: 2}",
    "no such anchor": "model: *nothing",
    "keys of other kinds": "{1: 2, null: 3, [a]: 4}",
    "a date": "seed_everything: 2020-13-45",
    "octal": "seed_everything: 0o9",
    "merge": "<<: 3",
}


def _paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else ()
    return [at, *(path for key, part in inner for path in _paths(part, (*at, key)))]


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def _out(name: str) -> tuple[str, ...]:
    return ("--output", "{out}") if name == "rollout.yaml" else ("--trainer.default_root_dir", "{out}")


@st.composite
def _spoilt(draw: Callable[..., Any], configs: str) -> Case:
    """A sound config with one key changed, removed or added."""
    name = draw(st.sampled_from(["fit.yaml", "test.yaml", "rollout.yaml"]))
    config = copy.deepcopy(bases(Path(configs))[name])
    path = draw(st.sampled_from(_paths(config)[1:]))
    how = draw(st.sampled_from(["set", "set", "remove", "unknown", "class"]))
    parent, key = _at(config, path[:-1]), path[-1]
    value: Any = ""
    if how == "class":
        path = draw(st.sampled_from([p for p in _paths(config) if p and p[-1] == "class_path"]))
        parent, key = _at(config, path[:-1]), path[-1]
        value = draw(st.sampled_from(CLASS_PATHS))
        parent[key] = value
    elif how == "set" and key != "devices":  # two would start this process again
        value = draw(st.sampled_from(ODD))
        parent[key] = value
    elif how == "remove":
        del parent[key]
    else:
        key = draw(st.sampled_from(["betaa", "Class_path", "", "a.b", "é", "init_args", "__class__", "help"]))
        parent[key] = value
    text = yaml.safe_dump(config, allow_unicode=False).encode()
    named = [str(part) for part in path if part not in ("init_args", "class_path")]
    return Case(
        "configs",
        f"{name}: {how} {'.'.join(map(str, path))} {key!r} = {value!r}",
        {name: text},
        (name.removesuffix(".yaml"), "--config", f"{{here}}/{name}", *_out(name)),
        (*named[-2:], str(key) or "key", str(value)[:20] or "key", name, "none is given", "No `test_step"),
    )


@st.composite
def _broken(draw: Callable[..., Any], configs: str) -> Case:
    """A file that is no config."""
    name = draw(st.sampled_from(["fit.yaml", "rollout.yaml"]))
    sound = yaml.safe_dump(bases(Path(configs))[name]).encode()
    what = draw(st.sampled_from(sorted(TEXTS)) | st.sampled_from(sorted(set(DAMAGE) - {"nested", "a long number"})))
    files: dict[str, bytes | None]
    if what in TEXTS:
        files = {name: TEXTS[what].encode()}
    else:
        files = {name: DAMAGE[what](sound, draw(st.integers(1, 10_000)))}
    where = draw(st.sampled_from(["", "", "", "", "missing", "folder"]))
    if where:
        files = {} if where == "missing" else {name: None}
    option = draw(st.sampled_from(["--config", "-c", "--config="]))
    given = [f"--config={{here}}/{name}"] if option == "--config=" else [option, f"{{here}}/{name}"]
    return Case(
        "configs",
        f"{name}: {where or what}",
        files,
        (name.removesuffix(".yaml"), *given, *_out(name)),
        (name, "required", "c/fit", "key", "/here", "Option", "argument"),
    )


@st.composite
def _settings(draw: Callable[..., Any], configs: str) -> Case:
    """A sound config with odd arguments after it."""
    pair = draw(st.none() | st.sampled_from(PAIRS))
    mentions: tuple[str, ...] = ()
    if pair is None:
        key = draw(st.sampled_from(SETTINGS))
        text = (
            yaml.safe_dump(draw(st.sampled_from(ODD)), default_flow_style=True, width=10_000).split("\n...")[0].strip()
        )
        pair = (f"--{key}", text)
        if key.startswith("model.language_model.lora"):
            pair = ("--model.language_model.lora", "{r: 2}", *pair)
        name = key.rpartition(".")[2]
        mentions = (name, name.replace("_", " "), text[:20], {"max_time": "duration"}.get(name, name))
    out = _out("fit.yaml")
    command = ("fit", "--config", f"{configs}/fit.yaml", *out, *pair)
    return Case("configs", f"fit {' '.join(pair)}"[:400], {}, command, mentions)


@st.composite
def _arguments(draw: Callable[..., Any], configs: str) -> Case:
    """Commands and options that do not exist."""
    words = draw(
        st.sampled_from(
            [
                ("fitt",), ("fit",), ("rollout",), ("judge",), ("judge", "--folds", "many"), ("judge", "a", "b"), ("test", "--x"),
                ("judge", "{here}", "--folds", "1"), ("judge", "nowhere", "--threshold", "a=b"), ("fit", "--config"), ("",),
                ("fit", "--config", f"{configs}/fit.yaml", "--config", "nowhere.yaml"), ("fit", "model=3"), ("fit", "\0"),
                ("predict", "--config", f"{configs}/rollout.yaml"), ("rollout", "--config", f"{configs}/fit.yaml"),
                ("rollout", "--config", f"{configs}/rollout.yaml", "--output", f"{configs}/fit.yaml"),
                ("rollout", "--config", f"{configs}/rollout.yaml", "--prompts_of", "holdout", "--output", "{out}"),
                ("rollout", "--config", f"{configs}/rollout.yaml", "--prompts_of", "test", "--output", "{out}"),
                ("fit", "--config", f"{configs}/fit.yaml", "--trainer.default_root_dir", f"{configs}/fit.yaml/x"),
                ("judge", f"{configs}/fit.yaml"), ("judge", f"{configs}"), ("judge", "\0"), ("fit", "--model"),
                ("test", "--config", f"{configs}/fit.yaml", "--trainer.default_root_dir", "{out}"),
                ("validate", "--config", f"{configs}/fit.yaml", "--trainer.default_root_dir", "{out}"),
            ]
        )
    )  # fmt: skip
    return Case("configs", f"arguments {words}", {}, words)


def configs(folder: str) -> st.SearchStrategy[Case]:
    """Configs and arguments of every command."""
    return st.one_of(
        _spoilt(folder), _spoilt(folder), _settings(folder), _settings(folder), _broken(folder), _arguments(folder)
    )
