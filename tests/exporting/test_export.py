from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule

from ipvrm_lightning.callbacks.run_record import run_facts
from ipvrm_lightning.cli import main
from ipvrm_lightning.data.dataset import TrajectoryDataset, collate
from ipvrm_lightning.exporting import export_checkpoint
from ipvrm_lightning.exporting.card import model_card
from ipvrm_lightning.exporting.folder import _put_in_place
from ipvrm_lightning.exporting.record import _base, read_results, thresholds
from ipvrm_lightning.exporting.source import find_run, model_weights
from ipvrm_lightning.models import LoRA, PretrainedLanguageModel
from ipvrm_lightning.models.exported import ExportedConfig, Layout, ModelSource, Threshold, read_exported_config
from ipvrm_lightning.models.frozen import load_frozen
from ipvrm_lightning.models.logprobs import response_scores
from ipvrm_lightning.models.reference import weights_fingerprint
from ipvrm_lightning.models.roles import build_roles
from ipvrm_lightning.objectives import IPVRM, QRM
from ipvrm_lightning.scoring import PrefixValueModel

from ..conftest import REPOSITORY
from ..modules.conftest import make_examples
from ..test_cli import real_inputs  # noqa: F401
from .runs import VOCABULARY, fit, save_model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, real_inputs: dict[str, str]) -> str:  # noqa: F811
    return save_model(tmp_path_factory.mktemp("base"), real_inputs["tokenizer"])


def fingerprint(folder: str) -> str:
    return weights_fingerprint(PretrainedLanguageModel(name=folder).build_model(), with_config=False)


def scores(model: Any) -> torch.Tensor:
    dataset = TrajectoryDataset(make_examples(6))
    with torch.no_grad():
        return response_scores(model.eval(), collate(dataset, range(6))).log_probs


