from __future__ import annotations

import inspect
import random

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ipvrm_lightning.rollouts.sampler import sample_responses

from ..waits import waits

EOS, PAD, VOCABULARY = 1, 0, 23


def make_model(kind="qwen3", **fields):
    config = AutoConfig.for_model(
        kind,
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "intermediate_size": 48,
            "initializer_range": 0.3,
            "eos_token_id": EOS,
            "pad_token_id": PAD,
            **fields,
        },
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    generator = random.Random(0)
    return [[generator.randrange(2, VOCABULARY) for _ in range(length)] for length in (7, 1, 12, 4, 7, 20, 3)]


def sample(model, prompts, **options):
    defaults = {"max_new_tokens": 40, "eos_token_id": EOS, "pad_token_id": PAD}
    return sample_responses(model, prompts, **{**defaults, **options})


@pytest.mark.parametrize("sliding", [False, True])
def test_greedy_equals_generate(prompts, sliding: bool) -> None:
    model = make_model(**({"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1} if sliding else {}))
    rollouts = sample(model, prompts, temperature=0.0)
    endings = set()
    for prompt, (rollout,) in zip(prompts, rollouts, strict=True):
        ids = torch.tensor([prompt])
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40)
        assert rollout.input_ids == whole[0, len(prompt) :].tolist()
        assert rollout.finished == (rollout.input_ids[-1] == EOS)
        endings.add(len(rollout.input_ids))
    assert len(endings) > 1, "all responses are equally long: dropping finished rows is not tested"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_batching_changes_nothing(model, prompts, temperature: float) -> None:
    whole = sample(model, prompts, num_return_sequences=3, temperature=temperature)
    assert whole == sample(model, prompts, num_return_sequences=3, temperature=temperature, batch_size=4)
    assert whole == sample(model, prompts, num_return_sequences=3, temperature=temperature, batch_size=1)


def test_padding_shifts_no_position(prompts) -> None:
    """Of a model that learns its positions: rotary ones hold distances alone, which padding leaves as they are."""
    model = make_model("gpt2")
    whole = sample(model, prompts, num_return_sequences=2, max_new_tokens=12)
    assert whole == sample(model, prompts, num_return_sequences=2, max_new_tokens=12, batch_size=1)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_token_waits_for_the_device_once(model, prompts, temperature: float) -> None:
    counts = []
    for longest in (5, 15):
        with waits() as found:
            groups = sample(
                model, prompts, num_return_sequences=4, temperature=temperature, eos_token_id=4, max_new_tokens=longest
            )
        # too few for rows to be dropped, which waits as well
        assert 0 < sum(rollout.finished for group in groups for rollout in group) < 7
        counts.append(len(found))
    assert counts[1] - counts[0] == 10


def test_seeded_runs_repeat_and_differ_by_seed(model, prompts) -> None:
    first = sample(model, prompts, num_return_sequences=4, seed=5)
    assert first == sample(model, prompts, num_return_sequences=4, seed=5)
    assert first != sample(model, prompts, num_return_sequences=4, seed=6)
    assert len({tuple(rollout.input_ids) for rollout in first[0]}) == 4
    assert [len(group) for group in first] == [4] * len(prompts)


def test_responses_end_at_the_first_end_token(model, prompts) -> None:
    rollouts = [rollout for group in sample(model, prompts, num_return_sequences=16, seed=2) for rollout in group]
    assert {rollout.finished for rollout in rollouts} == {True, False}
    for rollout in rollouts:
        assert EOS not in rollout.input_ids[:-1]
        assert rollout.finished == (rollout.input_ids[-1] == EOS)
        assert rollout.finished or len(rollout.input_ids) == 40


def test_any_of_several_end_tokens_ends_a_response(model, prompts) -> None:
    other = 5
    plain, ended = (
        [rollout for group in sample(model, prompts, num_return_sequences=8, eos_token_id=ends) for rollout in group]
        for ends in (EOS, [EOS, other])
    )
    stopped = 0
    for before, after in zip(plain, ended, strict=True):
        ids = before.input_ids
        cut = ids[: ids.index(other) + 1] if other in ids else ids
        assert after.input_ids == cut and after.finished == (cut[-1] in (EOS, other))
        stopped += cut != ids
    assert stopped


def test_first_tokens_follow_the_models_probabilities(model, prompts) -> None:
    count = 4000
    for index, temperature, top_p in ((2, 1.0, 1.0), (0, 0.7, 1.0), (3, 1.0, 0.6)):
        (group,) = sample(
            model,
            [prompts[index]],
            num_return_sequences=count,
            max_new_tokens=1,
            temperature=temperature,
            top_p=top_p,
            batch_size=count,
        )
        with torch.no_grad():
            expected = (model(torch.tensor([prompts[index]])).logits[0, -1] / temperature).softmax(-1)
        if top_p < 1:
            order = expected.argsort(descending=True)
            size = int((expected[order].cumsum(0) < top_p).sum()) + 1
            kept = torch.zeros_like(expected).index_fill(0, order[:size], 1.0) * expected
            expected = kept / kept.sum()
        found = torch.bincount(torch.tensor([r.input_ids[0] for r in group]), minlength=VOCABULARY) / count
        # Four standard errors of a share
        assert ((found - expected).abs() <= 4 * (expected * (1 - expected) / count).sqrt() + 1e-9).all()


def test_later_tokens_come_from_the_full_forward_pass(model, prompts) -> None:
    """With the lowest temperature every token is the argmax of a forward pass without cache."""
    for prompt, (rollout,) in zip(prompts, sample(model, prompts, temperature=1e-4), strict=True):
        ids = torch.tensor([prompt + rollout.input_ids])
        with torch.no_grad():
            logits = model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(rollout.input_ids)[:, None]).squeeze(1)
        assert torch.allclose(chosen, logits.max(1).values, atol=1e-4)


RECURRENT = {
    "qwen3_5_text": {
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "falcon_h1": {  # a recurrent state and keys and values in each layer
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
        "mamba_d_ssm": 64,
        "mamba_chunk_size": 8,
    },
    "mamba": {"state_size": 4, "time_step_rank": 4},  # no attention at all
    "mamba2": {"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8},
}


@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_states_go_with_their_rows(kind: str, prompts) -> None:
    model = make_model(kind, **RECURRENT[kind])
    options = {"num_return_sequences": 2, "max_new_tokens": 12, "eos_token_id": list(range(1, 6))}
    together = sample(model, prompts, **options)
    assert together == sample(model, prompts, **options, batch_size=1)
    assert len({len(rollout.input_ids) for group in together for rollout in group}) > 3, "no rows are dropped"
    for prompt, (rollout,) in zip(prompts, sample(model, prompts, temperature=0.0, max_new_tokens=12), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + rollout.input_ids]), use_cache=False).logits[0]
        assert logits[len(prompt) - 1 : -1].argmax(1).tolist() == rollout.input_ids


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("rwkv", {"attention_hidden_size": 32}),
        ("recurrent_gemma", {"block_types": ["recurrent", "attention"], "lru_width": 32}),
    ],
)
def test_a_model_that_keeps_what_it_has_read_elsewhere_is_refused_by_name(kind: str, fields, prompts) -> None:
    with pytest.raises(ValueError, match=r"ForCausalLM cannot be sampled in this process: .* does not keep"):
        sample(make_model(kind, **fields), prompts)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_the_cache_goes_in_under_the_name_that_the_model_has_for_it(name: str, model, prompts, monkeypatch) -> None:
    forward, names = model.forward, []
    taken = "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"

    def renamed(cache=None, past_key_values=None, **inputs):
        names.extend(n for n, given in (("cache", cache), ("past_key_values", past_key_values)) if given is not None)
        return forward(**{taken: cache or past_key_values}, **inputs)

    if name == "past_key_values":
        renamed.__signature__ = inspect.Signature([inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY)])
    expected = sample(model, prompts)
    monkeypatch.setattr(model, "forward", renamed)
    assert sample(model, prompts) == expected
    assert set(names) == {name}


