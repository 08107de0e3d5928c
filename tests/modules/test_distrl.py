from __future__ import annotations

import itertools
import json
import math
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from ipvrm_lightning import functional as F
from ipvrm_lightning.callbacks.responses import ResponseFile
from ipvrm_lightning.models import LoRA, candidates, logprobs
from ipvrm_lightning.models.candidates import candidate_log_probs
from ipvrm_lightning.models.output_head import base_language_model
from ipvrm_lightning.modules import DistRLModule, IPVRMModule, PolicyModule
from ipvrm_lightning.modules.alarms import Alarms
from ipvrm_lightning.modules.distrl_settings import AdvantageSettings, Collecting, PolicyUpdate, RewardModel
from ipvrm_lightning.modules.experience import totals
from ipvrm_lightning.modules.policy_loss import policy_loss
from ipvrm_lightning.modules.processes import Processes
from ipvrm_lightning.modules.schedule import Schedule
from ipvrm_lightning.objectives import DPORM, IPVRM, QRM, ImplicitPRM
from ipvrm_lightning.rollouts.groups import answer_prompts
from ipvrm_lightning.rollouts.sources import Sampling
from ipvrm_lightning.rollouts.verifiers import Verifier

from ..rollouts.judges import EvenLength
from .conftest import InMemoryData, quiet_trainer, tiny, trained_state
from .distrl_cases import NeverRight, TinyPolicy, TinyPrompts, module, run
from .experience_cases import scored

SGD = partial(torch.optim.SGD, lr=0.5)


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor], atol: float = 0.0) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=atol, msg=name)


def moved(first: dict[str, Tensor], second: dict[str, Tensor], part: str) -> float:
    return max(float((first[name] - second[name]).abs().max()) for name in first if part in name)


