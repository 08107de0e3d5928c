"""Every strategy overlay on every experiment: what it makes of it, or the line that refuses it."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy

from ipvrm_lightning.cli import main
from ipvrm_lightning.lightning_cli import IPVRMCLI
from ipvrm_lightning.models import AdaptersOff, FrozenCopy, LoRA, PretrainedLanguageModel, RandomLanguageModel
from ipvrm_lightning.models.checkpoints import newest_checkpoint
from ipvrm_lightning.models.reference import CachedReference
from ipvrm_lightning.modules import IPVRMModule, SFTModule
from ipvrm_lightning.objectives import IPVRM
from ipvrm_lightning.strategies import FullyShard, check_fit

from ..conftest import REPOSITORY
from ..modules.conftest import QWEN, quiet_trainer, tiny
from ..modules.distrl_cases import module as distrl_module
from ..test_cli import EXPERIMENTS, STRATEGIES, real_inputs  # noqa: F401  (a fixture)

CONFIGS = REPOSITORY / "configs"
MADE = {
    "strategy/lora.yaml": "SingleDeviceStrategy",
    "strategy/qlora.yaml": "SingleDeviceStrategy",
    "strategy/ddp.yaml": "DDPStrategy",
    "strategy/fsdp2.yaml": "FullyShard",
    "strategy/cpu_debug.yaml": "SingleDeviceStrategy",
    "strategy/fast.yaml": "SingleDeviceStrategy",
}
REFUSED = {
    "strategy/fsdp.yaml": ("FSDP1 allows no backward pass", "configs/strategy/fsdp2.yaml"),
    "strategy/deepspeed_zero3.yaml": ("its gradients cannot be", "configs/strategy/fsdp2.yaml"),
    "strategy/fast.yaml": ("language_model.compile is for supervised training", "ratio to itself is not exactly 1"),
}
POLICIES = [experiment for experiment in EXPERIMENTS if experiment.startswith(("distrl", "grpo"))]
#: Overlay and experiment.
REFUSED_PAIRS = [
    (overlay, experiment)
    for overlay in REFUSED
    for experiment in EXPERIMENTS
    if "fast" not in overlay or experiment in POLICIES
]
MADE_PAIRS = [
    (overlay, experiment)
    for overlay in MADE
    for experiment in EXPERIMENTS
    if (overlay, experiment) not in REFUSED_PAIRS
]


def stack(*names: str) -> list[str]:
    return [word for name in names for word in ("--config", str(CONFIGS / name))]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[IPVRMCLI]:
    """What the command line has made; nothing is run."""
    seen: list[IPVRMCLI] = []
    monkeypatch.setattr(IPVRMCLI, "_run_subcommand", lambda self, subcommand: seen.append(self))
    return seen


def test_every_overlay_is_made_or_refused() -> None:
    assert {*MADE, *REFUSED} == set(STRATEGIES)
    assert (len(POLICIES), len(MADE_PAIRS), len(REFUSED_PAIRS)) == (3, 45, 19)


@pytest.mark.parametrize(("overlay", "experiment"), MADE_PAIRS)
def test_an_overlay_stacks_on_an_experiment(
    overlay: str, experiment: str, tmp_path: Path, made: list[IPVRMCLI]
) -> None:
    main(["fit", *stack(experiment, overlay), "--trainer.default_root_dir", str(tmp_path)])
    (cli,) = made
    whole = yaml.safe_load((CONFIGS / experiment).read_text())
    model, trainer = cli.model, cli.trainer
    assert type(trainer.strategy).__name__ == MADE[overlay]
    lora = "lora" in overlay or "smollm2" in experiment
    assert (model.language_model.has_adapters, model.language_model.quantized) == (lora, "qlora" in overlay)
    check_fit(trainer.strategy, model)
    optimizer = model.optimizer([torch.nn.Parameter(torch.zeros(2))])
    own = whole["model"]["init_args"]["optimizer"]["init_args"]
    assert optimizer.param_groups[0]["lr"] == (1e-4 if "lora" in overlay else own["lr"])
    assert type(optimizer).__name__ == ("PagedAdamW8bit" if "qlora" in overlay else "AdamW")
    if "lora" in overlay:
        assert model.language_model.lora == LoRA(r=16, alpha=32) and optimizer.param_groups[0]["weight_decay"] == 0.0
    fast = ("varlen", True) if "fast" in overlay else (None, False)
    assert (model.language_model.attn_implementation, model.language_model.compile) == fast
    if "cpu" not in overlay:
        assert trainer.max_epochs == whole["trainer"]["max_epochs"]
        assert cli.datamodule.batch_size == whole["data"]["init_args"]["batch_size"]
    else:
        assert (trainer.limit_train_batches, cli.datamodule.batch_size, trainer.precision) == (3, 4, "32-true")


@pytest.mark.parametrize(("overlay", "experiment"), REFUSED_PAIRS)
def test_an_overlay_that_cannot_work_is_refused_in_one_line(
    overlay: str, experiment: str, tmp_path: Path, made: list[IPVRMCLI], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["fit", *stack(experiment, overlay), "--trainer.default_root_dir", str(tmp_path)])
    assert exit_info.value.code == 1 and not made
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ipvrm fit:")]
    assert all(part in line for part in REFUSED[overlay])


def test_what_needs_a_gpu_is_still_made_for_modules_of_ones_own() -> None:
    """Their optimisers may step outside the training step; without a GPU, Lightning's own line says what is missing."""
    own = LightningModule()
    for strategy in (FSDPStrategy(), "deepspeed_stage_3", ModelParallelStrategy()):
        check_fit(strategy, own)
    with pytest.raises(Exception, match="GPU"):
        Trainer(strategy=FSDPStrategy(), accelerator="cpu")


