"""On a GPU the numbers are those of a CPU; half precision, shards and 4 bits run there and stay near them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities import move_data_to_device
from torch import Tensor

import ipvrm_lightning.functional as F
from ipvrm_lightning.models import LoRA, PretrainedLanguageModel, RandomLanguageModel
from ipvrm_lightning.models.candidates import behavior_scores, candidate_log_probs
from ipvrm_lightning.models.logprobs import response_scores
from ipvrm_lightning.models.output_head import OutputHead, token_log_probs
from ipvrm_lightning.modules import IPVRMModule
from ipvrm_lightning.strategies import FullyShard

from ..models.conftest import make_batch
from ..modules.conftest import QWEN, InMemoryData, quiet_trainer
from ..modules.distrl_cases import Losses, TinyPolicy, module, run
from ..strategies import cases

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
WIDER = {**QWEN, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
SUPERVISED = ["ipvrm", "sft"]


def steps_of(folder: Path, name: str) -> list[dict[str, float]]:
    return torch.load(folder / f"{name}.pt", weights_only=True)["steps"]


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Processes that a test joined are left after it, and kernels chosen again: other tests have other devices."""
    yield
    torch.use_deterministic_algorithms(False)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cpu")
    for name in SUPERVISED:
        cases.run(name, folder, accelerator="cpu")
    return folder


@pytest.mark.parametrize("strategy", ["auto", "ddp", "fsdp2"])
@pytest.mark.parametrize("name", SUPERVISED)
def test_ten_steps_have_the_losses_of_a_cpu(name: str, strategy: str, on_cpu: Path, tmp_path: Path) -> None:
    chosen: Any = FullyShard() if strategy == "fsdp2" else strategy
    cases.run(name, tmp_path, accelerator="gpu", strategy=chosen)
    for number, (cpu, gpu) in enumerate(zip(steps_of(on_cpu, name), steps_of(tmp_path, name), strict=True)):
        for key, value in cpu.items():
            assert gpu[key] == pytest.approx(value, abs=1e-4, rel=1e-3), (number, key)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("name", ["distrl, SGD", "distrl adapters, SGD"])