@pytest.mark.parametrize(
    "kind", ["full models", "adapters", "checkpointed adapters", "checkpointed full models", "packed adapters"]
)
def test_every_ratio_is_one_at_the_first_inner_step(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ratios = []

    def recording(log_probs: Tensor, old: Tensor, *args: Any, **options: Any) -> Any:
        ratios.append((log_probs - old).exp().detach())
        return F_distrl_loss(log_probs, old, *args, **options)

    F_distrl_loss = F.distrl_loss
    monkeypatch.setattr(F, "distrl_loss", recording)
    lora = LoRA(r=4) if "adapters" in kind else None
    attention = "varlen" if "packed" in kind else None
    policy = TinyPolicy(lora=lora, gradient_checkpointing="checkpointed" in kind, attn_implementation=attention)
    # two steps: in the second one the policy has left its start
    run(tmp_path, module(language_model=policy, update={"epochs": 2, "max_tokens": 128}))
    assert len(ratios) >= 8 and len(ratios) % 4 == 0
    batches = len(ratios) // 4
    for first in (ratios[:batches], ratios[2 * batches : 3 * batches]):
        assert all(torch.equal(ratio, torch.ones_like(ratio)) for ratio in first)
    assert any(not torch.equal(ratio, torch.ones_like(ratio)) for ratio in ratios[batches : 2 * batches])


@pytest.mark.parametrize("lora", [False, True])
def test_grpo_is_recovered_exactly_with_both_coefficients_at_zero(lora: bool, tmp_path: Path) -> None:
    frozen = RewardModel(objective=IPVRM(), update="frozen")
    update = {"distribution_coef": 0.0}
    grpo, _ = run(tmp_path, module(lora=lora, reward=None, update=update))
    zero = AdvantageSettings(gae_coef=0.0)
    distrl, _ = run(tmp_path, module(lora=lora, reward=frozen, update=update, advantages=zero))
    assert_same(grpo, distrl)
    other, _ = run(tmp_path, module(lora=lora, reward=frozen))
    assert set(other) == set(grpo)


def test_grpo_step_is_the_gradient_of_its_loss_written_out(tmp_path: Path) -> None:
    """One SGD step against the loss on full logits, sequence by sequence, with the group's advantages by hand."""
    model = module(reward=None, update={"gradient_clip_val": None})
    collected = []
    collect = model.collect
    model.collect = lambda stream: collected.append(collect(stream)) or collected[-1]  # type: ignore[method-assign]
    after, _ = run(tmp_path, model, steps=1)
    plain = TinyPolicy().build_model()
    losses, count = [], 0
    for group in collected[0].kept:
        mean = group.accuracy
        std = math.sqrt(mean * (1 - mean))
        for attempt in group.attempts:
            ids = torch.tensor([[*group.prompt.input_ids, *attempt.input_ids]])
            start = len(group.prompt.input_ids)
            log_probs = plain(input_ids=ids).logits[0, start - 1 : -1].log_softmax(-1)
            chosen = log_probs.gather(-1, ids[0, start:, None]).squeeze(-1)
            losses.append(-(attempt.outcome - mean) / std * (chosen - chosen.detach()).exp().sum())
            count += len(chosen)
    (torch.stack(losses).sum() / count).backward()
    for name, parameter in plain.named_parameters():
        expected = parameter.detach() - 0.5 * parameter.grad
        torch.testing.assert_close(after[f"roles.policy.{name}"], expected, rtol=0, atol=2e-6)


def test_candidate_branch_moves_tokens_that_were_never_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the token branch silent, a likely candidate that the reward model prefers gains probability."""
    from ipvrm_lightning.modules import distrl

    silent = AdvantageSettings(outcome_coef=0.0, gae_coef=0.0)
    kept: list[Any] = []
    model = module(
        reward=RewardModel(objective=IPVRM(beta=1.0), optimizer=SGD, epochs=4),
        advantages=silent,
        optimizer=partial(torch.optim.SGD, lr=0.02),
        update={"distribution_coef": 1.0, "gradient_clip_val": None},
    )
    set_advantages = distrl.set_advantages
    monkeypatch.setattr(
        distrl, "set_advantages", lambda batch, *rest: (kept.append(batch), set_advantages(batch, *rest))
    )
    run(tmp_path, model, steps=1)
    gains, before, after = [], 0.0, 0.0
    for part in kept[0]:
        new, _ = candidate_log_probs(model.roles.policy, part.batch, part.behavior.candidates)
        others = part.behavior.candidates.mask.clone()
        others[..., 0] = False
        assert torch.equal(part.advantages.tokens, torch.zeros_like(part.advantages.tokens))
        change = (new.detach() - part.behavior.log_probs)[others]
        gains.append(torch.stack([change, part.advantages.candidates[others]]))
        counted, weight = part.behavior.candidates.mask, part.behavior.log_probs.exp()
        before += float((weight * part.advantages.candidates)[counted].sum())
        after += float(
            (weight * (new.detach() - part.behavior.log_probs).exp() * part.advantages.candidates)[counted].sum()
        )
    assert sum(part.shape[1] for part in gains) > 20
    assert after > before
    change, advantage = torch.cat(gains, dim=1)
    assert float(torch.corrcoef(torch.stack([change, advantage]))[0, 1]) > 0.2


@pytest.mark.parametrize("objective", [IPVRM(), IPVRM(reduction="token"), ImplicitPRM(), DPORM()])
@pytest.mark.parametrize("lora", [False, True])
def test_size_of_micro_batches_changes_nothing(objective: Any, lora: bool, tmp_path: Path) -> None:
    balanced = objective.balanced
    results = []
    for max_tokens in (4096, 40):
        reward = RewardModel(
            objective=objective,
            optimizer=partial(torch.optim.SGD, lr=0.02),
            adaptive_difficulty_boundary=balanced,
            dynamic_loss_weighting=balanced,
            mini_batches=2,
        )
        sgd = partial(torch.optim.SGD, lr=0.02)
        update = {"max_tokens": max_tokens, "mini_batches": 2}
        results.append(run(tmp_path, module(lora=lora, reward=reward, update=update, optimizer=sgd)))
    assert_same(results[0][0], results[1][0], atol=2e-5)
    for first, second in zip(results[0][1], results[1][1], strict=True):
        assert first == pytest.approx(second, abs=1e-3, rel=1e-3)


@pytest.mark.parametrize("when", ["before", "after", "frozen"])
def test_reward_model_learns_when_it_is_told_to(when: Any, tmp_path: Path) -> None:
    reward = RewardModel(objective=IPVRM(), update=when, optimizer=SGD)
    model = module(reward=reward)
    state, steps = run(tmp_path, model, steps=1)
    start = model.language_model.build_model().state_dict()
    learned = max(float((p - start[n]).abs().max()) for n, p in model.roles.reward.named_parameters())
    assert (learned > 1e-4) == (when != "frozen")
    assert any(".reward." in name for name in state) == (when != "frozen")
    # what is logged of it is what it said before it learned from these responses: a behaviour policy's log-ratios are 0
    assert steps[0]["reward/score"] == pytest.approx(0.0, abs=1e-5)


def test_reference_may_be_the_supervised_model(tmp_path: Path) -> None:
    """The reward model's update changes nothing on the first step, where both references are the same weights."""
    states = {}
    for reference in ("behavior", "sft"):
        for steps in (1, 3):
            reward = RewardModel(objective=IPVRM(), reference=reference, optimizer=SGD)  # type: ignore[arg-type]
            states[reference, steps], _ = run(tmp_path, module(lora=True, reward=reward), steps=steps)
    assert_same(states["behavior", 1], states["sft", 1], atol=1e-6)
    assert moved(states["behavior", 3], states["sft", 3], ".reward.") > 1e-4


@pytest.mark.parametrize(
    ("reward", "update", "count"),
    [
        (None, {}, 1),
        (None, {"kl_coef": 0.1}, 2),
        (RewardModel(objective=IPVRM()), {}, 2),
        (RewardModel(objective=IPVRM(), reference="sft"), {}, 3),
    ],
)
def test_no_model_is_built_that_nothing_asks_for(
    reward: Any, update: dict[str, float], count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []
    build = TinyPolicy.build_model
    monkeypatch.setattr(TinyPolicy, "build_model", lambda self: built.append(build(self)) or built[-1])
    run(tmp_path, module(reward=reward, update=update), steps=1)
    assert len(built) == count


def test_kl_and_entropy_enter_the_loss(tmp_path: Path) -> None:
    plain, _ = run(tmp_path, module(), steps=2)
    for term in ("kl_coef", "candidate_kl_coef", "entropy_coef"):
        other, steps = run(tmp_path, module(update={term: 1.0}), steps=2)
        assert moved(plain, other, ".policy.") > 1e-5, term
        if "kl" in term:
            assert steps[0]["kl/token"] == 0.0 and steps[1]["kl/token"] > 0.0


def test_responses_of_one_token_have_no_candidates_to_divide_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their only position is the last one, where none counts: what is left is the loss of the sampled token."""
    part = scored([2])
    part.advantages = F.Advantages(torch.full((1, 1), -0.5), torch.ones(1, 1, 2))
    new = part.behavior.log_probs.clone().requires_grad_()
    monkeypatch.setattr("ipvrm_lightning.modules.policy_loss.candidate_log_probs", lambda *_, **__: (new, None))
    divisors = totals([part], Processes(0, 1, torch.device("cpu")))
    assert part.mask.sum() == 1 and divisors.candidates == 0
    loss, values = policy_loss(torch.nn.Identity(), part, divisors, PolicyUpdate(), temperature=1.0, chunk_size=4)
    loss.backward()
    assert loss.item() == 0.5 and new.grad.tolist() == [[[0.5, 0.0]]]
    assert not any(value.requires_grad for value in values.values())  # or graphs would be kept through the step
    assert {name: value.item() for name, value in values.items()} == {
        "loss/token": 0.5, "loss/candidate": 0.0, "clipped/token": 0.0, "clipped/candidate": 0.0
    }  # fmt: skip


def test_no_more_logits_exist_at_one_time_than_the_config_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In no pass of a step: behaviour, reward model, its update, supervised model, policy and what it has moved."""
    sizes: set[int] = set()
    for place in (candidates, logprobs):

        def scoring(*args: Any, whole: Any = place.token_log_probs, **options: Any) -> Tensor:
            sizes.add(options["chunk_size"])
            return whole(*args, **options)

        def logits(hidden: Tensor, head: Any, whole: Any = place.head_logits) -> Tensor:
            sizes.add(len(hidden))
            return whole(hidden, head)

        monkeypatch.setattr(place, "token_log_probs", scoring)
        monkeypatch.setattr(place, "head_logits", logits)
    model = module(chunk_size=5, update={"kl_coef": 0.1, "entropy_coef": 0.1})
    run(tmp_path, model, steps=0)
    sizes.clear()  # of the check of the output head
    quiet_trainer(tmp_path, limit_train_batches=1, limit_val_batches=0).fit(model, datamodule=TinyPrompts())
    assert max(sizes) == 5


def test_reward_model_comes_from_a_checkpoint_of_ipvrm_module(tmp_path: Path) -> None:
    for lora in (False, True):
        policy = TinyPolicy(lora=LoRA(r=4) if lora else None)
        trained = IPVRMModule(language_model=policy, objective=IPVRM(), optimizer=SGD)
        folder = tmp_path / str(lora) / "run" / "checkpoints"
        trainer = quiet_trainer(tmp_path, limit_val_batches=0)
        data = InMemoryData()
        data.setup = lambda stage=None, d=data: _small_tokens(d)  # type: ignore[method-assign]
        trainer.fit(trained, datamodule=data)
        trainer.save_checkpoint(folder / "last.ckpt")
        named = folder / "last.ckpt" if lora else tmp_path / "False"  # the file, or the folder of its run
        reward = RewardModel(objective=IPVRM(), checkpoint=str(named), update="frozen")
        model = module(language_model=policy, reward=reward)
        run(tmp_path, model, steps=1)
        expected = list(trained.trainable_parameters().values())
        found = list(model.roles.trained("reward").values())
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True)) and expected
        scaled = TinyPolicy(lora=LoRA(r=4, alpha=64))
        if lora:
            with pytest.raises(ValueError, match=r"reward.checkpoint .*lora.alpha is 32 there and 64 here"):
                run(tmp_path, module(language_model=scaled, reward=reward), steps=1)
        moved_base = TinyPolicy(lora=LoRA(r=4) if lora else None)
        moved_base.seed = 1
        with pytest.raises(ValueError, match=r"reward.checkpoint .* trained from other weights than those"):
            run(tmp_path, module(language_model=moved_base, reward=reward), steps=1)
        with pytest.raises(ValueError, match=r"was trained by .*IPVRM with beta 10.0"):
            other = RewardModel(objective=IPVRM(beta=1.0), checkpoint=reward.checkpoint)
            run(tmp_path, module(language_model=policy, reward=other), steps=1)
    with pytest.raises(
        FileNotFoundError, match=r"reward.checkpoint: .*nowhere: no such file or folder .*run `ipvrm fit` first"
    ):
        run(tmp_path, module(reward=RewardModel(objective=IPVRM(), checkpoint=str(tmp_path / "nowhere"))), steps=1)