FOUR_BITS = {"quantization": "nf4", "lora": LoRA()}
BAD_PAIRS: dict[str, tuple[Any, Any, str]] = {
    "4 bits, FSDP2": (FullyShard(), {"name": "x", **FOUR_BITS}, "weights in 4 bits cannot be divided.*ddp.yaml"),
    "4 bits, FSDP1": (FSDPStrategy(), {"name": "x", **FOUR_BITS}, "weights in 4 bits cannot be divided"),
    "4 bits, DeepSpeed": ("deepspeed_stage_3_offload", {"name": "x", **FOUR_BITS}, "weights in 4 bits cannot be"),
    "GGUF, FSDP2": (FullyShard(), {"name": "x", "gguf_file": "x.gguf"}, "a GGUF file or weights in 4 bits"),
    "DoRA, FSDP2": (FullyShard(), {"name": "x", "lora": LoRA(use_dora=True)}, "use_dora reads whole weights"),
    "Lightning's tensor parallelism": (
        ModelParallelStrategy(),
        {"name": "x"},
        "under ModelParallelStrategy: .* divides matrices",
    ),
    "FSDP1 by name": ("fsdp_cpu_offload", {"name": "x"}, "does not run under fsdp_cpu_offload"),
}


@pytest.mark.parametrize("pair", BAD_PAIRS)
@pytest.mark.parametrize("kind", ["ipvrm", "sft", "distrl"])
def test_a_pair_that_cannot_work_is_refused_before_a_model_is_built(pair: str, kind: str) -> None:
    strategy, arguments, message = BAD_PAIRS[pair]
    language_model = PretrainedLanguageModel(**arguments)
    modules = {"ipvrm": IPVRMModule, "sft": SFTModule, "distrl": lambda **options: distrl_module(**options)}
    with pytest.raises(ValueError, match=message):
        check_fit(strategy, modules[kind](language_model=language_model))


