"""Runs that give the same numbers under any strategy, and their start on two processes by torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from ipvrm_lightning.metrics import report_to_json
from ipvrm_lightning.models import CachedReference, LoRA, PretrainedLanguageModel, RandomLanguageModel
from ipvrm_lightning.models.logprobs import check_output_head, response_scores
from ipvrm_lightning.models.reference import weights_fingerprint
from ipvrm_lightning.models.sharding import Sharded, gathered, is_sharded, whole
from ipvrm_lightning.modules import IPVRMModule, SFTModule
from ipvrm_lightning.modules.distrl_settings import RewardModel
from ipvrm_lightning.objectives import IPVRM, QRM
from ipvrm_lightning.rollouts.sampler import sample_responses
from ipvrm_lightning.strategies import FullyShard

from ..conftest import REPOSITORY
from ..models.conftest import make_batch
from ..models.test_logprobs import CONFIGS
from ..modules.conftest import QWEN, InMemoryData, quiet_trainer
from ..modules.distrl_cases import Losses, TinyPolicy, TinyPrompts
from ..modules.distrl_cases import module as distrl_module

STEPS = 10
ADAM = partial(torch.optim.AdamW, lr=1e-3)
SGD = partial(torch.optim.SGD, lr=0.05)
#: Divides into no number of processes that tests use: 97 tokens, 3 layers.
UNEVEN = {**QWEN, "num_hidden_layers": 3, "tie_word_embeddings": True}


def language_model(*, lora: bool = False, layers: int = 3, **options: Any) -> RandomLanguageModel:
    config = {**UNEVEN, "num_hidden_layers": layers}
    return RandomLanguageModel(config=config, lora=LoRA(r=4) if lora else None, **options)


def ipvrm(**options: Any) -> tuple[Any, Any]:
    defaults = {"language_model": language_model(), "objective": IPVRM(), "optimizer": ADAM}
    module = IPVRMModule(**{**defaults, **options})
    return module, InMemoryData(count=40, max_tokens=60, pairwise=module.objective.pairwise)


def distrl(*, reference: str = "behavior", optimizer: Any = ADAM, **options: Any) -> tuple[Any, Any]:
    reward = RewardModel(objective=IPVRM(), optimizer=optimizer, reference=reference)  # type: ignore[arg-type]
    update = {"mini_batches": 2}
    return distrl_module(reward=reward, optimizer=optimizer, update=update, **options), TinyPrompts()


CASES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "ipvrm": lambda: ipvrm(language_model=language_model(gradient_checkpointing=True)),
    "ipvrm compiled": lambda: ipvrm(language_model=language_model(layers=1, compile=True)),
    "ipvrm cached": lambda: ipvrm(reference=CachedReference()),
    "ipvrm adapters": lambda: ipvrm(language_model=language_model(lora=True)),
    "qrm": lambda: ipvrm(objective=QRM()),
    "sft": lambda: (SFTModule(language_model=language_model(), optimizer=ADAM), InMemoryData(count=40, max_tokens=60)),
    "distrl": lambda: distrl(reference="sft"),
    "distrl adapters": lambda: distrl(language_model=TinyPolicy(lora=LoRA(r=4), gradient_checkpointing=True)),
}
#: For devices whose kernels are not the same under every strategy, or that have others.
ON_DEVICES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "ipvrm packed": lambda: ipvrm(language_model=language_model(attn_implementation="varlen")),
    "distrl, SGD": lambda: distrl(reference="sft", optimizer=SGD),
    "distrl adapters, SGD": lambda: distrl(
        optimizer=SGD, language_model=TinyPolicy(lora=LoRA(r=4), gradient_checkpointing=True)
    ),
}

#: Where runs write the checkpoint that others go on from, and those that do.
SAVED = 6
RESUMED = ("ipvrm", "distrl adapters")


class Record(Losses):
    """What a run logged in every step, and how much of the model this process held."""

    share = 1.0
    copies = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        super().on_train_batch_end(trainer, pl_module)
        weights = [parameter for name, parameter in pl_module.named_parameters() if "lora" not in name]
        reference = getattr(pl_module, "reference", None)
        frozen = getattr(getattr(reference, "_source", reference), "_copy", [])
        frozen = frozen or getattr(getattr(pl_module, "roles", None), "_reference", [])
        weights += [parameter for model in frozen for parameter in model.parameters()]
        copies = torch.tensor(float(len(frozen)), device=pl_module.device)
        self.copies = int(trainer.strategy.reduce(copies, reduce_op="sum"))
        own = sum(p.to_local().numel() if is_sharded(p) else p.numel() for p in weights)  # type: ignore[attr-defined]
        self.share = own / sum(p.numel() for p in weights)


def compilation() -> Any:
    """One process runs as it is what two have traced and differentiated; no code is generated."""
    if torch.distributed.is_initialized():
        return torch.compiler.set_stance(force_backend="aot_eager")
    return torch.compiler.set_stance("force_eager")


def run(name: str, folder: Path, *, resume: Path | None = None, **options: Any) -> None:
    """Train, validate and test; the first process writes what came of it to `folder`.

    Args:
        name: of the case.
        folder: for `name.pt` and, in the middle of training, `name.ckpt`.
        resume: checkpoint to go on from.
    """
    torch.manual_seed(int(os.environ.get("RANK", "0")))  # adapters are to be the first process's all the same
    module, data = (CASES | ON_DEVICES)[name]()
    if name == "ipvrm cached":
        module.reference.cache_dir = str(folder / "cache")
    record = Record()
    steps = STEPS * (module.update.mini_batches if name.startswith("distrl") else 1)
    saved = ModelCheckpoint(folder, filename=name, every_n_train_steps=SAVED, save_top_k=-1)
    callbacks: list[Callback] = [record] if resume else [record, saved]
    trainer = quiet_trainer(
        folder, callbacks=callbacks, enable_checkpointing=True, max_steps=steps, max_epochs=-1, **options
    )
    with compilation():
        trainer.fit(module, datamodule=data, ckpt_path=None if resume is None else resume / f"{name}.ckpt")
    metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
    state = {key: whole(value.detach()).clone() for key, value in module.trainable_parameters().items()}
    reports: dict[str, Any] = {}
    if name != "sft" and not resume:
        with compilation():
            trainer.test(module, datamodule=data, verbose=False)
        reports = {key: json.loads(report_to_json(report)) for key, report in module.test_report.items()}
    if trainer.is_global_zero:
        found = {"steps": record.steps, "metrics": metrics, "state": state, "reports": reports}
        found |= {"share": record.share, "copies": record.copies}
        torch.save(found, folder / f"{name}{' resumed' if resume else ''}.pt")


def compare_weights(folder: Path) -> None:
    """Every tensor of a sharded model against the whole one, and what is computed from them."""
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (2,))
    configs = {name: config for name, config in CONFIGS.items() if config["model_type"] != "recurrent_gemma"}
    random = {name: RandomLanguageModel(config=config, seed=3) for name, config in configs.items()}
    random["packed"] = language_model(attn_implementation="varlen")
    factories: dict[str, Any] = {**random, "files": PretrainedLanguageModel(name=str(folder / "model"))}
    for name, factory in factories.items():
        plain, sharded = factory.build_model(), Sharded(factory, mesh).build_model()
        own = dict(sharded.named_parameters())
        assert own.keys() == dict(plain.named_parameters()).keys(), name
        for key, parameter in plain.named_parameters():
            assert is_sharded(own[key]) and torch.equal(whole(own[key].detach()), parameter), (name, key)
        assert weights_fingerprint(sharded) == weights_fingerprint(plain), name
        assert sharded.generation_config.eos_token_id == plain.generation_config.eos_token_id
        check_output_head(sharded)
        batch = make_batch([9, 14, 5, 11], [3, 6, 1, 10])
        scores = [response_scores(model, batch).log_probs for model in (plain, sharded)]
        torch.testing.assert_close(scores[1], scores[0], rtol=0, atol=1e-6)
    # the last one is sampled from, which holds matrices in bfloat16 meanwhile, each process for passes of its own
    rank, found = torch.distributed.get_rank(), []
    counts = {"num_return_sequences": 2 + rank, "max_new_tokens": 6 + 6 * rank}
    for model in (plain, sharded):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False), gathered(model):
            found.append(sample_responses(model, [[5, 6, 7, 8], [9, 10]], eos_token_id=3, pad_token_id=0, **counts))
    assert found[0] == found[1]
    assert all(parameter is own[key] and is_sharded(parameter) for key, parameter in sharded.named_parameters())


#: Cases that run on two processes under each strategy.
BY_STRATEGY = {"ddp": ["ipvrm", "ipvrm cached", "ipvrm adapters", "distrl"], "fsdp2": list(CASES)}


def main(folder: Path) -> None:
    """All cases on the processes that torchrun started, in folders beside that of one process."""
    torch.distributed.init_process_group("gloo")
    compare_weights(folder)
    for strategy, names in BY_STRATEGY.items():
        options = {"strategy": FullyShard() if strategy == "fsdp2" else strategy, "devices": 2}
        for name in names:
            run(name, folder / strategy, **options)
            if strategy == "fsdp2" and name in RESUMED:
                run(name, folder / strategy, resume=folder / "one", **{**options, "strategy": FullyShard()})
            options["strategy"] = FullyShard() if strategy == "fsdp2" else strategy


def on_two_processes(folder: Path) -> None:
    """Run `main` by torchrun."""
    launcher = folder / "launch.py"
    launcher.write_text(
        f"from pathlib import Path; from tests.strategies.cases import main; main(Path({str(folder)!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(launcher)],
        cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, timeout=550,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