def _small_tokens(data: InMemoryData) -> None:
    from ipvrm_lightning.data.dataset import TrajectoryDataset
    from ipvrm_lightning.types import Example

    from .conftest import make_examples

    examples = [
        Example([i % 40 for i in e.input_ids], e.response_start, e.group, e.outcome, metadata=e.metadata)
        for e in make_examples(8)
    ]
    data.train_set = TrajectoryDataset(examples)


def test_a_step_without_mixed_prompts_is_skipped_and_says_so(tmp_path: Path) -> None:
    model = module(verifier=NeverRight(), collecting=Collecting(max_refills=2))
    state, steps = run(tmp_path, model, steps=2)
    fresh = TinyPolicy().build_model()
    assert all(torch.equal(p, state[f"roles.policy.{n}"]) for n, p in fresh.named_parameters())
    assert [step["skipped_step"] for step in steps] == [1.0, 1.0]
    assert steps[0]["sampled_prompts"] == 12.0 and steps[0]["kept_prompts"] == 0.0


def test_a_policy_that_draws_random_numbers_while_it_trains_is_refused_before_it_does(tmp_path: Path) -> None:
    policy = TinyPolicy()
    policy.config |= {"model_type": "phimoe", "num_local_experts": 4, "router_jitter_noise": 0.2}
    with pytest.raises(ValueError, match="PhimoeForCausalLM draws random numbers while it trains"):
        run(tmp_path, module(language_model=policy, reward=None, update={"distribution_coef": 0.0}))


def test_published_numbers_are_the_defaults() -> None:
    """App. C of the paper, and of the reference code: top_k, candidate_clip, dual_clip, gae_coef."""
    update, advantages, reward = PolicyUpdate(), AdvantageSettings(), RewardModel(objective=IPVRM())
    assert (update.clip_low, update.clip_high, update.min_probability, update.distribution_coef) == (
        0.2,
        0.28,
        0.1,
        0.1,
    )
    assert (update.top_k, update.candidate_clip, update.dual_clip) == (5, 0.2, 3.0)
    assert update.kl_coef == update.candidate_kl_coef == update.entropy_coef == 0.0
    assert (advantages.outcome_coef, advantages.gae_coef) == (1.0, 0.05)
    assert (advantages.discount, advantages.gae_lambda, advantages.normalization) == (1.0, 1.0, "prompt_group")
    assert (reward.reference, reward.update) == ("behavior", "before")
    assert reward.adaptive_difficulty_boundary and reward.dynamic_loss_weighting
    assert update.gradient_clip_val == reward.gradient_clip_val == 1.0


@pytest.mark.parametrize(
    "wrong", [{"oversampling": 0.9}, {"oversampling": math.nan}, {"max_refills": -1}, {"batch_size": 0}]
)
def test_collecting_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="collecting needs oversampling >= 1"):
        Collecting(**wrong)


def test_settings_may_lie_on_their_bounds() -> None:
    Collecting(oversampling=1.0, max_refills=0, batch_size=1)
    ones = {"epochs": 1, "mini_batches": 1}
    for probability in (0.0, 1.0):
        PolicyUpdate(**ones, max_tokens=1, top_k=1, max_skipped_updates=0, min_probability=probability)
    RewardModel(objective=IPVRM(), max_pairs_per_prompt=1, **ones)  # type: ignore[arg-type]
    module(sampling=Sampling(group_size=2))


def test_a_pass_looks_at_no_more_tokens_and_models_than_its_coefficients_ask_for() -> None:
    for distribution, candidate_kl, kl in itertools.product((0.0, 0.5), repeat=3):
        update = PolicyUpdate(distribution_coef=distribution, candidate_kl_coef=candidate_kl, kl_coef=kl, top_k=7)
        assert update.width == (1 if distribution == candidate_kl == 0 else 7)
        assert update.uses_kl is not (kl == candidate_kl == 0)


