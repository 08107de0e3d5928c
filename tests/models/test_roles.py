from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ipvrm_lightning.models import LanguageModelFactory, LoRA, RandomLanguageModel
from ipvrm_lightning.models.logprobs import response_scores
from ipvrm_lightning.models.roles import Roles, SharedBase, build_roles, check_repeats

from ..modules.conftest import QWEN
from .conftest import TINY
from .test_candidates import make_batch

FACTORIES = {
    "adapters": RandomLanguageModel(config=QWEN, lora=LoRA(r=4)),
    "checkpointed adapters": RandomLanguageModel(config=QWEN, lora=LoRA(r=4), gradient_checkpointing=True),
    "full models": RandomLanguageModel(config=QWEN),
}


def with_reward(factory: LanguageModelFactory) -> Roles:
    roles = build_roles(factory)
    roles.add_reward()
    return roles


def moved(name: str) -> Roles:
    """Roles whose policy and reward model have left the supervised model, in different directions."""
    torch.manual_seed(1)
    roles = with_reward(FACTORIES[name])
    with torch.no_grad():
        for role in ("policy", "reward"):
            for parameter in roles.trained(role).values():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return roles


def log_probs(model: nn.Module) -> torch.Tensor:
    return response_scores(model, make_batch()).log_probs


@pytest.mark.parametrize("name", FACTORIES)
def test_each_role_has_weights_of_its_own_and_the_reference_those_of_the_start(name: str) -> None:
    roles = moved(name)
    start = FACTORIES[name].build_model().eval()
    results = {}
    for role in ("policy", "reward", "reference"):
        with roles.use(role) as model:
            found = log_probs(model)
            assert found.requires_grad == (role != "reference")
            results[role] = found.detach()
    assert torch.equal(results["reference"], log_probs(start).detach())
    assert not torch.allclose(results["policy"], results["reward"], atol=1e-3)
    assert not torch.allclose(results["policy"], results["reference"], atol=1e-3)


@pytest.mark.parametrize("name", FACTORIES)
def test_a_loss_trains_the_policy_though_the_reward_model_was_used_before_backward(name: str) -> None:
    roles = moved(name)
    with roles.use("policy") as model:
        loss = log_probs(model).sum()
        with roles.use("reward") as other, torch.no_grad():
            log_probs(other)
        with roles.use("reference") as other:
            log_probs(other)
        loss.backward()
    alone = moved(name)
    with alone.use("policy") as model:
        log_probs(model).sum().backward()
    expected = {name: parameter.grad for name, parameter in alone.trained("policy").items()}
    for key, parameter in roles.trained("policy").items():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0
        assert torch.equal(parameter.grad, expected[key])
    assert all(parameter.grad is None for parameter in roles.trained("reward").values())
    assert all(parameter.requires_grad for parameter in roles.trained("reward").values())


def test_contexts_nest_and_put_back_what_was_active() -> None:
    roles = moved("adapters")
    with roles.use("reward") as model:
        before = log_probs(model)
        with pytest.raises(RuntimeError), roles.use("policy"):
            raise RuntimeError
        with roles.use("reference") as reference:
            assert not reference.training
        assert model.training and torch.equal(log_probs(model), before)


def test_a_reference_of_its_own_is_built_once_and_draws_and_keeps_nothing() -> None:
    factory = RandomLanguageModel(config={**QWEN, "attention_dropout": 0.5}, gradient_checkpointing=True)
    roles, models = build_roles(factory), []
    for _ in range(2):
        with roles.use("reference") as model:
            models.append(model)
            found = log_probs(model)
        assert torch.equal(found, log_probs(factory.build_model().eval())) and not found.requires_grad
    assert models[0] is models[1] and not any(parameter.requires_grad for parameter in models[0].parameters())


def test_no_role_is_a_model_that_cannot_be_read() -> None:
    config = {**TINY, "model_type": "gemma3_text", "use_bidirectional_attention": True, "head_dim": 8}
    with pytest.raises(ValueError, match="it is no causal language model"):
        build_roles(RandomLanguageModel(config={**config, "initializer_range": 0.2}))