class Ruined(torch.nn.Module):
    """The output head of a model, with logits of some tokens replaced."""

    def __init__(self, head: torch.nn.Module, value: float, tokens: slice) -> None:
        super().__init__()
        self.head, self.value, self.tokens = head, value, tokens

    def forward(self, hidden):
        logits = self.head(hidden).clone()
        logits[..., self.tokens] = self.value
        return logits


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("value", "tokens"),
    [(float("nan"), slice(3, 4)), (float("inf"), slice(3, 4)), (float("-inf"), slice(None))],
    ids=["nan", "inf", "all -inf"],
)
def test_logits_without_probabilities_end_the_run(prompts, value: float, tokens: slice, temperature: float) -> None:
    model = make_model()
    model.lm_head = Ruined(model.lm_head, value, tokens)
    with pytest.raises(
        FloatingPointError, match="not finite at token 1 of a response to prompt 'b': the model's dtype"
    ):
        sample(model, prompts[:2], keys=["a", "b"], temperature=temperature)  # "b" is shorter and comes first


def test_one_response_that_breaks_late_ends_the_run(model, prompts, monkeypatch) -> None:
    forward, calls = model.forward, []

    def breaking(**inputs):
        output = forward(**inputs)
        calls.append(len(output.logits))
        if len(calls) == 5:  # one call looks at the cache, one reads the prompts
            output.logits[1] = float("nan")
        return output

    breaking.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(model, "forward", breaking)
    with pytest.raises(
        FloatingPointError, match="at token 4 of a response to prompt '6'"
    ):  # of the shortest two, 1 and 6
        sample(model, prompts, keys="0123456", batch_size=2, temperature=1e-3)