@pytest.mark.parametrize("normalization", ["prompt_group", "minibatch"])
def test_advantages_follow_every_setting(normalization: Any) -> None:
    options = {"outcome_coef": 0.7, "gae_coef": 0.3, "discount": 0.9, "gae_lambda": 0.8}
    values = torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(5) < torch.tensor([5, 1, 3, 4, 2, 5])[:, None]
    batch = (values, torch.tensor([1.0, 0, 0, 1, 1, 0]), torch.tensor([0, 0, 0, 1, 1, 1]), mask)
    found = AdvantageSettings(normalization=normalization, **options).compute(*batch)
    expected = F.distrl_advantages(*batch, normalization=normalization, **options)
    assert torch.equal(found.tokens, expected.tokens) and torch.equal(found.candidates, expected.candidates)
    for name in options:
        other = F.distrl_advantages(*batch, normalization=normalization, **{**options, name: 0.5})
        assert not torch.allclose(found.tokens, other.tokens, atol=1e-3), name


def test_oversampling_and_refills_find_the_wanted_number(tmp_path: Path) -> None:
    _, steps = run(tmp_path, module(collecting=Collecting(oversampling=2.0, max_refills=3)))
    assert [step["kept_prompts"] for step in steps] == [4.0, 4.0]
    assert steps[0]["sampled_prompts"] >= 8.0


def test_judging_before_training_changes_nothing(tmp_path: Path) -> None:
    expected, _ = run(tmp_path, module())
    model = module()
    quiet_trainer(tmp_path).validate(model, datamodule=TinyPrompts(), verbose=False)
    found, _ = run(tmp_path, model)
    assert_same(expected, found)
    # and a run that validates may follow
    quiet_trainer(tmp_path, limit_train_batches=1).fit(model, datamodule=TinyPrompts())


def test_a_run_stopped_between_steps_goes_on_bit_for_bit(tmp_path: Path) -> None:
    for lora in (False, True):
        reward = partial(RewardModel, objective=IPVRM(), optimizer=partial(torch.optim.AdamW, lr=1e-3))
        adam = partial(torch.optim.AdamW, lr=1e-3)
        whole, all_steps = run(tmp_path, module(lora=lora, reward=reward(), optimizer=adam), steps=4)
        saved = ModelCheckpoint(tmp_path / f"{lora}", every_n_train_steps=2, save_top_k=-1, filename="{step}")
        run(
            tmp_path,
            module(lora=lora, reward=reward(), optimizer=adam),
            steps=4,
            callbacks=[saved],
            enable_checkpointing=True,
        )
        model = module(lora=lora, reward=reward(), optimizer=adam)
        file = tmp_path / f"{lora}" / "step=2.ckpt"
        stored = torch.load(file, weights_only=True)
        assert stored["global_step"] == 2
        assert all(".policy." in n or ".reward." in n or ".default." in n for n in stored["state_dict"])
        rest, last_steps = _resumed(tmp_path, model, file)
        assert_same(whole, rest)
        assert last_steps == all_steps[2:]


def test_a_run_goes_on_with_the_buffers_of_a_module_of_ones_own(tmp_path: Path) -> None:
    first, second = module(), module()
    first.register_buffer("seen", torch.tensor(0.75))
    second.register_buffer("seen", torch.tensor(0.0))
    saved = ModelCheckpoint(tmp_path, every_n_train_steps=1, filename="one")
    run(tmp_path, first, steps=1, callbacks=[saved], enable_checkpointing=True)
    run(tmp_path, second, steps=2, ckpt_path=str(tmp_path / "one.ckpt"))
    assert second.seen == 0.75


def _resumed(folder: Path, model: DistRLModule, file: Path) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    from .distrl_cases import Losses

    losses = Losses()
    trainer = quiet_trainer(folder, callbacks=[losses], limit_train_batches=4, limit_val_batches=0)
    trainer.fit(model, datamodule=TinyPrompts(), ckpt_path=file)
    return {n: p.detach().clone() for n, p in model.trainable_parameters().items()}, losses.steps


@pytest.mark.parametrize("lora", [False, True])
def test_a_policy_is_judged_by_its_checkpoint_and_without_its_reward_model(lora: bool, tmp_path: Path) -> None:
    learned = module(lora=lora)
    trainer = quiet_trainer(tmp_path, limit_train_batches=2, limit_val_batches=0)
    trainer.fit(learned, datamodule=TinyPrompts())
    file = tmp_path / "last.ckpt"
    trainer.save_checkpoint(file)
    judged = module(lora=lora)
    quiet_trainer(tmp_path).test(judged, datamodule=TinyPrompts(), ckpt_path=file, verbose=False)
    expected = {name: weight for name, weight in trained_state(learned).items() if ".reward." not in name}
    assert_same(expected, trained_state(judged))
    start = module(lora=lora)
    quiet_trainer(tmp_path).test(start, datamodule=TinyPrompts(), verbose=False)
    assert moved(trained_state(start), expected, "") > 1e-3


def test_what_a_run_counts_goes_on_with_it(tmp_path: Path) -> None:
    """Steps, on which sampling depends, skipped updates of either model, and what alarms compare with."""
    file, models = tmp_path / "last.ckpt", []
    for resumed in (False, True):
        models.append(module())
        trainer = quiet_trainer(tmp_path, limit_train_batches=2, limit_val_batches=0)
        trainer.fit(models[-1], datamodule=TinyPrompts(), ckpt_path=file if resumed else None)
        if not resumed:
            models[0].updates["policy"].skipped, models[0].updates["reward"].skipped = 3, 2
            models[0].updates["policy"].in_a_row = 1
            trainer.save_checkpoint(file)
    for counts in ({role: guard.state_dict() for role, guard in one.updates.items()} for one in models):
        assert counts == {"policy": {"skipped": 3, "in_a_row": 1}, "reward": {"skipped": 2, "in_a_row": 0}}
    assert [one.steps_done for one in models] == [2, 2]
    assert models[0].alarms.state == models[1].alarms.state != Alarms().state


@pytest.mark.parametrize("purpose", ["fit", "test"])
def test_a_checkpoint_of_a_reward_model_says_where_it_belongs(purpose: str, tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, limit_train_batches=1, limit_val_batches=0)
    trainer.fit(IPVRMModule(language_model=tiny()), datamodule=InMemoryData())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(
        ValueError, match=r"of no policy optimisation: a reward model's is named by model\.reward\.check"
    ):
        getattr(quiet_trainer(tmp_path), purpose)(module(), datamodule=TinyPrompts(), ckpt_path=tmp_path / "last.ckpt")