def test_adapters_share_one_base() -> None:
    roles = with_reward(FACTORIES["adapters"])
    assert isinstance(roles, SharedBase)
    base = sum(p.numel() for p in FACTORIES["full models"].build_model().parameters())
    adapters = sum(p.numel() for role in ("policy", "reward") for p in roles.trained(role).values())
    # embedding and head are tied, or not, in both alike
    assert sum(p.numel() for p in roles.parameters()) == base + adapters


@pytest.mark.parametrize("name", ["adapters", "full models"])
def test_reward_weights_of_another_shape_are_refused_by_name(name: str) -> None:
    roles = with_reward(FACTORIES[name])
    with pytest.raises(
        ValueError, match=r"the reward model's checkpoint does not fit this config: parameter .* absent"
    ):
        roles.load_reward({"model.something": torch.zeros(1)})


def test_dropout_is_off(tmp_path: Path) -> None:
    roles = with_reward(RandomLanguageModel(config={**QWEN, "attention_dropout": 0.5}, lora=LoRA(r=4, dropout=0.5)))
    with torch.no_grad():
        for parameter in roles.trained("policy").values():
            parameter.normal_()
    with roles.use("policy") as model:
        assert model.training
        found = log_probs(model), log_probs(model)
        assert torch.equal(*found) and torch.equal(found[0], log_probs(model.eval()))


def test_dropout_that_models_keep_as_a_number_and_that_of_a_second_adapter_are_off() -> None:
    config = {"model_type": "opt", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 16}
    config |= {"vocab_size": 64, "max_position_embeddings": 32, "dropout": 0.5, "word_embed_proj_dim": 16}
    factory = RandomLanguageModel(config=config, lora=LoRA(r=2, dropout=0.5))
    roles = with_reward(factory)
    batch = make_batch()
    batch = batch.__class__(batch.input_ids % 64, batch.lengths, batch.response_starts, batch.index)
    for role in ("policy", "reward"):
        for parameter in roles.trained(role).values():  # type: ignore[arg-type]
            nn.init.normal_(parameter)  # a fresh adapter adds nothing, with dropout or without
        with roles.use(role) as model:  # type: ignore[arg-type]
            check_repeats(model)  # in the few positions that it has
            first, second = (response_scores(model.train(), batch).log_probs for _ in range(2))
            assert torch.equal(first, second), role
            assert torch.equal(first, response_scores(model.eval(), batch).log_probs), role


NOISY = {
    "mixtral": {"num_local_experts": 4, "num_key_value_heads": 2, "router_jitter_noise": 0.1},
    "falcon": {"attention_dropout": 0.5, "hidden_dropout": 0.5, "alibi": False},  # read from the config at each pass
    "persimmon": {"attention_dropout": 0.5, "hidden_dropout": 0.5},
}


@pytest.mark.parametrize("kind", NOISY)
def test_noise_that_models_draw_for_themselves_is_off(kind: str) -> None:
    config = {**TINY, "vocab_size": 64, "initializer_range": 0.2, "model_type": kind, **NOISY[kind]}
    factory = RandomLanguageModel(config=config)
    with pytest.raises(ValueError, match="draws random numbers while it trains"):
        check_repeats(factory.build_model().eval())
    batch = make_batch()
    batch = batch.__class__(batch.input_ids % 64, batch.lengths, batch.response_starts, batch.index)
    with build_roles(factory).use("policy") as model:
        check_repeats(model.eval())
        assert not model.training
        check_repeats(model.train())
        assert model.training
        assert torch.equal(response_scores(model, batch).log_probs, response_scores(model, batch).log_probs)


def test_a_policy_whose_experts_are_drawn_at_random_is_refused_and_reads_as_ever_in_evaluation() -> None:
    config = {**TINY, "initializer_range": 0.2, "model_type": "phimoe", "num_local_experts": 4}
    config |= {"num_key_value_heads": 2, "router_jitter_noise": 0.2, "input_jitter_noise": 0.1}
    factory = RandomLanguageModel(config=config)
    roles = build_roles(factory)
    state = torch.get_rng_state()
    with roles.use("policy") as model, pytest.raises(ValueError, match="PhimoeForCausalLM draws random numbers"):
        check_repeats(model)
    assert torch.equal(torch.get_rng_state(), state)
    with roles.use("policy") as model:
        assert torch.equal(log_probs(model.eval()), log_probs(factory.build_model().eval()))