def test_single_tokens_may_be_ruled_out(prompts) -> None:
    model = make_model()
    model.lm_head = Ruined(model.lm_head, float("-inf"), slice(2, 20))
    rollouts = sample(model, prompts, num_return_sequences=4)
    assert {token for group in rollouts for rollout in group for token in rollout.input_ids} <= {0, 1, 20, 21, 22}


def test_a_row_that_has_ended_may_break(prompts) -> None:
    """What is read after the end of a response says nothing of it."""
    model = make_model()
    expected = sample(model, prompts, num_return_sequences=4)
    lengths = [len(rollout.input_ids) for group in expected for rollout in group if rollout.finished]
    assert len(lengths) > 3
    with torch.no_grad():
        model.get_input_embeddings().weight[EOS] = float("nan")
    assert sample(model, prompts, num_return_sequences=4) == expected


def test_pad_may_equal_eos(model, prompts) -> None:
    assert sample(model, prompts, seed=1) == sample(model, prompts, seed=1, pad_token_id=EOS)


def test_mode_and_global_random_state_are_kept(model, prompts) -> None:
    model.train()
    state = torch.get_rng_state()
    reported: list[int] = []
    sample(model, prompts, num_return_sequences=2, batch_size=5, on_progress=reported.append)
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    assert reported == [5, 5, 4]
    model.eval()
    sample(model, prompts)
    assert not model.training
    modes = []
    model.train()
    with model.register_forward_pre_hook(lambda module, inputs: modes.append(module.training)):
        sample(model, prompts)  # with dropout it would be another policy that answers
    assert modes and not any(modes)
    model.eval()
    with pytest.raises(ValueError, match="2 keys for 7 prompts"):
        sample(model, prompts, keys=["a", "b"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": [[3], []]}, r"prompts\[1\]: empty prompt"),
        ({"max_new_tokens": 0}, "max_new_tokens: expected at least 1, found 0"),
        ({"num_return_sequences": 0}, "num_return_sequences"),
        ({"top_p": 0.0}, "top_p"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"eos_token_id": [EOS, 23], "pad_token_id": EOS}, "token 23 .* embeddings for 23 tokens: its"),
        ({"pad_token_id": 99}, "token 99 .* embeddings for 23 tokens"),
    ],
)
def test_bad_settings_are_refused(model, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(model, **{"prompts": [[3]], **options})
