"""`PrefixValueModel`: its numbers are those of test runs, and what would change them in silence is refused."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ipvrm_lightning.data import DataError, TrajectoryDataset, collate, encode_steps
from ipvrm_lightning.exporting import export_checkpoint
from ipvrm_lightning.models import PretrainedLanguageModel, RandomLanguageModel
from ipvrm_lightning.models.exported import ModelSource
from ipvrm_lightning.models.logprobs import response_scores
from ipvrm_lightning.objectives import IPVRM, QRM, EndoRM, ImplicitPRM
from ipvrm_lightning.pretrained import load_tokenizer
from ipvrm_lightning.scoring import Layout, PrefixValueModel, ScoreRequest, SolutionScore, describe
from ipvrm_lightning.scoring.description import Description, Part
from ipvrm_lightning.scoring.encoding import SolutionEncoder
from ipvrm_lightning.types import Example

from ..conftest import REPOSITORY
from ..exporting.runs import fit, save_model
from ..exporting.test_export import distrl_run
from .conftest import Judged


def requests(judged: Judged) -> list[ScoreRequest]:
    return [ScoreRequest(row["problem"], row["steps"], row["id"]) for row in judged.rows]


def plain(score: SolutionScore) -> list[float]:
    numbers = [score.final_value]
    for step in score.steps:
        numbers += [step.value, step.probability, step.td_advantage, *step.scores.values()]
    return numbers


def log_probs(folder: str, examples: Sequence[Example]) -> torch.Tensor:
    model = PretrainedLanguageModel(name=folder).build_model().eval()
    dataset = TrajectoryDataset(examples)
    with torch.no_grad():
        return response_scores(model, collate(dataset, range(len(dataset)))).log_probs.double()


@pytest.fixture(scope="module")
def scorer(judged: Judged) -> PrefixValueModel:
    return PrefixValueModel.from_pretrained(judged.export, device="cpu", max_tokens=900)


def test_numbers_are_those_of_test_and_predict(judged: Judged, scorer: PrefixValueModel) -> None:
    assert scorer.description.layout == Layout("chat", "Be brief.", "({number}) {step}", ";")
    for score in scorer.score_many(requests(judged), tokens=True):
        assert score.id is not None and score.tokens is not None
        tested, predicted = judged.tested[score.id], judged.predicted[score.id]
        assert score.final_value == pytest.approx(tested["final_value"], abs=1e-6)
        for protocol in ("step_sum", "prefix_sum", "prefix_mean", "step_mean"):
            own = [step.scores[protocol] for step in score.steps]
            assert own == pytest.approx(tested["step_scores"][protocol], abs=1e-6)
            assert own == pytest.approx(predicted["step_scores"][protocol], abs=1e-6)
        assert [token.value for token in score.tokens] == pytest.approx(predicted["values"], abs=1e-6)
        assert [token.td_advantage for token in score.tokens] == pytest.approx(predicted["td_advantages"], abs=1e-6)
        assert [token.step for token in score.tokens] == predicted["step_ids"]
    assert any(abs(line["final_value"]) > 1e-3 for line in judged.tested.values()), "nothing was trained"


def test_the_verdict_is_the_first_step_below_the_export_s_threshold(judged: Judged, scorer: PrefixValueModel) -> None:
    recorded = json.loads((Path(judged.export) / "ipvrm_config.json").read_text())["thresholds"]["step_sum"]["value"]
    assert scorer.description.threshold == recorded
    for score in scorer.score_many(requests(judged)):
        below = [step.index for step in score.steps if step.scores["step_sum"] < recorded]
        assert score.first_error == (below[0] if below else -1) and score.threshold == recorded
        assert [step.index for step in score.steps if step.is_first_error] == below[:1]
    low = PrefixValueModel.from_pretrained(judged.export, threshold=-1e9, protocol="prefix_mean")
    assert low.score("1?", ["2"]).first_error == -1
    other = describe(judged.export).read_as(layout=Layout(), protocol=None, threshold=None)
    assert other.threshold is None, "it was chosen for another layout"
    own = describe(judged.export).read_as(layout=scorer.description.layout, protocol=None, threshold=None)
    assert own.threshold == scorer.description.threshold is not None


def test_batches_windows_and_order_change_nothing(judged: Judged, scorer: PrefixValueModel) -> None:
    together = {score.id: plain(score) for score in scorer.score_many(requests(judged))}
    shuffled = random.Random(0).sample(requests(judged), len(judged.rows))
    streamed = list(scorer.stream(iter(shuffled), window=3, tokens=True))
    assert all(score.tokens for score in streamed)
    assert [score.id for score in streamed] == [request.id for request in shuffled]
    alone = [(request.id, scorer.score(request.problem, request.steps)) for request in shuffled[:4]]
    for name, score in [*((score.id, score) for score in streamed), *alone]:
        # sums in float32, some of them near 70
        assert plain(score) == pytest.approx(together[name], rel=1e-5, abs=1e-5)
    assert scorer.score_many([]) == []
    with pytest.raises(ValueError, match="window must be at least 1, found 0"):
        list(scorer.stream(requests(judged), window=0))


def test_tokens_spell_the_solution_and_add_up(judged: Judged, scorer: PrefixValueModel) -> None:
    (score,) = scorer.score_many([ScoreRequest("1?", ["é = {x}", "日本"])], tokens=True)
    assert score.tokens is not None
    assert "".join(token.text for token in score.tokens) == "(1) é = {x};(2) 日本<|im_end|>"
    total = 0.0
    for position, token in enumerate(score.tokens, 1):
        total += token.td_advantage
        assert token.value == pytest.approx(total / position, abs=1e-5)
    for step in score.steps:
        own = math.fsum(token.td_advantage for token in score.tokens if token.step == step.index)
        assert step.td_advantage == pytest.approx(own, abs=1e-5)
        assert step.value == pytest.approx(step.scores["prefix_mean"], abs=1e-6)
        assert step.probability == pytest.approx(1 / (1 + math.exp(-step.value)), abs=1e-9)
    assert score.tokens[-1].step == -1 and score.final_value == score.tokens[-1].value
    assert json.loads(json.dumps(score.to_dict()))["tokens"][0]["step"] == 0
    assert "tokens" not in scorer.score("1?", ["2"]).to_dict()


def test_candidates_are_ranked(scorer: PrefixValueModel) -> None:
    candidates = [["add", "so 2"], "(1) add\n\n(2) so 2", ["it is 3"], "first\n \n\nsecond\n\nthird"]
    by_value = scorer.rank("1 + 1?", candidates)
    assert [one.value for one in by_value] == sorted((one.score.final_value for one in by_value), reverse=True)
    assert sorted(one.index for one in by_value) == [0, 1, 2, 3]
    same = [one.value for one in by_value if one.index < 2]
    assert same[0] == pytest.approx(same[1], abs=1e-6)
    assert scorer.score("1 + 1?", candidates[1]).final_value == pytest.approx(same[0], abs=1e-6)
    assert len({one.index: one for one in by_value}[3].score.steps) == 3
    for by, reduce in (("min_step", min), ("mean_step", lambda values: math.fsum(values) / len(values))):
        ranked = scorer.rank("1 + 1?", candidates, by=by)  # type: ignore[arg-type]
        for one in ranked:
            assert one.value == pytest.approx(reduce([step.scores["step_sum"] for step in one.score.steps]))
        assert [one.value for one in ranked] == sorted((one.value for one in ranked), reverse=True)
    with pytest.raises(ValueError, match="by must be one of final_value, min_step, mean_step"):
        scorer.rank("1?", [["2"]], by="best")  # type: ignore[arg-type]


def test_a_whole_model_takes_the_recorded_reference(judged: Judged, full_export: str, copied_base: Path) -> None:
    # a base in half precision is read in that of the model, or its rounding would enter the ratios
    assert (describe(full_export).dtype, describe(full_export, dtype="bfloat16").dtype) == ("float32", "bfloat16")
    found = PrefixValueModel.from_pretrained(full_export).score("1?", ["add", "so 2"], tokens=True)
    tokenizer = load_tokenizer(full_export)
    encoded = encode_steps(tokenizer, "1?", ["add", "so 2"])
    example = Example(encoded.input_ids, encoded.response_start, "")
    ratios = (log_probs(full_export, [example]) - log_probs(judged.base, [example]))[0]
    assert found.tokens is not None
    assert [token.td_advantage for token in found.tokens] == pytest.approx((10 * ratios).tolist(), abs=1e-4)
    moved = PrefixValueModel.from_pretrained(full_export, reference=str(copied_base)).score("1?", ["add", "so 2"])
    assert plain(moved) == plain(found)
    damage(copied_base)
    with pytest.raises(ValueError, match=r"copied: its weights are not those that the export names"):
        PrefixValueModel.from_pretrained(full_export, reference=str(copied_base))


def test_an_adapter_is_refused_on_other_weights(judged: Judged, scorer: PrefixValueModel, copied_base: Path) -> None:
    moved = PrefixValueModel.from_pretrained(judged.export, reference=str(copied_base))
    assert plain(moved.score("1?", ["2"])) == plain(scorer.score("1?", ["2"]))
    damage(copied_base)
    with pytest.raises(ValueError, match=r"its weights are not those that the export names"):
        PrefixValueModel.from_pretrained(judged.export, reference=str(copied_base))


@pytest.mark.parametrize("part", ["reference", "base"])
def test_a_model_that_an_export_names_and_that_is_gone_is_asked_for(
    part: str, judged: Judged, full_export: str, tmp_path: Path
) -> None:
    export = Path(shutil.copytree(full_export if part == "reference" else judged.export, tmp_path / "export"))
    record = json.loads((export / "ipvrm_config.json").read_text())
    gone = record[part]["name"] = str(tmp_path / "gone")
    (export / "ipvrm_config.json").write_text(json.dumps(record))
    said = f"{gone}, which {export} was trained from, is not there: say where it is now by reference (--reference)"
    with pytest.raises(FileNotFoundError, match=re.escape(said)):
        describe(str(export))
    assert describe(str(export), reference=judged.base)


def damage(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = max(weights)
    weights[name] = weights[name] + 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_value_head_is_read(judged: Judged, tmp_path: Path, real_inputs: dict[str, str]) -> None:
    from transformers import AutoModelForCausalLM

    run = fit(tmp_path, judged.base, real_inputs, lora=False, objective="qrm")
    out = export_checkpoint(run, tmp_path / "out")
    found = PrefixValueModel.from_pretrained(str(out)).score("1?", ["add", "so 2"])
    encoded = encode_steps(load_tokenizer(str(out)), "1?", ["add", "so 2"])
    model = AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():
        states = model(torch.tensor([encoded.input_ids]), output_hidden_states=True).hidden_states[-1][0]
    head = load_file(out / "value_head.safetensors")
    values = (states @ head["weight"][0])[encoded.response_start :]
    assert found.final_value == pytest.approx(0.2 * values.mean().item(), abs=1e-5)
    with pytest.raises(ValueError, match="QRM takes no reference"):
        describe(str(out), reference=judged.base)
    (out / "value_head.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no value_head\.safetensors"):
        describe(str(out))


def test_a_value_head_is_as_wide_as_what_the_output_head_reads(tmp_path: Path) -> None:
    """OPT-350m makes its states narrower before the output head."""
    config = {"model_type": "opt", "hidden_size": 32, "word_embed_proj_dim": 16, "ffn_dim": 48, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 4, "vocab_size": 97, "max_position_embeddings": 64, "do_layer_norm_before": False}
    RandomLanguageModel(config=config).build_model().save_pretrained(tmp_path)
    save_file({"weight": torch.ones(1, 16)}, tmp_path / "value_head")
    source = ModelSource(str(tmp_path))
    description = Description("opt", Part(source), source, QRM(), value_head=tmp_path / "value_head")
    encoder = SolutionEncoder(None, description.layout)  # type: ignore[arg-type]
    batch = collate(TrajectoryDataset([Example([3, 4, 5, 6], 2, "group", 1)]), [0])
    found = PrefixValueModel(description, encoder=encoder).token_scores(batch)
    assert found.scores.shape == (1, 2)


@pytest.mark.parametrize("lora", [True, False])
def test_a_reward_model_of_distrl_is_read_against_its_policy(lora: bool, judged: Judged, tmp_path: Path) -> None:
    base = str(shutil.copytree(judged.base, tmp_path / "base"))
    run, _ = distrl_run(tmp_path, base, lora=lora, reference="behavior")
    reward = export_checkpoint(run, tmp_path / "reward", part="reward")
    models = {}
    for part in ("policy", "reward"):
        merged = export_checkpoint(run, tmp_path / f"merged-{part}", part=part, merge=True)  # type: ignore[arg-type]
        models[part] = PretrainedLanguageModel(name=str(merged)).build_model().eval()
    encoded = encode_steps(load_tokenizer(base), "1?", ["add", "so 2"])
    batch = collate(TrajectoryDataset([Example(encoded.input_ids, encoded.response_start, "")]), [0])
    with torch.no_grad():
        own, other = (response_scores(models[part], batch, temperature=0.7).log_probs for part in ("reward", "policy"))
    with pytest.raises(ValueError, match="is an export of a policy: say how its log-ratios read"):
        describe(str(tmp_path / "merged-policy"))
    found = PrefixValueModel.from_pretrained(str(reward)).score("1?", ["add", "so 2"], tokens=True)
    assert found.tokens is not None
    expected = (3 * (own - other))[0].tolist()
    assert [token.td_advantage for token in found.tokens] == pytest.approx(expected, abs=1e-4)
    assert max(map(abs, expected)) > 1e-3
    moved = shutil.move(base, tmp_path / "moved")
    if lora:  # two adapters on one base
        with pytest.raises(FileNotFoundError, match=f"{re.escape(base)}, which .* was trained from, is not there"):
            describe(str(reward))
        scorer = PrefixValueModel.from_pretrained(str(reward), reference=str(moved))
        assert scorer.score("1?", ["add", "so 2"], tokens=True).tokens == found.tokens
    else:
        with pytest.raises(ValueError, match=r"reward: its reference lies in its folder reference, .* reference out"):
            describe(str(reward), reference=str(moved))


def test_any_pair_of_models_can_be_scored(
    judged: Judged,
    tmp_path: Path,
    scorer: PrefixValueModel,
    real_inputs: dict[str, str],
) -> None:
    other = save_model(tmp_path / "other", real_inputs["tokenizer"], seed=1)
    objective = ImplicitPRM(beta=0.05)
    options: dict[str, Any] = {"reference": judged.base, "layout": Layout("plain", step_template="{step}")}
    found = PrefixValueModel.from_pretrained(other, objective=objective, threshold=0.0, **options)
    score = found.score("1 + 1?", ["add", "so 2"])
    encoded = encode_steps(
        load_tokenizer(other), "1 + 1?", ["add", "so 2"], step_template="{step}", prompt_format="plain"
    )
    example = Example(encoded.input_ids, encoded.response_start, "")
    ratios = 0.05 * (log_probs(other, [example]) - log_probs(judged.base, [example]))[0]
    assert score.final_value == pytest.approx(ratios.sum().item(), abs=1e-5)
    assert score.steps[0].td_advantage == pytest.approx(ratios[: len("add\n\n")].sum().item(), abs=1e-5)
    # an adapter of PEFT that is no export of ours: its base with the adapter off is the reference
    adapter = tmp_path / "adapter"
    shutil.copytree(judged.export, adapter, ignore=shutil.ignore_patterns("ipvrm_config.json"))
    read = PrefixValueModel.from_pretrained(str(adapter), beta=10.0, layout=scorer.description.layout)
    assert plain(read.score("1?", ["2"])) == plain(scorer.score("1?", ["2"]))
    assert describe(str(adapter), beta=10.0).tokenizer.name == str(adapter)  # it brings one of its own
    (adapter / "tokenizer_config.json").unlink()
    assert describe(str(adapter), beta=10.0).tokenizer.name == judged.base
    given = PrefixValueModel.from_pretrained(
        str(adapter), beta=10.0, reference=judged.base, layout=scorer.description.layout
    )
    assert plain(given.score("1?", ["2"])) == pytest.approx(plain(scorer.score("1?", ["2"])), abs=1e-5)
    assert PrefixValueModel.from_pretrained(other, objective=EndoRM()).score("1?", ["2"]).first_error is None
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "revision": "0a1b"}))
    assert describe(str(adapter), beta=10.0).reward.model.revision == "0a1b"


def test_gguf_files_are_named_by_path_or_by_file(
    judged: Judged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ipvrm_lightning.scoring.description.check_place", lambda name: None)  # there is no such thing
    for given in (
        describe("owner/name/q8.gguf", beta=1.0, reference=f"{tmp_path}/ref.gguf"),
        describe("owner/name", gguf_file="q8.gguf", beta=1.0, reference=f"{tmp_path}/ref.gguf"),
    ):
        assert (given.reward.model.name, given.reward.model.gguf_file) == ("owner/name", "q8.gguf")
        assert given.tokenizer.gguf_file == "q8.gguf" and given.reference is not None
        assert (given.reference.model.name, given.reference.model.gguf_file) == (str(tmp_path), "ref.gguf")
    here = describe("q8.gguf", objective=EndoRM()).reward.model
    assert (here.name, here.gguf_file) == (".", "q8.gguf")


def test_what_does_not_go_together_is_refused(judged: Judged, full_export: str, tmp_path: Path) -> None:
    for arguments, message in (
        ({"name": judged.base}, "is no export of ipvrm .* by beta or an objective"),
        ({"name": judged.base, "beta": 1.0}, r"say which model its log-ratios are taken against \(reference\)"),
        ({"name": judged.base, "beta": 1.0, "reference": judged.base}, "the reference is the model itself"),
        ({"name": judged.base, "objective": EndoRM(), "reference": full_export}, "EndoRM takes no reference"),
        ({"name": judged.base, "objective": QRM()}, "QRM reads a value head, which only an export of ipvrm has"),
        ({"name": judged.export, "beta": 1.0}, "is an export, .* leave beta out"),
        ({"name": judged.export, "gguf_file": "q8.gguf"}, r"weights of its own: leave q8\.gguf out"),
        ({"name": judged.base, "beta": 1.0, "objective": EndoRM()}, r"beta or an objective.*, not both"),
        ({"name": judged.base, "beta": 1.0, "dtype": "int8"}, "dtype must be"),
        ({"name": str(tmp_path / "nothing"), "beta": 1.0}, "no such file or folder"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            describe(**arguments)  # type: ignore[arg-type]
    (link := tmp_path / "link").symlink_to(judged.base)
    for same in (f"{judged.base}/", f"{judged.base}/../{Path(judged.base).name}", str(link)):
        with pytest.raises(ValueError, match="the reference is the model itself, so that every value would be 0"):
            describe(judged.base, beta=1.0, reference=same, revision="main")
    with pytest.raises(ValueError, match="protocol must be one of"):
        describe(judged.export).read_as(layout=None, protocol="sum", threshold=None)
    with pytest.raises(ValueError, match="threshold must be a finite number, found nan"):
        describe(judged.export).read_as(layout=None, protocol=None, threshold=math.nan)
    foreign = Path(shutil.copytree(judged.export, tmp_path / "foreign"))
    config = json.loads((foreign / "ipvrm_config.json").read_text())
    for kind, message in (
        ("os.system", r"objective os\.system is code of its own"),
        ("ipvrm_lightning.objectives.inspect.getmodule", "it is no objective"),
    ):
        config["objective"]["class_path"] = kind
        (foreign / "ipvrm_config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=message):
            describe(str(foreign))
    nested = {"class_path": "os.system", "init_args": {}}
    for beta in (nested, [1.0, nested]):
        config["objective"] = IPVRM().describe() | {"init_args": {"beta": beta}}
        (foreign / "ipvrm_config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r"objective os\.system is code of its own"):
            describe(str(foreign))
    config["objective"] = {"class_path": "ipvrm_lightning.modules.ipvrm.IPVRM", "init_args": {"beta": 3.0}}
    (foreign / "ipvrm_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="is code of its own, which is run with trust_remote_code alone"):
        describe(str(foreign))
    trusted = describe(str(foreign), trust_remote_code=True)
    assert trusted.objective.beta == 3.0 and trusted.trust_remote_code
    for option in ("max_tokens", "chunk_size"):
        with pytest.raises(ValueError, match="max_tokens and chunk_size must be at least 1, found"):
            PrefixValueModel.from_pretrained(judged.export, **{option: 0})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="device nowhere cannot be used"):
        PrefixValueModel.from_pretrained(judged.export, device="nowhere")
    for device in ("mps", torch.device("mps:0")):
        with pytest.raises(ValueError, match="Apple's GPU has no float64"):
            PrefixValueModel.from_pretrained(judged.export, device=device)


def test_a_reference_with_another_vocabulary_is_refused(
    judged: Judged,
    copied_base: Path,
    tmp_path: Path,
    real_inputs: dict[str, str],
) -> None:
    other = save_model(tmp_path / "other", real_inputs["tokenizer"], seed=1)
    file = copied_base / "tokenizer.json"
    stored = json.loads(file.read_text())
    vocabulary = stored["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=r"copied has another vocabulary than .*other: token \d+ is 'a' here and 'b'"):
        PrefixValueModel.from_pretrained(other, beta=1.0, reference=str(copied_base))
    # a token that the model alone has
    shutil.copy(Path(judged.base) / "tokenizer.json", file)
    stored = json.loads((Path(other) / "tokenizer.json").read_text())
    last = stored["added_tokens"][-1]
    stored["added_tokens"].append({**last, "id": last["id"] + 1, "content": "<think>", "special": False})
    (Path(other) / "tokenizer.json").write_text(json.dumps(stored))
    scorer = PrefixValueModel.from_pretrained(other, beta=1.0, reference=str(copied_base))
    assert math.isfinite(scorer.score("1?", ["2"]).final_value)
    with pytest.raises(DataError, match=r"solution 0, field 'steps': .*reference does not have, found '<think>'"):
        scorer.score("1?", ["2 <think>"])
    # no tokenizer to compare: then the sizes tell
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copied_base / name).unlink()
    assert PrefixValueModel.from_pretrained(other, beta=1.0, reference=str(copied_base))
    config = json.loads((copied_base / "config.json").read_text())
    (copied_base / "config.json").write_text(json.dumps({**config, "vocab_size": 280}))
    weights = load_file(copied_base / "model.safetensors")
    weights = {name: weight[:280].clone() if len(weight) == 300 else weight for name, weight in weights.items()}
    save_file(weights, copied_base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"another vocabulary than .*: 280 tokens against 300"):
        PrefixValueModel.from_pretrained(other, beta=1.0, reference=str(copied_base))


def test_solutions_that_cannot_be_read_as_they_are_are_refused_by_name(
    scorer: PrefixValueModel, judged: Judged
) -> None:
    for request, message in (
        (ScoreRequest("1?", [], "a"), "solution 'a', field 'steps': empty list"),
        (ScoreRequest("1?", ["x", " "]), r"solution 0, field 'steps\[1\]': empty step"),
        (ScoreRequest(" ", ["x"]), "solution 0, field 'problem': empty text"),
        (ScoreRequest("1?", ["x<|im_end|>"]), "the text holds the token that ends a response"),
        (ScoreRequest("1?", ["\ud800"]), "surrogate"),
    ):
        with pytest.raises(DataError, match=message):
            scorer.score_many([request])
    with pytest.raises(DataError, match="solution 3, field 'steps': empty list"):
        list(scorer.stream([*[ScoreRequest("1?", ["x"])] * 3, ScoreRequest("1?", [])], window=2))
    short = PrefixValueModel(scorer.description, max_length=60)
    with pytest.raises(DataError, match=r"solution 'long', field 'steps': longer than the 60 tokens .* found \d+"):
        short.score_many([ScoreRequest("1?", ["x" * 60], "long")])
    rewriting = PrefixValueModel(replace(scorer.description))
    rewriting.encoder.tokenizer.chat_template = (
        "{% for m in messages %}{{ loop.length }}{{ m.content }}<|im_end|>{% endfor %}"
    )
    with pytest.raises(DataError, match="is no prefix of the whole"):
        rewriting.score("1?", ["2"])


def test_the_readme_s_python_runs(judged: Judged) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    (block,) = [block for block in blocks if "from_pretrained" in block]
    scope: dict[str, Any] = {}
    exec(block.replace("my-reward-model", judged.export), scope)
    assert len(scope["score"].steps) == 2 and scope["best"].index in (0, 1)


def test_what_is_longer_than_the_model_can_read_is_refused(copied_base: Path, judged: Judged) -> None:
    config = json.loads((copied_base / "config.json").read_text())
    (copied_base / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 64}))
    scorer = PrefixValueModel.from_pretrained(str(copied_base), objective=EndoRM(), layout=Layout("plain"))
    assert scorer.encoder.max_length == 64
    (shortest,) = scorer.encoder.encode([ScoreRequest("1?", ["x"])])
    room = 64 - len(shortest.example.input_ids)
    (longest,) = scorer.encoder.encode([ScoreRequest("1?", ["x" * (1 + room)])])
    assert len(longest.example.input_ids) == 64
    assert math.isfinite(scorer.score("1?", ["x" * (1 + room)]).final_value)
    with pytest.raises(DataError, match="longer than the 64 tokens"):
        scorer.score("1?", ["x" * (2 + room)])