def distrl_run(folder: Path, base: str, *, lora: bool, reference: str) -> tuple[Path, dict[str, torch.Tensor]]:
    """A run of DistRL as its module saves it, with random updates; and what its models say."""
    arguments = {"name": base, "lora": {"r": 4} if lora else None}
    factory = PretrainedLanguageModel(name=base, lora=LoRA(r=4) if lora else None)
    roles = build_roles(factory)
    roles.add_reward()
    state: dict[str, torch.Tensor] = {}
    for role in ("policy", "reward"):
        for name, parameter in roles.trained(role).items():  # type: ignore[arg-type]
            parameter.data += 0.05 * torch.randn_like(parameter)
            state[f"roles.{name}"] = parameter.data
    expected = {}
    for role in ("policy", "reward"):
        with roles.use(role) as model:  # type: ignore[arg-type]
            expected[role] = scores(model)
    run = folder / "run"
    (run / "checkpoints").mkdir(parents=True)
    settings = {"reward": {"objective": IPVRM(beta=3.0).describe(), "update": "before"}}
    torch.save({"state_dict": state, "settings": settings}, run / "checkpoints" / "last.ckpt")
    language_model = {"class_path": "ipvrm_lightning.models.PretrainedLanguageModel", "init_args": arguments}
    model_arguments = {
        "language_model": language_model,
        "reward": {"reference": reference},
        "sampling": {"temperature": 0.7},
    }
    config = {"model": {"class_path": "ipvrm_lightning.modules.DistRLModule", "init_args": model_arguments}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    return run, expected


def trained(run: Path, base: str, *, lora: bool) -> Any:
    """The model as training left it, put together here."""
    model = PretrainedLanguageModel(name=base, lora=LoRA(r=4) if lora else None).build_model()
    state = torch.load(find_run(run).checkpoint, weights_only=True)["state_dict"]
    _, unexpected = model.load_state_dict(model_weights(state, "policy"), strict=False)
    assert not unexpected
    return model


def test_full_models_come_back_exactly(tmp_path: Path, base: str, real_inputs: dict[str, str]) -> None:  # noqa: F811
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = fit(tmp_path, base, real_inputs, lora=False)
    out = export_checkpoint(tmp_path, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(out)
    expected = scores(trained(run, base, lora=False))
    assert torch.equal(scores(model), expected)
    original = AutoModelForCausalLM.from_pretrained(base)
    assert not torch.equal(scores(original), expected)
    assert model.config.use_cache and AutoTokenizer.from_pretrained(out).chat_template
    record = json.loads((out / "ipvrm_config.json").read_text())
    assert record["objective"]["init_args"]["beta"] == 10.0 and record["objective"]["init_args"]["margin"] == 5.0
    recorded = read_exported_config(out / "ipvrm_config.json")
    assert recorded.reference == recorded.base == ModelSource(base, weights=fingerprint(base))
    assert recorded.layout == Layout(prompt_format="chat") and recorded.kind == "model"
    assert not (out / "value_head.safetensors").exists()
    (link := tmp_path / "link").symlink_to(out)
    export_checkpoint(run, link, overwrite=True)
    assert link.is_symlink() and (out / "model.safetensors").stat().st_mode == (out / "config.json").stat().st_mode
    inside = export_checkpoint(run, tmp_path / "inside", with_reference=True, protocol="prefix_mean")
    recorded = read_exported_config(inside / "ipvrm_config.json")
    assert recorded.reference == ModelSource("reference", weights=fingerprint(base))
    assert recorded.protocol == "prefix_mean"
    reference = load_frozen(ModelSource(str(inside / "reference"), weights=fingerprint(base)))
    assert torch.equal(scores(reference), scores(original))
    card = (out / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["base_model"] == base
    assert "beta 10.0, margin 5.0" in card and real_inputs["rollouts"] in card


def test_adapters_come_back_exactly_and_merged_ones_closely(
    tmp_path: Path,
    base: str,
    real_inputs: dict[str, str],  # noqa: F811
) -> None:
    from peft import AutoPeftModelForCausalLM
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    run = fit(tmp_path, base, real_inputs, lora=True)
    expected = scores(trained(run, base, lora=True))
    alone = export_checkpoint(run, tmp_path / "alone")
    assert not (alone / "model.safetensors").exists()
    loaded = AutoPeftModelForCausalLM.from_pretrained(alone)
    assert torch.equal(scores(loaded), expected)
    with loaded.disable_adapter():
        assert torch.equal(scores(loaded), scores(AutoModelForCausalLM.from_pretrained(base)))
    recorded = read_exported_config(alone / "ipvrm_config.json")
    assert recorded.reference == "adapters_off" and recorded.kind == "adapter"
    assert recorded.base == ModelSource(base, weights=fingerprint(base))
    frozen = load_frozen(recorded.base, adapter=str(alone))
    assert torch.equal(scores(frozen), expected)
    merged = export_checkpoint(run, tmp_path / "merged", merge=True)
    torch.testing.assert_close(scores(AutoModelForCausalLM.from_pretrained(merged)), expected, rtol=0, atol=1e-5)
    assert read_exported_config(merged / "ipvrm_config.json").reference == recorded.base
    with pytest.raises(ValueError, match=r"its weights are not those that the export names"):
        load_frozen(ModelSource(base, weights="0" * 24))
    file = alone / "adapter_model.safetensors"
    weights = load_file(file)
    name = min(weights)
    save_file({key: weight for key, weight in weights.items() if key != name}, file)
    with pytest.raises(ValueError, match=rf"does not fit .*{name} is missing"):
        load_frozen(recorded.base, adapter=str(alone))


def test_an_adapter_on_half_precision_is_merged_in_float32_and_so_is_its_reference_read(
    tmp_path: Path, base: str
) -> None:
    run, _ = distrl_run(tmp_path, base, lora=True, reference="sft")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["init_args"]["language_model"]["init_args"]["dtype"] = "bfloat16"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    alone = export_checkpoint(run, tmp_path / "alone", part="reward")
    merged = export_checkpoint(run, tmp_path / "merged", part="reward", merge=True)
    source = read_exported_config(alone / "ipvrm_config.json").base
    expected = [load_frozen(source, adapter=adapter, dtype="float32") for adapter in (str(alone), None)]
    scorer = PrefixValueModel.from_pretrained(str(merged), device="cpu")
    for model, exact in zip((scorer.model, scorer.reference), expected, strict=True):
        torch.testing.assert_close(scores(model), scores(exact), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["qwen3", "phi"])  # whose output head has a bias
def test_a_value_head_comes_along(kind: str, tmp_path: Path, real_inputs: dict[str, str]) -> None:  # noqa: F811
    from safetensors.torch import load_file

    base = save_model(tmp_path / "base", real_inputs["tokenizer"], config={**VOCABULARY, "model_type": kind})
    run = fit(tmp_path, base, real_inputs, lora=False, objective="qrm")
    out = export_checkpoint(run, tmp_path / "out")
    state = torch.load(find_run(run).checkpoint, weights_only=True)["state_dict"]
    head = load_file(out / "value_head.safetensors")
    assert {f"value_head.{name}" for name in head} == {name for name in state if name.startswith("value_head.")}
    assert torch.equal(head["weight"], state["value_head.weight"])
    record = json.loads((out / "ipvrm_config.json").read_text())
    assert record["reference"] is None and record["objective"]["class_path"].endswith("QRM")


def test_results_go_into_card_and_thresholds(
    tmp_path: Path,
    base: str,
    real_inputs: dict[str, str],  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = fit(tmp_path, base, real_inputs, lora=True)
    shared = [*("--config", str(REPOSITORY / "configs" / "ipvrm_smollm2.yaml")), *("--config", f"{tmp_path}/tiny.yaml")]
    judged = [*("--config", str(REPOSITORY / "configs/data/processbench.yaml")), *("--data.subsets", "[gsm8k]")]
    main(["test", *shared, *judged, "--data.path", real_inputs["processbench"], "--ckpt_path", "last"])
    (results,) = tmp_path.glob("*-test/results.json")
    assert json.loads(results.read_text())["run"]["checkpoint_step"] == 3
    capsys.readouterr()
    main(["export", str(run), "--out", str(tmp_path / "out"), "--results", str(results.parent)])
    printed, complaints = capsys.readouterr()
    assert "note" not in complaints
    assert re.search(rf"^from {run}/checkpoints/\S+\.ckpt, step \d+\nin {tmp_path / 'out'}$", printed, re.MULTILINE)
    config = (results.parent / "config.yaml").read_text()
    (results.parent / "config.yaml").write_text(config.replace("precision: null", "precision: bf16-mixed"))
    main(["export", str(run), "--out", str(tmp_path / "rounded"), "--results", str(results.parent)])
    noted = "note: thresholds were chosen in bf16-mixed, and scores are not rounded so: take them from"
    assert noted in capsys.readouterr().err
    assert read_exported_config(tmp_path / "rounded" / "ipvrm_config.json").thresholds_precision == "bf16-mixed"
    (results.parent / "config.yaml").write_text(config)
    found = json.loads(results.read_text())
    found["reports"]["step_f1"]["subsets"]["gsm8k"]["protocols"]["step_sum"]["cross_fitted"]["f1"] = None
    (alone := tmp_path / "alone.json").write_text(json.dumps(found))
    for origin, complaint in (
        ("cross_fitted", "alone.json holds no cross_fitted threshold of step_sum: no"),
        ("oracle", ""),
    ):
        options = ["--overwrite", "--threshold_origin", origin, "--results", str(alone)]
        main(["export", str(run), "--out", str(tmp_path / "rounded"), *options])
        said = capsys.readouterr().err
        assert complaint in said and ("note" in said) == bool(complaint)
    stored = json.loads(results.read_text())["reports"]["step_f1"]["subsets"]["gsm8k"]["protocols"]["step_sum"]
    recorded = read_exported_config(tmp_path / "out" / "ipvrm_config.json")
    threshold = recorded.thresholds["step_sum"]
    assert (threshold.value, threshold.origin) == (stored["cross_fitted"]["threshold"], "cross_fitted")
    assert threshold.by_subset["gsm8k"]["oracle"] == stored["oracle"]["threshold"]
    assert set(recorded.thresholds) == {"step_sum", "prefix_sum", "prefix_mean", "step_mean"}
    assert recorded.layout == Layout("chat", step_template="Step {number}: {step}")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "gsm8k (12)" in card and "longest step (floor)" in card
    with pytest.raises(SystemExit):
        main(["export", str(run), "--out", str(tmp_path / "out")])
    assert "exists; give another folder, or --overwrite" in capsys.readouterr().err
    main(["export", str(run), "--out", str(tmp_path / "out"), "--overwrite"])
    assert not read_exported_config(tmp_path / "out" / "ipvrm_config.json").thresholds
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="is no export"):
        export_checkpoint(run, tmp_path / "mine", overwrite=True)
    moved = yaml.safe_load((results.parent / "config.yaml").read_text())
    moved["ckpt_path"] = str(tmp_path / "another" / "checkpoints" / "last.ckpt")
    (results.parent / "config.yaml").write_text(yaml.safe_dump(moved))
    with pytest.raises(ValueError, match=r"is of checkpoint .*another"):
        export_checkpoint(run, tmp_path / "other", results=results)
    deeper = find_run(run)._replace(checkpoint=run / "checkpoints" / "val" / "auroc=0.900.ckpt")
    moved["ckpt_path"] = str(tmp_path / "another" / "checkpoints" / "val" / "auroc=0.900.ckpt")
    (results.parent / "config.yaml").write_text(yaml.safe_dump(moved))
    with pytest.raises(ValueError, match=r"is of checkpoint .*another"):
        read_results(results, deeper)
    moved["ckpt_path"] = None
    (results.parent / "config.yaml").write_text(yaml.safe_dump(moved))
    with pytest.raises(ValueError, match=r"its test run loaded no checkpoint, this exports .*: test that one"):
        export_checkpoint(run, tmp_path / "other", results=results)
    untrained = {"class_path": "ipvrm_lightning.objectives.EndoRM"}
    found = find_run(run)
    found.config["model"]["init_args"]["objective"] = untrained
    assert "step_f1" in read_results(results, found).reports


def test_a_config_or_a_base_that_does_not_fit_leaves_nothing(tmp_path: Path, real_inputs: dict[str, str]) -> None:  # noqa: F811
    base = save_model(tmp_path / "base", real_inputs["tokenizer"])
    run = fit(tmp_path, base, real_inputs, lora=True)
    kept = (run / "config.yaml").read_text()
    for name, value, differs in (
        ("r", 8, "parameter .*lora_A"),
        ("alpha", 64, "language_model.lora.alpha is 32 there"),
    ):
        config = yaml.safe_load(kept)
        config["model"]["init_args"]["language_model"]["init_args"]["lora"][name] = value
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        with pytest.raises(ValueError, match=rf"the checkpoint does not fit this config: {differs}"):
            export_checkpoint(run, tmp_path / "out")
    (run / "config.yaml").write_text(kept)
    save_model(tmp_path / "base", real_inputs["tokenizer"], seed=5)  # written anew since
    with pytest.raises(ValueError, match="the checkpoint was trained from other weights than those that"):
        export_checkpoint(run, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))
    with pytest.raises(FileNotFoundError, match="no checkpoint under"):
        export_checkpoint(tmp_path / "nothing", tmp_path / "out")


def test_distrl_exports_policy_and_reward_model(tmp_path: Path) -> None:
    """Names of adapters and of separate models; the weights themselves go the way tested above."""
    one = torch.ones(1)
    shared = {"roles.model.a.lora_A.default.weight": one, "roles.model.a.lora_A.reward.weight": 2 * one}
    assert model_weights(shared, "policy") == {"a.lora_A.default.weight": one}
    assert model_weights(shared, "reward") == {"a.lora_A.default.weight": 2 * one}
    separate = {"roles.policy.a.weight": one, "roles.reward.a.weight": 2 * one}
    assert model_weights(separate, "reward") == {"a.weight": 2 * one}
    with pytest.raises(ValueError, match="no reward model"):
        model_weights({"roles.policy.a.weight": one}, "reward")
    with pytest.raises(ValueError, match=r"no reward model .* leave out --part"):
        model_weights({"model.a.weight": one}, "reward")


def test_the_tokenizer_is_the_one_that_the_data_were_read_with(
    tmp_path: Path,
    base: str,
    real_inputs: dict[str, str],  # noqa: F811
) -> None:
    from transformers import AutoTokenizer

    plain = AutoTokenizer.from_pretrained(real_inputs["tokenizer"])
    plain.chat_template = None
    plain.save_pretrained(tmp_path / "plain")
    run, _ = distrl_run(tmp_path, base, lora=True, reference="sft")
    config = yaml.safe_load((run / "config.yaml").read_text())
    arguments = {"train": "x.jsonl", "tokenizer": str(tmp_path / "plain")}
    config["data"] = {"class_path": "ipvrm_lightning.data.TrajectoryDataModule", "init_args": arguments}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    out = export_checkpoint(run, tmp_path / "out", part="reward")
    assert AutoTokenizer.from_pretrained(out).chat_template is None
    assert read_exported_config(out / "ipvrm_config.json").layout == Layout("plain")


def test_solutions_are_laid_out_as_those_that_the_thresholds_are_of(tmp_path: Path, base: str) -> None:
    run, _ = distrl_run(tmp_path, base, lora=True, reference="sft")
    config = yaml.safe_load((run / "config.yaml").read_text())
    judged = {"prompt_format": "plain", "step_template": "{step}", "separator": " ; "}
    for folder, name, arguments in (
        (run, "TrajectoryDataModule", {"train": "x.jsonl", "prompt_format": "chat"}),
        (tmp_path / "test", "ProcessBenchDataModule", judged),
    ):
        folder.mkdir(exist_ok=True)
        data = {"class_path": f"ipvrm_lightning.data.{name}", "init_args": arguments}
        kept = {**config, "data": data, "ckpt_path": str(run / "checkpoints" / "last.ckpt")}
        (folder / "config.yaml").write_text(yaml.safe_dump(kept))
    (tmp_path / "test" / "results.json").write_text('{"reports": {}}')
    for results, expected in ((None, Layout("chat")), (tmp_path / "test", Layout(**judged))):
        out = export_checkpoint(run, tmp_path / "out", part="reward", results=results, overwrite=True)
        assert read_exported_config(out / "ipvrm_config.json").layout == expected
    assert {path.name for path in tmp_path.iterdir()} == {"run", "test", "out"}  # nothing of the export before


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("reference", ["behavior", "sft"])
def test_a_reward_model_of_distrl_takes_its_reference_along(
    lora: bool,
    reference: str,
    tmp_path: Path,
    base: str,
) -> None:
    run, expected = distrl_run(tmp_path, base, lora=lora, reference=reference)
    out = export_checkpoint(run, tmp_path / "out", part="reward")
    recorded = read_exported_config(out / "ipvrm_config.json")
    assert recorded.objective == IPVRM(beta=3.0).describe()
    assert (recorded.part, recorded.temperature) == ("reward", 0.7)
    own = load_frozen(recorded.base, adapter=str(out)) if lora else load_frozen(ModelSource(str(out)))
    assert torch.equal(scores(own), expected["reward"])
    if reference == "sft":
        assert recorded.reference == ("adapters_off" if lora else recorded.base)
        return
    assert recorded.reference == ModelSource("reference")
    inside = str(out / "reference")
    policy = load_frozen(recorded.base, adapter=inside) if lora else load_frozen(ModelSource(inside))
    assert torch.equal(scores(policy), expected["policy"])
    own_policy = export_checkpoint(run, tmp_path / "policy", part="policy")
    assert read_exported_config(own_policy / "ipvrm_config.json").objective is None


def test_an_adapter_on_random_weights_is_not_exported_alone(
    tmp_path: Path,
    base: str,
    real_inputs: dict[str, str],  # noqa: F811
) -> None:
    run, _ = distrl_run(tmp_path, base, lora=True, reference="sft")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["init_args"]["language_model"] = {
        "class_path": "ipvrm_lightning.models.RandomLanguageModel",
        "init_args": {"config": VOCABULARY, "tokenizer": real_inputs["tokenizer"], "lora": {"r": 4}},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=r"on random weights .*--merge"):
        export_checkpoint(run, tmp_path / "out", part="reward")
    merged = export_checkpoint(run, tmp_path / "out", part="reward", merge=True)
    assert (merged / "reference" / "model.safetensors").is_file()


def test_the_card_says_how_an_objective_of_ones_own_is_run() -> None:
    commands = []
    for kind in ("mine.Loss", "ipvrm_lightning.objectives.IPVRM"):
        record = ExportedConfig(
            "model", objective={"class_path": kind, "init_args": {}}, versions=run_facts()["versions"]
        )
        commands += re.findall("^ipvrm .*", model_card(record, config={}, reports=None), re.MULTILINE)
    score = "ipvrm score --model THIS_FOLDER"
    assert commands == [f"{score} --trust_remote_code solutions.jsonl", f"{score} solutions.jsonl"]


def test_the_card_says_what_was_trained_from_what_and_measured() -> None:
    def f1(oracle: float, cross_fitted: float | None) -> dict[str, Any]:
        return {"oracle": {"f1": oracle}, "cross_fitted": {"f1": cross_fitted}}

    judged = {"solutions": 12, "protocols": {"step_sum": f1(0.5, 0.4567), "step_mean": f1(0.25, None)}}
    judged |= {"random": {"oracle_mean": 0.2, "cross_fitted_mean": 0.1}, "longest_step": f1(0.3, 0.15)}
    versions, settings = run_facts()["versions"], {"seed_everything": 3, "model": {"b": 1, "a": 2}, "data": None}
    adapter = ExportedConfig("adapter", "float32", ModelSource("owner/base"), IPVRM().describe(), "adapters_off")
    card = model_card(
        replace(adapter, versions=versions),
        config={"ckpt_path": "x", **settings},
        reports={"step_f1": {"subsets": {"gsm8k": judged}}},
    )
    _, front, text = card.split("---\n", 2)
    assert {"base_model": "owner/base", "library_name": "peft"}.items() <= yaml.safe_load(front).items()
    assert "# A reward model trained with IPVRM (beta 10.0, margin 5.0" in text and "from `owner/base`." in text
    assert "which is this model with its adapter switched off;" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert table == [
        "|  | step_sum | step_mean | *random scores (floor)* | *longest step (floor)* |",
        "| --- | --- | --- | --- | --- |",
        "| gsm8k (12) | 50.0 / 45.7 | 25.0 / - | 20.0 / 10.0 | 30.0 / 15.0 |",
    ]
    assert yaml.safe_load(text.split("```yaml")[1].split("```")[0]) == settings
    secret = {"data": {"init_args": {"path": "p", "hf_token": "hunter2", "parts": [{"api_key": "hunter2", 1: 2}]}}}
    told = model_card(replace(adapter, versions=versions), config=secret, reports=None)
    assert "hunter2" not in told and "    path: p\n    parts:\n    - 1: 2\n" in told
    pair = replace(adapter, versions=versions, reference=ModelSource("owner/sft"))
    assert "which is `owner/sft`;" in model_card(pair, config={}, reports=None)
    head = model_card(replace(pair, reference=None, objective=QRM().describe()), config={}, reports=None)
    assert "log-probability ratio" not in head and "ipvrm score --model" in head
    plain = model_card(ExportedConfig("model", versions=versions), config={}, reports={"calibration": {}})
    front = yaml.safe_load(plain.split("---\n")[1])
    assert "base_model" not in front and front["library_name"] == "transformers"
    assert "# A policy or supervised model\n" in plain and "from random weights." in plain
    assert "The results hold no step F1." in plain and "ipvrm score" not in plain


def test_a_threshold_is_the_mean_over_the_subsets_that_have_one() -> None:
    def chosen(oracle: float, cross_fitted: float | None) -> dict[str, Any]:
        both = {"oracle": oracle, "cross_fitted": cross_fitted}
        return {origin: {"threshold": threshold, "f1": 0.5} for origin, threshold in both.items()}

    a = {"step_sum": chosen(0.5, 0.25), "step_mean": chosen(1.0, None)}
    b = {"step_sum": chosen(1.5, math.nan), "step_mean": {**chosen(2.0, None), "cross_fitted": None}}
    reports = {"step_f1": {"subsets": {"a": {"protocols": a}, "b": {"protocols": b}}}}
    sums = {"a": {"oracle": 0.5, "cross_fitted": 0.25}, "b": {"oracle": 1.5, "cross_fitted": None}}
    means = {"a": {"oracle": 1.0, "cross_fitted": None}, "b": {"oracle": 2.0, "cross_fitted": None}}
    assert thresholds(reports, "cross_fitted") == {"step_sum": Threshold(0.25, "cross_fitted", sums)}
    assert thresholds(reports, "oracle") == {
        "step_sum": Threshold(1.0, "oracle", sums),
        "step_mean": Threshold(1.5, "oracle", means),
    }
    assert thresholds({"calibration": {}}, "oracle") == {}


def test_a_subset_of_right_solutions_alone_moves_no_threshold() -> None:
    """Its own lies below all of its scores, however low they are."""

    def subset(threshold: float, f1: float | None) -> dict[str, Any]:
        return {"protocols": {"step_sum": {"cross_fitted": {"threshold": threshold, "f1": f1}}}}

    subsets = {"mixed": subset(-2.0, 0.4), "all right": subset(-90.0, None)}
    assert thresholds({"step_f1": {"subsets": subsets}}, "cross_fitted")["step_sum"].value == -2.0


def test_an_export_that_cannot_be_put_in_place_leaves_the_one_before(tmp_path: Path) -> None:
    (out := tmp_path / "out").mkdir()
    (out / "README.md").write_text("of before")
    with pytest.raises(FileNotFoundError):
        _put_in_place(tmp_path / "nothing", out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and (out / "README.md").read_text() == "of before"


BASE: dict[str, Any] = {
    "name": "owner/base",
    "revision": "0a1b",
    "gguf_file": None,
    "dtype": "bfloat16",
    "quantization": "nf4",
}
BASE |= {"compute_dtype": "float16", "weights": None}
INSIDE = {"name": "reference", "revision": None, "gguf_file": None, "dtype": "float32", "quantization": None}
INSIDE |= {"compute_dtype": "bfloat16", "weights": "c345498b954dab77a8820ed9"}
LAYOUT = {"prompt_format": "plain", "system_prompt": "Be brief.", "step_template": "{step}", "separator": ";"}
LAYOUT |= {"chat_template_kwargs": {"enable_thinking": False}}


def test_a_base_is_recorded_as_it_was_read(base: str) -> None:
    """Without its precision, file or commit another one would be read for it, and log-ratios be of both."""
    options = {name: BASE[name] for name in ("name", "revision", "dtype", "quantization", "compute_dtype")}
    hub: Any = SimpleNamespace(config=SimpleNamespace(_name_or_path="cache", _commit_hash="of the cache"))
    for revision, commit in (("0a1b", "0a1b"), (None, "of the cache")):
        factory = PretrainedLanguageModel(**{**options, "revision": revision}, lora=LoRA())
        assert _base(factory, hub) == ModelSource(**{**BASE, "revision": commit})
    model = PretrainedLanguageModel(name=base).build_model()
    file = PretrainedLanguageModel(name="owner/base", gguf_file="q8.gguf", dtype="float16")
    recorded = ModelSource("owner/base", gguf_file="q8.gguf", dtype="float16", weights=fingerprint(base))
    assert _base(file, model) == recorded


@pytest.mark.parametrize("reference", [None, "adapters_off", BASE, INSIDE])
def test_exports_on_disk_are_read_as_they_were_written(reference: Any, tmp_path: Path) -> None:
    written: dict[str, Any] = {"format": 1, "kind": "adapter", "dtype": "bfloat16", "base": BASE}
    written |= {"objective": IPVRM().describe(), "reference": reference, "temperature": 0.7, "layout": LAYOUT}
    written |= {"protocol": "step_sum", "part": "reward", "versions": {"python": "3.11"}}
    written["settings"] = {"language_model": {"lora": {"alpha": 32}, "quantization": "nf4"}, "base": None}
    written["thresholds"] = {"step_sum": {"value": 0.5, "origin": "oracle", "by_subset": {"gsm8k": {"oracle": 0.5}}}}
    if reference is INSIDE:  # others are of a version that did not record it
        written["thresholds_precision"] = "bf16-mixed"
    file = tmp_path / "ipvrm_config.json"
    file.write_text(json.dumps(written))
    read = read_exported_config(file)
    assert read.reference == (ModelSource(**reference) if isinstance(reference, dict) else reference)
    assert read.holds_reference == (reference is INSIDE)
    read.write(tmp_path)
    assert json.loads(file.read_text()) == {"thresholds_precision": None, **written}


def test_a_config_that_is_no_export_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "ipvrm_config.json"
    for content, message in (
        ("{", "JSONDecodeError"),
        ("[]", "not an export"),
        ('{"format": 2}', "format 2 is not known"),
        ('{"format": 1, "kinds": 1}', "unknown field kinds"),
        ('{"format": 1, "kind": "pickle"}', "unknown kind 'pickle'"),
        ('{"format": 1, "kind": "model", "base": null, "reference": "x"}', "unknown reference 'x'"),
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match=message) as caught:
            read_exported_config(file)
        assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("model: !!python/object/apply:os.system ['touch ran']", "not the config of a run .ConstructorError"),
        ("model: [1, 2", "not the config of a run .ParserError"),
        ("- model", "not the config of a run .ValueError"),
        ("data: {}", "not the config of a fit that can be exported, for want of a key .KeyError: 'model'"),
    ],
)
def test_a_config_of_no_run_is_named(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    torch.save({"state_dict": {}}, tmp_path / "checkpoints" / "last.ckpt")
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"^{tmp_path}/config.yaml: {problem}"):
        find_run(tmp_path)


def test_the_callback_exports_the_best(tmp_path: Path, base: str, real_inputs: dict[str, str]) -> None:  # noqa: F811
    from ipvrm_lightning.callbacks import HFExport

    run = fit(tmp_path, base, real_inputs, lora=True)
    best = tmp_path / "elsewhere" / "kept" / "best.ckpt"
    best.parent.mkdir(parents=True)
    best.write_bytes(find_run(run).checkpoint.read_bytes())
    with pytest.raises(FileNotFoundError, match=r"elsewhere/config.yaml: the config of the run .* is not there"):
        find_run(best)
    kept = SimpleNamespace(best_model_path=str(best), last_model_path="")
    trainer: Any = SimpleNamespace(log_dir=str(run), is_global_zero=True, checkpoint_callback=kept)
    for _ in range(2):  # a run that goes on writes over what it has exported
        HFExport().on_fit_end(trainer, LightningModule())
    assert (run / "export" / "adapter_model.safetensors").is_file()
    kept.best_model_path, kept.last_model_path = "", str(best)  # `save_top_k: 0`
    HFExport(folder="whole", merge=True).on_fit_end(trainer, LightningModule())
    assert (run / "whole" / "model.safetensors").is_file()
    kept.last_model_path = ""
    with pytest.raises(ValueError, match="HFExport needs a ModelCheckpoint that has kept a checkpoint"):
        HFExport().on_fit_end(trainer, LightningModule())
    deeper = run / "checkpoints" / "val" / "auroc=0.5.ckpt"  # of `filename: "{val/auroc}"`
    deeper.parent.mkdir()
    best.rename(deeper)
    assert find_run(deeper).config == find_run(run).config