def test_strategies_agree_on_distrl(name: str, strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deterministic kernels: a sum in another order may sample another token, and the runs part there.

    SGD, because gathered weights lie elsewhere in memory and may take another kernel. Adam's first update of a number
    has the learning rate's size whatever the gradient's is, so that runs part where a gradient is nothing but rounding.
    """
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    for kind in ("auto", strategy):
        (tmp_path / kind).mkdir()
        chosen: Any = FullyShard() if kind == "fsdp2" else kind
        cases.run(name, tmp_path / kind, accelerator="gpu", strategy=chosen, deterministic=True)
    first, second = (steps_of(tmp_path / kind, name) for kind in ("auto", strategy))
    for number, pair in enumerate(zip(first, second, strict=True)):
        for key, value in pair[0].items():
            bound = 1e-2 if "clipped" in key else 1e-4
            assert pair[1][key] == pytest.approx(value, abs=bound, rel=1e-3), (number, key)


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        *product(
            ["full models", "adapters", "checkpointed adapters", "checkpointed full models"],
            ["32-true", "bf16-mixed"],
        ),
        ("packed adapters", "bf16-mixed"),  # refused in full precision
    ],
)
def test_every_ratio_is_one_at_the_first_inner_step(
    kind: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ratios: list[Tensor] = []
    original = F.distrl_loss

    def recording(log_probs: Tensor, old: Tensor, *args: Any, **options: Any) -> Any:
        ratios.append((log_probs - old).exp().detach())
        return original(log_probs, old, *args, **options)

    monkeypatch.setattr(F, "distrl_loss", recording)
    lora = LoRA(r=4) if "adapters" in kind else None
    attention = "varlen" if "packed" in kind else None
    policy = TinyPolicy(lora=lora, gradient_checkpointing="checkpointed" in kind, attn_implementation=attention)
    update = {"epochs": 2, "max_tokens": 64}
    run(tmp_path, module(language_model=policy, update=update), accelerator="gpu", precision=precision, steps=1)
    half = len(ratios) // 2
    assert half >= 2 and len(ratios) % 2 == 0 and all(ratio.is_cuda for ratio in ratios)
    assert all(torch.equal(ratio, torch.ones_like(ratio)) for ratio in ratios[:half])
    assert any(not torch.equal(ratio, torch.ones_like(ratio)) for ratio in ratios[half:])


@pytest.mark.parametrize("lora", [False, True])
def test_half_precision_stays_near_full_precision(lora: bool, tmp_path: Path) -> None:
    losses = []
    for chosen in ("32-true", "bf16-mixed"):
        torch.manual_seed(0)
        model = RandomLanguageModel(config=QWEN, lora=LoRA(r=4) if lora else None, gradient_checkpointing=True)
        record = Losses()
        trainer = quiet_trainer(tmp_path, accelerator="gpu", precision=chosen, callbacks=[record], max_epochs=3)
        adam = partial(torch.optim.AdamW, lr=1e-3)
        trainer.fit(IPVRMModule(language_model=model, optimizer=adam), datamodule=InMemoryData())
        losses.append([step["loss"] for step in record.steps])
    assert losses[1] == pytest.approx(losses[0], abs=0.05) and losses[0][-1] < losses[0][0]


@pytest.mark.parametrize("lora", [False, True])
def test_deterministic_runs_repeat_bit_for_bit(lora: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    found = []
    for _ in range(2):
        model = module(lora=lora, update={"epochs": 2})
        found.append(run(tmp_path, model, accelerator="gpu", precision="bf16-mixed", deterministic=True))
    assert found[0][1] == found[1][1] and len(found[0][1]) == 2
    for name, value in found[0][0].items():
        assert torch.equal(value, found[1][0][name]), name


def test_four_bits_train_on_the_gpu_and_read_as_on_the_cpu(tmp_path: Path) -> None:
    from bitsandbytes.optim import PagedAdamW8bit

    RandomLanguageModel(config=WIDER).build_model().save_pretrained(tmp_path)
    factory = PretrainedLanguageModel(
        name=str(tmp_path), quantization="nf4", lora=LoRA(r=4), compute_dtype="float32", gradient_checkpointing=True
    )
    batch = make_batch([9, 14, 5, 11], [3, 6, 1, 10])
    cpu = response_scores(factory.build_model().cpu(), batch).log_probs
    record = Losses()
    trainer = quiet_trainer(tmp_path, accelerator="gpu", callbacks=[record], max_epochs=4)
    reward = IPVRMModule(language_model=factory, optimizer=partial(PagedAdamW8bit, lr=1e-3))
    trainer.fit(reward, datamodule=InMemoryData())
    losses = [step["loss"] for step in record.steps]
    assert losses[-1] < losses[0] < 2 * losses[-1] + 10
    reward.cuda()
    with reward.model.disable_adapter(), torch.no_grad():
        gpu = response_scores(reward.model, move_data_to_device(batch, "cuda")).log_probs
    torch.testing.assert_close(gpu.cpu(), cpu.detach(), rtol=0, atol=1e-3)


def test_candidates_and_their_log_probabilities_are_those_of_a_cpu() -> None:
    model: Any = RandomLanguageModel(config={**QWEN, "initializer_range": 0.2}).build_model()
    batch = make_batch([9, 14, 5, 11], [3, 6, 1, 10])
    options = {"top_k": 5, "min_probability": 0.05}
    cpu = behavior_scores(model, batch, **options)
    again = candidate_log_probs(model, batch, cpu.candidates)[0].detach()
    gpu = behavior_scores(model.cuda(), move_data_to_device(batch, "cuda"), **options)
    assert torch.equal(gpu.candidates.mask.cpu(), cpu.candidates.mask) and cpu.candidates.mask[..., 1:].any()
    counted = cpu.candidates.mask
    assert torch.equal(gpu.candidates.ids.cpu()[counted], cpu.candidates.ids[counted])
    torch.testing.assert_close(gpu.log_probs.cpu(), cpu.log_probs, rtol=0, atol=1e-4)
    torch.testing.assert_close(again, cpu.log_probs, rtol=0, atol=1e-6)


def test_products_with_the_head_are_not_rounded() -> None:
    torch.manual_seed(0)
    hidden, weight = (torch.randn(*shape, device="cuda").bfloat16() for shape in ((300, 64), (999, 64)))
    targets = torch.randint(0, 999, (300,), device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        found = token_log_probs(hidden.float(), OutputHead(weight.float(), None, 1.0, None), targets, chunk_size=128)
    expected = (hidden.double() @ weight.double().T).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("precision", "options"),
    [
        (torch.float32, {}),
        (torch.bfloat16, {}),
        (torch.bfloat16, {"compile": True}),
        (torch.bfloat16, {"compile": True, "gradient_checkpointing": True, "lora": LoRA(r=4)}),
    ],
    ids=["float32", "bfloat16", "bfloat16 compiled", "bfloat16 compiled, adapters, recomputed"],
)
def test_packed_passes_have_the_numbers_and_gradients_of_padded_ones(
    precision: torch.dtype, options: dict[str, Any]
) -> None:
    batch = move_data_to_device(make_batch([90, 140, 50, 110], [30, 60, 10, 100]), "cuda")
    torch._dynamo.utils.counters.clear()
    found = []
    for fast in ({}, {"attn_implementation": "varlen", **options}):
        torch.manual_seed(0)  # of adapters
        model: Any = RandomLanguageModel(config=WIDER, **{"lora": options.get("lora"), **fast}).build_model().cuda()
        with torch.autocast("cuda", precision, enabled=precision != torch.float32):
            log_probs = response_scores(model, batch, chunk_size=64).log_probs
        log_probs.square().sum().backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((log_probs.detach(), gradients))
    # of blocks, besides those of what is done to logits
    assert (torch._dynamo.utils.counters["stats"]["unique_graphs"] > 2) == ("compile" in options)
    bound = 1e-5 if precision == torch.float32 else 2e-2
    for plain, packed in zip(*found, strict=True):
        assert float((packed - plain).norm() / plain.norm()) < bound