@pytest.mark.parametrize("purpose", ["fit", "test"])
def test_a_checkpoint_that_lacks_weights_is_refused(purpose: str, tmp_path: Path) -> None:
    """They would be those of the supervised model, without a word."""
    trainer = quiet_trainer(tmp_path, limit_train_batches=1, limit_val_batches=0)
    trainer.fit(module(), datamodule=TinyPrompts())
    file = tmp_path / "last.ckpt"
    trainer.save_checkpoint(file)
    stored = torch.load(file, weights_only=True)
    gone = next(name for name in stored["state_dict"] if ".policy." in name)
    del stored["state_dict"][gone]
    torch.save(stored, file)
    with pytest.raises(ValueError, match=f"the checkpoint does not fit this config: parameter {gone} is absent there"):
        getattr(quiet_trainer(tmp_path), purpose)(module(), datamodule=TinyPrompts(), ckpt_path=file)


def test_a_run_stopped_at_the_end_of_a_short_epoch_goes_on_with_the_prompts_that_come_next(tmp_path: Path) -> None:
    """Epochs of 2 of 4 steps: the stream of prompts goes on, and the next epoch has its 2 steps."""
    whole, all_steps = run(tmp_path, module(), steps=2, max_epochs=3)
    assert len(all_steps) == 6
    first = module()
    trainer = quiet_trainer(tmp_path, limit_train_batches=2, limit_val_batches=0)
    trainer.fit(first, datamodule=TinyPrompts())
    trainer.save_checkpoint(tmp_path / "epoch.ckpt")
    rest, last_steps = run(tmp_path, module(), steps=2, max_epochs=3, ckpt_path=tmp_path / "epoch.ckpt")
    assert_same(whole, rest)
    assert last_steps == all_steps[2:]


def test_gradients_that_are_not_finite_are_skipped_and_stop_the_run_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ipvrm_lightning.modules import distrl

    whole = distrl.policy_loss

    def broken(*args: Any, **options: Any) -> Any:
        loss, values = whole(*args, **options)
        return loss * float("inf"), values

    monkeypatch.setattr(distrl, "policy_loss", broken)
    model = module(reward=None, update={"max_skipped_updates": 3})
    state, steps = run(tmp_path, model, steps=3)
    assert [step["skipped_updates"] for step in steps] == [1.0, 2.0, 3.0]
    fresh = TinyPolicy().build_model()
    assert all(torch.equal(p, state[f"roles.policy.{n}"]) for n, p in fresh.named_parameters())
    with pytest.raises(
        FloatingPointError,
        match=r"a loss is not finite, training rows .*\(id prompt \d+\).*; 3 updates in a row were not finite",
    ):
        run(tmp_path, module(reward=None, update={"max_skipped_updates": 2}), steps=4)


def test_temperature_enters_sampling_and_ratios_alike(tmp_path: Path) -> None:
    sampling = Sampling(group_size=4, max_new_tokens=12, temperature=0.7)
    model = module(sampling=sampling, reward=RewardModel(objective=IPVRM(), update="frozen"))
    kept: list[Any] = []
    score = model.score
    model.score = lambda dataset, rows: kept.append(score(dataset, rows)) or kept[-1]  # type: ignore[method-assign]
    run(tmp_path, model, steps=1)
    plain = TinyPolicy().build_model().eval()
    part = kept[0]
    start, length = int(part.batch.response_starts[0]), int(part.batch.response_lengths[0])
    logits = base_language_model(plain)(input_ids=part.batch.input_ids[:1, : start + length]).logits[0]
    log_probs = (logits[start - 1 : -1] / 0.7).log_softmax(-1)
    expected = log_probs.gather(-1, part.batch.input_ids[0, start : start + length, None]).squeeze(-1)
    torch.testing.assert_close(part.behavior.log_probs[0, :length, 0], expected, rtol=0, atol=2e-6)
    # a reward model that still is the policy says nothing, at that temperature
    assert part.td_advantages.abs().max() < 1e-4


class Closes(EvenLength):
    """Says whether its workers, if it had any, were stopped."""

    closed = False

    def close(self) -> None:
        self.closed = True


def test_evaluation_reports_and_keeps_the_responses(tmp_path: Path) -> None:
    verifier = Closes()
    trainer = quiet_trainer(tmp_path, callbacks=[ResponseFile()])
    trainer.test(module(verifier=verifier), datamodule=TinyPrompts(), verbose=False)
    assert verifier.closed and not list(tmp_path.glob("responses.rank*"))
    records = [json.loads(line) for line in (tmp_path / "responses.jsonl").read_text().splitlines()]
    of_each = ("responses", "scores", "answers", "problems", "finished", "response_tokens")
    assert len(records) == 5 and all(len(record[name]) == 2 for record in records for name in of_each)
    assert all(
        (record["prompt"], record["data_source"], record["policy_version"]) == ("text", "tiny", 0) for record in records
    )
    mean = sum(sum(record["scores"]) for record in records) / 10
    assert trainer.callback_metrics["test/all/avg@2"] == pytest.approx(mean)
    any_right = sum(any(record["scores"]) for record in records) / 5
    assert trainer.callback_metrics["test/all/pass@2"] == pytest.approx(any_right)
    cut = sum(not done for record in records for done in record["finished"])
    assert trainer.callback_metrics["test/all/cut_off"] == pytest.approx(cut / 10)
    tokens = sum(sum(record["response_tokens"]) for record in records) / 10
    assert trainer.callback_metrics["test/all/response_tokens"] == pytest.approx(tokens)
    assert (
        all(s == 0 for r in records for s, done in zip(r["scores"], r["finished"], strict=True) if not done) or not cut
    )


class Crashes(Closes):
    """Fails at the third batch of prompts."""

    calls = 0

    def verify(self, submissions: Any) -> Any:
        self.calls += 1
        if self.calls == 3:
            raise RuntimeError("made to fail")
        return super().verify(submissions)


@pytest.mark.parametrize("command", ["test", "validate"])
def test_an_evaluation_that_fails_leaves_what_was_sampled(command: str, tmp_path: Path) -> None:
    def evaluate(verifier: Verifier) -> None:
        trainer = quiet_trainer(tmp_path, callbacks=[ResponseFile()])
        data = TinyPrompts()
        data.eval_batch_size = 1
        getattr(trainer, command)(module(verifier=verifier), datamodule=data, verbose=False)

    for _ in range(2):  # the second begins anew as well
        with pytest.raises(ValueError, match="made to fail"):
            evaluate(Crashes())
    (part,) = tmp_path.glob("responses*")
    assert part.name == ("responses.rank0.jsonl" if command == "test" else "responses-step0.rank0.jsonl")
    left = part.read_text().splitlines()
    assert len(left) == 2
    evaluate(Closes())  # begins anew, in the same folder
    (whole,) = tmp_path.glob("responses*")
    lines = whole.read_text().splitlines()
    assert whole.name == part.name.replace(".rank0", "") and len(lines) == 5 and set(left) < set(lines)