class Learned(IPVRM):
    """An objective with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.zeros(()))


def test_what_would_stay_whole_beside_a_divided_model_is_not_trained() -> None:
    """The strategy averages the gradients of the one and knows nothing of the other."""
    strategies: dict[str, Any] = {"fsdp2": FullyShard(), "ddp": DDPStrategy()}
    objectives: dict[str, Any] = {"own": Learned, "ours": IPVRM}
    refused = []
    for strategy, objective, lora, stage in itertools.product(
        strategies, objectives, (False, True), ("fit", "validate")
    ):
        module = IPVRMModule(language_model=tiny(lora=lora), objective=objectives[objective]())
        module.trainer = SimpleNamespace(strategy=strategies[strategy], datamodule=None)  # type: ignore[assignment]
        try:
            module.check_settings(stage)
        except ValueError as error:
            refused.append((strategy, objective, lora, stage))
            assert "IPVRMModule: objective.scale is trained and would not be divided" in str(error)
    assert refused == [("fsdp2", "own", False, "fit")]


def test_a_checkpoint_of_shards_gathers_no_frozen_weight() -> None:
    strategy, module = FullyShard(process_group_backend="gloo"), IPVRMModule(language_model=tiny(lora=True))
    assert strategy.process_group_backend == "gloo" and FullyShard().process_group_backend is None
    module.configure_model()
    strategy._lightning_module = module
    kept = strategy.lightning_module_state_dict()
    trained = module.trainable_parameters()
    assert kept.keys() == trained.keys() < dict(module.named_parameters()).keys()
    assert all(torch.equal(kept[name], parameter) for name, parameter in trained.items())


def test_packed_sequences_on_a_gpu_are_for_half_precision(tmp_path: Path) -> None:
    strategy: Any = quiet_trainer(tmp_path, accelerator="cpu").strategy
    module = IPVRMModule(language_model=RandomLanguageModel(config=QWEN, attn_implementation="varlen"))
    check_fit(strategy, module)
    strategy.accelerator = CUDAAccelerator()
    with pytest.raises(ValueError, match="in float32 it would go sequence by sequence"):
        check_fit(strategy, module)
    halves = RandomLanguageModel(config=QWEN, attn_implementation="varlen", dtype="bfloat16")
    for fits in (IPVRMModule(language_model=tiny()), IPVRMModule(language_model=halves)):
        check_fit(strategy, fits)
    strategy.precision_plugin.precision = "bf16-mixed"
    check_fit(strategy, module)


def test_what_was_fitted_fast_is_tested_in_full_precision_as_the_docs_say(tmp_path: Path, made: list[IPVRMCLI]) -> None:
    text = (REPOSITORY / "docs" / "scoring.md").read_text()
    option, value = re.findall(r"`(--\S*attn_implementation) (\w+)`", text)[0]
    full = [*("--trainer.precision", "32-true"), *("--trainer.default_root_dir", str(tmp_path))]
    main(["test", *stack("ipvrm_qwen.yaml", "strategy/fast.yaml"), *full, option, value])
    (cli,) = made
    assert cli.trainer.precision == "32-true" and cli.model.language_model.compile
    strategy: Any = cli.trainer.strategy
    strategy.accelerator = CUDAAccelerator()
    check_fit(strategy, cli.model)


def test_a_reference_that_does_not_fit_is_refused_before_a_model_is_built() -> None:
    for reference in (AdaptersOff(), CachedReference(source=AdaptersOff())):
        with pytest.raises(ValueError, match="AdaptersOff needs a language model with lora"):
            check_fit("auto", IPVRMModule(language_model=tiny(), reference=reference))
    for reference in (FrozenCopy(), CachedReference(source=FrozenCopy())):
        with pytest.raises(ValueError, match="FrozenCopy is for full fine-tuning"):
            check_fit("auto", IPVRMModule(language_model=tiny(lora=True), reference=reference))


@pytest.mark.parametrize("precision", ["16-mixed", "16-true", "bf16-true", "64-true"])
def test_a_precision_that_would_give_other_numbers_is_refused(precision: str, tmp_path: Path) -> None:
    strategy: Any = quiet_trainer(tmp_path, accelerator="cpu").strategy
    strategy.precision_plugin.precision = precision  # Lightning takes 16-mixed for bf16-mixed on a CPU
    for module in (IPVRMModule(language_model=tiny()), distrl_module()):
        with pytest.raises(ValueError, match=f"trainer.precision {precision} is not for {type(module).__name__}"):
            check_fit(strategy, module)


@pytest.mark.parametrize(
    ("experiment", "option", "value", "told"),
    [
        ("sft_qwen.yaml", "precision", "16-mixed", "use bf16-mixed or 32-true"),
        ("ipvrm_qwen.yaml", "precision", "16", "trainer.precision 16-mixed is not for IPVRMModule"),
        ("ipvrm_qwen.yaml", "accumulate_grad_batches", "4", "batch_size is the optimiser's already"),
        ("ipvrm_qwen.yaml", "gradient_clip_val", "1.0", "use model.init_args.gradient_clip_val"),
        ("grpo_qwen.yaml", "gradient_clip_val", "1.0", "use model.init_args.update.gradient_clip_val"),
    ],
)
def test_what_the_module_does_itself_is_not_asked_of_the_trainer(
    experiment: str, option: str, value: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(
            [
                *("fit", *stack(experiment), "--trainer.default_root_dir", str(tmp_path)),
                *("--trainer.accelerator", "cpu", f"--trainer.{option}", value),
            ]
        )
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ipvrm fit:")]
    assert told in line


def test_averages_of_divided_weights_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for strategy, refused in (("fsdp2", True), ("ddp", False)):
        with pytest.raises(SystemExit):
            main(
                [
                    *("fit", *stack("sft_qwen.yaml", f"strategy/{strategy}.yaml"), "--trainer.accelerator", "cpu"),
                    *("--trainer.default_root_dir", str(tmp_path), "--trainer.devices", "1"),
                    *("--trainer.callbacks+=EMAWeightAveraging", "--model.language_model.name", str(tmp_path)),
                ]
            )
        line = capsys.readouterr().err.splitlines()[-1]
        assert ("trainer.callbacks: EMAWeightAveraging copies the model" in line) == refused, line


@pytest.mark.parametrize(
    ("callbacks", "told"),
    [
        (
            [("StochasticWeightAveraging", {"swa_lrs": 1e-3}), ("ModelCheckpoint", {})],
            "StochasticWeightAveraging copies the model before",
        ),
        ([("EMAWeightAveraging", {}), ("ModelCheckpoint", {"save_weights_only": True})], "and not the averages"),
    ],
)
def test_averages_that_no_checkpoint_would_hold_are_refused(
    callbacks: list[Any], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [{"class_path": name, "init_args": arguments} for name, arguments in callbacks]
    with pytest.raises(SystemExit):
        main(
            [
                *("fit", *stack("sft_qwen.yaml"), "--trainer.accelerator", "cpu"),
                *("--trainer.default_root_dir", str(tmp_path), f"--trainer.callbacks={json.dumps(given)}"),
                *("--model.language_model.name", str(tmp_path)),
            ]
        )
    assert told in capsys.readouterr().err.splitlines()[-1]


def test_trial_runs_have_a_folder_where_no_experiment_looks() -> None:
    folders = {
        name: yaml.safe_load((CONFIGS / name).read_text())["trainer"]["default_root_dir"]
        for name in [*EXPERIMENTS, "strategy/cpu_debug.yaml"]
    }
    assert list(folders.values()).count(folders["strategy/cpu_debug.yaml"]) == 1


def test_quantisation_without_lora_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", *stack("sft_qwen.yaml"), "--model.language_model.init_args.quantization", "nf4"])
    assert "quantization needs lora" in capsys.readouterr().err


class Seen(Callback):
    """The module and its optimisers at the end of training."""

    module: Any
    optimizers: Any
    losses: dict[str, float]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        type(self).module, type(self).optimizers = pl_module, trainer.optimizers
        type(self).losses = {k: float(v) for k, v in trainer.callback_metrics.items() if "loss" in k}


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory, real_inputs: dict[str, str]) -> str:  # noqa: F811
    """A model on disk whose matrices are large enough for blocks of 4-bit weights and of 8-bit states."""
    folder = tmp_path_factory.mktemp("model")
    sizes = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "vocab_size": 300, "initializer_range": 0.2}
    factory = RandomLanguageModel(config={**QWEN, **sizes}, tokenizer=real_inputs["tokenizer"])
    factory.build_model().save_pretrained(folder)
    factory.build_tokenizer().save_pretrained(folder)
    return str(folder)


def prompts_file(folder: Path) -> str:
    rows = [{"prompt": f"{n} + 1?", "reward_model": {"ground_truth": str(n + 1)}} for n in range(8)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "prompts.jsonl")


@pytest.mark.parametrize("overlay", ["lora", "qlora"])
@pytest.mark.parametrize("experiment", ["ipvrm_qwen.yaml", "distrl_qwen.yaml"])
def test_adapters_train_on_a_cpu_by_the_overlay(
    overlay: str,
    experiment: str,
    tmp_path: Path,
    small_model: str,
    real_inputs: dict[str, str],  # noqa: F811
) -> None:
    """nf4 with double quantisation, backward through it, and bitsandbytes' optimiser, for real."""
    command = [
        *("fit", *stack(experiment, f"strategy/{overlay}.yaml")),
        *("--model.language_model.init_args.name", small_model),
        *("--model.language_model.init_args.compute_dtype", "float32", "--trainer.precision", "32-true"),
        *(
            "--trainer.default_root_dir",
            str(tmp_path),
            "--trainer.accelerator",
            "cpu",
            "--trainer.limit_val_batches",
            "1",
        ),
        *("--trainer.callbacks+", "tests.strategies.test_overlays.Seen"),
    ]
    if experiment.startswith("ipvrm"):
        command += ["--data.train", real_inputs["rollouts"], "--data.batch_size", "16", "--trainer.max_steps", "3"]
        command += ["--model.reference.init_args.cache_dir", str(tmp_path / "cache")]
    else:
        small = {
            "reward": {"checkpoint": None},
            "update": {"mini_batches": 1},
            "stop_tokens": list("0123456789abcdefgh"),
        }
        (tmp_path / "small.yaml").write_text(yaml.safe_dump({"model": {"init_args": small}}))
        command += ["--config", str(tmp_path / "small.yaml")]
        command += ["--data.train", prompts_file(tmp_path), "--data.batch_size", "2", "--data.system_prompt", "null"]
        command += ["--data.validation_fraction", "0.2", "--model.verifier", "tests.rollouts.judges.EvenLength"]
        command += ["--model.sampling.max_new_tokens", "8", "--model.evaluation.max_new_tokens", "8"]
        command += ["--model.sampling.group_size", "8", "--trainer.limit_train_batches", "2"]
        command += ["--trainer.val_check_interval", "2"]
    main(command)
    module: Any = Seen.module
    kinds = {type(p).__name__ for p in module.parameters() if not p.requires_grad}
    assert ("Params4bit" in kinds) == (overlay == "qlora")
    trained = module.trainable_parameters()
    assert trained and all(".lora_" in name for name in trained)
    moved = [float(value.detach().abs().max()) for name, value in trained.items() if "lora_B" in name]
    assert all(0 < largest < 0.1 for largest in moved)  # B starts at zero
    for number, part in enumerate(("policy", "reward") if experiment.startswith("distrl") else (None,)):
        out = tmp_path / f"export{number}"
        main(["export", str(tmp_path), "--out", str(out), *(() if part is None else ("--part", part))])
        assert (out / "adapter_model.safetensors").is_file()
    assert Seen.losses and all(abs(loss) < 100 for loss in Seen.losses.values())
    states = Seen.optimizers[0].state.values()
    eight_bits = [state for state in states if "state1" in state and state["state1"].dtype == torch.uint8]
    assert bool(eight_bits) == (overlay == "qlora")
    file = newest_checkpoint(tmp_path, what="test")
    stored = torch.load(file, weights_only=True)
    assert stored["state_dict"].keys() == trained.keys()


def test_two_processes_train_shards_and_one_judges_them_by_the_command_line(
    tmp_path: Path,
    small_model: str,
    real_inputs: dict[str, str],  # noqa: F811
) -> None:
    base = [
        *stack("ipvrm_smollm2.yaml"), "--model.language_model.init_args.name", small_model,
        *("--trainer.default_root_dir", str(tmp_path), "--trainer.accelerator", "cpu"),
        *("--model.reference.init_args.cache_dir", str(tmp_path / "cache"), "--data.train", real_inputs["rollouts"]),
    ]  # fmt: skip
    shards = [*base[:2], *stack("strategy/fsdp2.yaml"), *base[2:], "--trainer.devices", "2", "--trainer.max_steps", "2"]
    subprocess.run(
        [sys.executable, "-m", "ipvrm_lightning", "fit", *shards],
        cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, check=True, timeout=150,
    )  # fmt: skip
    assert len(list(tmp_path.glob("*-fit"))) == 1 and list(tmp_path.glob("cache/*/*.safetensors"))
    main(["validate", *base, "--ckpt_path", "last", "--trainer.devices", "1"])
    (file,) = tmp_path.glob("*-validate/metrics.csv")
    assert "val/auroc" in file.read_text()