def test_responses_are_sampled_as_the_settings_of_their_purpose_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[Any, ...]] = []

    def recording(*args: Any, batch_size: int, seed: int, **options: Any) -> Any:
        found.append((args[4], batch_size, seed))
        return answer_prompts(*args, batch_size=batch_size, seed=seed, **options)

    monkeypatch.setattr("ipvrm_lightning.modules.policy.answer_prompts", recording)
    judging = Sampling(group_size=2, max_new_tokens=7, seed=5)
    for seed in (3, 4):
        training = Sampling(group_size=4, max_new_tokens=6, seed=seed)
        model = module(sampling=training, evaluation=judging, collecting=Collecting(batch_size=9), eval_batch_size=3)
        quiet_trainer(tmp_path, limit_train_batches=2, num_sanity_val_steps=0).fit(model, datamodule=TinyPrompts())
    assert {(of.max_new_tokens, size) for of, size, _ in found} == {(6, 9), (7, 3)}
    assert {seed for of, _, seed in found if of is judging} == {5}
    # one of each step, and no step of a run is one of another
    assert len({seed for of, _, seed in found if of is not judging}) == 4


def test_every_validation_keeps_its_responses_but_for_the_sanity_check(tmp_path: Path) -> None:
    trainer = quiet_trainer(
        tmp_path, callbacks=[ResponseFile()], limit_train_batches=2, val_check_interval=1, num_sanity_val_steps=1
    )
    trainer.fit(module(), datamodule=TinyPrompts())
    steps = (trainer.global_step // 2, trainer.global_step)
    assert {file.name for file in tmp_path.iterdir()} == {f"responses-step{step}.jsonl" for step in steps}
    assert [len(file.read_text().splitlines()) for file in tmp_path.iterdir()] == [5, 5]


def test_responses_of_a_checkpoint_say_how_many_steps_its_policy_has_seen(tmp_path: Path) -> None:
    """The trainer of a command that judges counts none."""

    def versions(folder: Path) -> dict[str, set[int]]:
        files = sorted(folder.glob("responses*.jsonl"))
        return {f.name: {json.loads(line)["policy_version"] for line in f.read_text().splitlines()} for f in files}

    for step, earlier in ((2, None), (3, tmp_path / "2.ckpt")):
        trainer = quiet_trainer(tmp_path / "fit", callbacks=[ResponseFile()], max_steps=step, max_epochs=-1)
        model = module()
        trainer.fit(model, datamodule=TinyPrompts(count=32), ckpt_path=earlier)
        trainer.save_checkpoint(tmp_path / f"{step}.ckpt")
        trainer.test(model, datamodule=TinyPrompts(), verbose=False)
        assert versions(tmp_path / "fit")["responses.jsonl"] == {step}
    for command, name in (("validate", "responses-step2.jsonl"), ("test", "responses.jsonl")):
        trainer = quiet_trainer(tmp_path / command, callbacks=[ResponseFile()])
        getattr(trainer, command)(module(), datamodule=TinyPrompts(), ckpt_path=tmp_path / "2.ckpt", verbose=False)
        assert versions(tmp_path / command) == {name: {2}}


def test_a_prompt_that_leaves_no_room_for_a_response_is_refused(tmp_path: Path) -> None:
    """12 tokens are sampled, to train or to judge."""
    policy = TinyPolicy()
    policy.config = {**policy.config, "max_position_embeddings": 20}  # type: ignore[dict-item]
    long, short = Sampling(group_size=4, max_new_tokens=12), Sampling(group_size=4, max_new_tokens=5)
    room, unknown = ([3] * 9, "up to 21 tokens .* made for 20"), ([3, 99, 3], "the data holds token 99")
    for (input_ids, message), training, judging in ((room, long, short), (room, short, long), (unknown, long, long)):
        data = TinyPrompts()
        data.setup()
        data.val_prompts = [*data.val_prompts[:2], replace(data.val_prompts[2], input_ids=input_ids)]
        data.setup = lambda stage=None: None  # type: ignore[method-assign]
        with pytest.raises(ValueError, match=message):
            run(tmp_path, module(language_model=policy, sampling=training, evaluation=judging), data=data)


def test_a_policy_that_draws_random_numbers_while_it_trains_is_judged_all_the_same(tmp_path: Path) -> None:
    policy = TinyPolicy()
    policy.config |= {"model_type": "phimoe", "num_local_experts": 4, "router_jitter_noise": 0.2}
    judging, found = Sampling(group_size=2, max_new_tokens=12), []
    own = PolicyModule(
        language_model=policy, verifier=EvenLength(), evaluation=judging, stop_tokens=["0", "1", "2", "3"]
    )
    own.configure_model()  # without a trainer
    for judged in (own, module(language_model=policy, evaluation=judging)):
        found += quiet_trainer(tmp_path).validate(judged, datamodule=TinyPrompts(), verbose=False)
    assert found[0] == found[1] and found[0]["val/all/response_tokens"] > 0


def test_solutions_for_a_reward_model_are_nothing_to_judge_a_policy_on(tmp_path: Path) -> None:
    model = module()
    with pytest.raises(ValueError, match="DistRLModule answers prompts, and InMemoryData has none: use a PromptModule"):
        quiet_trainer(tmp_path).test(model, datamodule=InMemoryData(), verbose=False)
    with pytest.raises(ValueError, match="DistRLModule answers prompts, and a loader alone has none: use a PromptM"):
        quiet_trainer(tmp_path).test(model, TinyPrompts().test_dataloader(), verbose=False)
    assert model.roles is None


class Sources(TinyPrompts):
    """Prompts of data sources of these names in turn."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = names

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        named = [
            replace(prompt, data_source=self.names[i % len(self.names)]) for i, prompt in enumerate(self.val_prompts)
        ]
        self.val_prompts = self.test_prompts = named


def test_a_data_source_whose_numbers_would_be_hidden_is_refused(tmp_path: Path) -> None:
    model = module()
    with pytest.raises(ValueError, match="val_prompts: a data source is named 'all', as the numbers over all prompts"):
        quiet_trainer(tmp_path).validate(model, datamodule=Sources("all", "amc"), verbose=False)
    assert model.roles is None
    (found,) = quiet_trainer(tmp_path).validate(model, datamodule=Sources("math", "amc"), verbose=False)
    names = ("avg@2", "pass@2", "cut_off", "response_tokens")
    assert set(found) == {f"val/{source}/{name}" for source in ("all", "amc", "math") for name in names}
    for alone in ("all", "math"):  # its numbers are those over all prompts
        (found,) = quiet_trainer(tmp_path).validate(model, datamodule=Sources(alone), verbose=False)
        assert set(found) == {f"val/all/{name}" for name in names}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling": Sampling(group_size=1)}, "sampling.group_size must be at least 2"),
        ({"sampling": Sampling(temperature=0.0)}, "sampling.temperature must be above 0"),
        ({"sampling": Sampling(top_p=0.9)}, "sampling.top_p must be 1, is 0.9"),
        ({"reward": None, "update": {"distribution_coef": 0.1}}, "update.distribution_coef needs a reward model"),
        ({"update": {"gradient_clip_val": 0.0}}, "update.gradient_clip_val must be above 0, or null for no limit"),
        ({"update": {"kl_coef": -0.1}}, "update.kl_coef must not be negative"),
        ({"update": {"clip_low": 2.0}}, r"clip_low must lie in \[0, 1\], found 2.0"),
        ({"update": {"clip_high": -0.1}}, "clip_high must not be negative"),
        ({"update": {"dual_clip": 1.0}}, "dual_clip must be above 1"),
        ({"update": {"epochs": 0}}, "update.epochs must be at least 1, found 0"),
        ({"update": {"top_k": 0}}, "update.top_k must be at least 1, found 0"),
        ({"update": {"max_skipped_updates": -1}}, "update.max_skipped_updates must not be negative, found -1"),
        ({"update": {"min_probability": 1.5}}, r"update.min_probability must lie in \[0, 1\], found 1.5"),
        ({"update": {"min_probability": math.nan}}, r"update.min_probability must lie in \[0, 1\], found nan"),
    ],
)
def test_settings_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module(**options)


def test_advantages_that_do_not_decay_are_refused() -> None:
    with pytest.raises(ValueError, match=r"gae_lambda must lie in \[0, 1\], found 1.5"):
        AdvantageSettings(gae_lambda=1.5)
    with pytest.raises(ValueError, match=r"normalization must be one of .*minibatch, found 'batch'"):
        AdvantageSettings(normalization="batch")  # type: ignore[arg-type]


def test_objectives_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="QRM gives no log-ratios"):
        RewardModel(objective=QRM())
    for unused in ("adaptive_difficulty_boundary", "dynamic_loss_weighting"):
        with pytest.raises(ValueError, match="ImplicitPRM has no outcome weights or margins to balance"):
            RewardModel(objective=ImplicitPRM(), **{unused: False})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"IPVRM has weights or buffers of its own \(scale\), which DistRL neither"):
        learned = IPVRM()
        learned.scale = torch.nn.Parameter(torch.ones(()))
        RewardModel(objective=learned)
    with pytest.raises(ValueError, match=r"reward.gradient_clip_val must be above 0"):
        RewardModel(objective=IPVRM(), gradient_clip_val=-1.0)
    for setting in ("epochs", "mini_batches", "max_pairs_per_prompt"):
        with pytest.raises(ValueError, match=f"reward.{setting} must be at least 1, found 0"):
            RewardModel(objective=IPVRM(), **{setting: 0})  # type: ignore[arg-type]


def test_alarms_name_what_is_wrong() -> None:
    alarms = Alarms(baseline=1, patience=2, max_kl=0.1)
    healthy = {"response_tokens": 100.0, "response_steps": 5.0, "approx_kl": 0.01, "reward/accuracy": 0.9}

    def sounding(metrics: dict[str, float]) -> set[str]:
        return {name for name, text in alarms.check(metrics).items() if text is not None}

    assert sounding(healthy) == set() and alarms.check(healthy).keys() == {"length", "steps", "kl", "reward_accuracy"}
    assert sounding({**healthy, "response_tokens": 201.0}) == {"length"}
    assert sounding({**healthy, "response_steps": 2.0, "approx_kl": 0.2}) == {"steps", "kl"}
    bad = {**healthy, "reward/accuracy": 0.4}
    assert sounding(bad) == set()
    assert alarms.check(bad)["reward_accuracy"] == "the reward model tells 40.0% of outcomes over 2 steps"


def test_the_distance_that_an_update_moved_the_policy_is_measured_after_it(tmp_path: Path) -> None:
    """On the responses of a step that are few enough to be all of the sample, against full logits of both policies."""
    model = module(reward=None, optimizer=partial(torch.optim.SGD, lr=0.05))
    collected = []
    collect = model.collect
    model.collect = lambda stream: collected.append(collect(stream)) or collected[-1]  # type: ignore[method-assign]
    _, steps = run(tmp_path, model, steps=1, data=TinyPrompts(batch_size=2))
    before, after = TinyPolicy().build_model(), model.roles.policy
    terms = []
    with torch.no_grad():
        for group in collected[0].kept:
            for attempt in group.attempts:
                ids = torch.tensor([[*group.prompt.input_ids, *attempt.input_ids]])
                start = len(group.prompt.input_ids)
                both = [m(input_ids=ids).logits[0, start - 1 : -1].log_softmax(-1) for m in (before, after)]
                old, new = (log_probs.gather(-1, ids[0, start:, None]).squeeze(-1) for log_probs in both)
                terms.append((new - old).exp() - 1 - (new - old))
    assert len(terms) == 8
    assert steps[0]["approx_kl"] == pytest.approx(float(torch.cat(terms).mean()), rel=1e-4)
    assert steps[0]["approx_kl"] > 1e-5


def test_reward_model_takes_as_many_steps_as_there_are_mini_batches(tmp_path: Path) -> None:
    """On mini-batches of one prompt each, in order: the same as a run of SGD over the prompts by hand."""
    reward = RewardModel(objective=IPVRM(), optimizer=partial(torch.optim.SGD, lr=0.05), mini_batches=8, epochs=2)
    model = module(reward=reward)
    seen: list[list[int]] = []
    run_step = model._step_on

    def recording(role: Any, parts: Any, *rest: Any) -> Any:
        parts = list(parts)
        if role == "reward":
            seen.append([row for part in parts for row in part.index.tolist()])
        return run_step(role, parts, *rest)

    model._step_on = recording  # type: ignore[method-assign]
    _, steps = run(tmp_path, model, steps=1)
    kept = int(steps[0]["kept_prompts"])
    assert len(seen) == 2 * kept and kept > 1
    assert [sorted(rows) for rows in seen] == [list(range(4 * n, 4 * n + 4)) for n in range(kept)] * 2


def test_a_prompt_that_comes_twice_in_a_step_gets_other_responses(tmp_path: Path) -> None:
    model = module(reward=None)
    collected = []
    collect = model.collect
    model.collect = lambda stream: collected.append(collect(stream)) or collected[-1]  # type: ignore[method-assign]
    run(tmp_path, model, steps=1, data=TinyPrompts(batch_size=4, count=2))
    groups = collected[0].sampled
    assert [group.prompt.id for group in groups[:4]].count("prompt 0") <= 2
    by_prompt: dict[tuple[int, ...], list[list[list[int]]]] = {}
    for group in groups:
        responses = [attempt.input_ids for attempt in group.attempts]
        by_prompt.setdefault(tuple(group.prompt.input_ids), []).append(responses)
    assert all(len(draws) > 1 and draws[0] != draws[1] for draws in by_prompt.values())
    assert len({group.prompt.id for group in groups}) == len(groups)


def test_a_policy_that_never_learns_stops_the_run_though_its_reward_model_does_learn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ipvrm_lightning.modules import distrl

    whole = distrl.policy_loss
    monkeypatch.setattr(distrl, "policy_loss", lambda *a, **o: (whole(*a, **o)[0] * float("inf"), {}))
    with pytest.raises(FloatingPointError, match="2 updates in a row were not finite"):
        run(tmp_path, module(update={"max_skipped_updates": 1}), steps=4)


def test_learning_rates_follow_the_run_and_are_logged(tmp_path: Path) -> None:
    reward = RewardModel(objective=IPVRM(), optimizer=SGD, scheduler=Schedule(name="constant_with_warmup", warmup=1.0))
    model = module(reward=reward, scheduler=Schedule(name="linear"), update={"mini_batches": 2})
    # two updates a step: the schedules count steps
    _, steps = run(tmp_path, model, steps=4)
    assert [step["lr"] for step in steps] == pytest.approx([0.5, 0.375, 0.25, 0.125])
    assert [step["reward/lr"] for step in steps] == pytest.approx([0.0, 0.125, 0.25, 0.375])


def test_the_time_of_a_step_is_that_of_its_parts_and_gives_the_tokens_per_second(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, limit_train_batches=1, limit_val_batches=0)
    started = time.perf_counter()
    trainer.fit(module(), datamodule=TinyPrompts())
    passed = time.perf_counter() - started
    found = {name.removeprefix("train/"): float(value) for name, value in trainer.callback_metrics.items()}
    step = found["seconds/step"]
    parts = ("sampling", "scoring", "reward_update", "reward", "policy")
    assert 0 < sum(found[f"seconds/{part}"] for part in parts) <= step <= passed
    assert found["tokens_per_second"] == pytest.approx(found["sampled_tokens"] / step)


@pytest.mark.parametrize("scheduler", [Schedule(name="linear"), Schedule(warmup=0.1)])
@pytest.mark.parametrize("bound", [{"max_time": {"hours": 1}}, {"max_steps": 8}], ids=["time", "updates"])
def test_a_schedule_over_a_run_of_unknown_length_is_refused(
    scheduler: Schedule, bound: dict[str, Any], tmp_path: Path
) -> None:
    """A step makes as many updates as it finds prompts for: how many steps `max_steps` leaves, nobody knows."""
    with pytest.raises(ValueError, match=r"follows the length of the run.*set trainer.max_epochs"):
        run(tmp_path, module(scheduler=scheduler), max_epochs=-1, **bound)


@pytest.mark.parametrize("warmup", [10, -1])
def test_a_warm_up_that_is_no_share_of_the_run_is_refused(warmup: float) -> None:
    with pytest.raises(ValueError, match=r"scheduler.warmup is a share of the run"):
        Schedule(warmup=warmup)


def test_a_frozen_reward_model_cannot_be_exchanged_when_the_run_goes_on(tmp_path: Path) -> None:
    data = InMemoryData()
    data.setup = lambda stage=None: _small_tokens(data)  # type: ignore[method-assign]
    trained = IPVRMModule(language_model=TinyPolicy(), objective=IPVRM(), optimizer=SGD)
    trainer = quiet_trainer(tmp_path, limit_val_batches=0)
    trainer.fit(trained, datamodule=data)
    file = tmp_path / "reward" / "run" / "checkpoints" / "last.ckpt"
    trainer.save_checkpoint(file)
    reward = RewardModel(objective=IPVRM(), checkpoint=str(tmp_path / "reward"), update="frozen")
    saved = ModelCheckpoint(tmp_path / "policy", every_n_train_steps=1, filename="{step}")
    run(tmp_path, module(reward=reward), steps=1, callbacks=[saved], enable_checkpointing=True)
    _resumed(tmp_path, module(reward=reward), tmp_path / "policy" / "step=1.ckpt")
    with torch.no_grad():
        next(iter(trained.trainable_parameters().values())).add_(0.1)
    trainer.save_checkpoint(file)
    with pytest.raises(ValueError, match=r"does not fit this config: reward.checkpoint is last.ckpt \w+ there"):
        _resumed(tmp_path, module(reward=reward), tmp_path / "policy" / "step=1.ckpt")


def test_a_ground_truth_that_cannot_be_read_is_refused_before_a_model_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ipvrm_lightning.rollouts import MathVerifier

    data = TinyPrompts()
    data.setup()
    data.train_prompts = [replace(data.train_prompts[0], ground_truth="\\frac{")]
    monkeypatch.setattr(data, "setup", lambda stage=None: None)
    monkeypatch.setattr(TinyPolicy, "build_model", lambda self: pytest.fail("a model was built"))
    with pytest.raises(ValueError, match="prompt 'prompt 0': ground truth cannot be read"):
        run(tmp_path, module(verifier=MathVerifier(workers=1)), data=data)
