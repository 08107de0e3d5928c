from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule

from ipvrm_lightning.cli import main
from ipvrm_lightning.data.dataset import TrajectoryDataset, collate
from ipvrm_lightning.exporting import export_checkpoint
from ipvrm_lightning.exporting.source import find_run, model_weights
from ipvrm_lightning.models import PretrainedLanguageModel, RandomLanguageModel
from ipvrm_lightning.models.logprobs import response_scores
from ipvrm_lightning.models.reference import weights_fingerprint

from ..conftest import REPOSITORY
from ..modules.conftest import QWEN, make_examples
from ..test_cli import real_inputs  # noqa: F401

VOCABULARY = {**QWEN, "vocab_size": 300}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, real_inputs: dict[str, str]) -> str:  # noqa: F811
    """A tiny model with a tokenizer in a folder, as one from the hub would be."""
    folder = tmp_path_factory.mktemp("base")
    factory = RandomLanguageModel(config=VOCABULARY, tokenizer=real_inputs["tokenizer"])
    factory.build_model().save_pretrained(folder)
    factory.build_tokenizer().save_pretrained(folder)
    return str(folder)


def fit(folder: Path, base: str, inputs: dict[str, str], *, lora: bool, objective: str = "ipvrm") -> Path:
    """Train for a few steps by the command line; returns the run's folder."""
    arguments: dict[str, Any] = {"name": base, "lora": {"r": 4} if lora else None}
    source = {"class_path": f"ipvrm_lightning.models.{'AdaptersOff' if lora else 'FrozenCopy'}"}
    overlay = {
        "model": {
            "init_args": {
                "language_model": {
                    "class_path": "ipvrm_lightning.models.PretrainedLanguageModel",
                    "init_args": arguments,
                },
                "reference": source,
                "optimizer": {"init_args": {"lr": 0.01}},
            }
        },
        "trainer": {"default_root_dir": str(folder), "accelerator": "cpu", "max_steps": 3, "max_epochs": -1},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(overlay))
    extra = ("--data.batch_size", "4") if objective == "qrm" else ()
    main(
        [
            *("fit", "--config", str(REPOSITORY / "configs" / "ipvrm_smollm2.yaml")),
            *("--config", str(REPOSITORY / "configs" / "objective" / f"{objective}.yaml")),
            *("--config", str(folder / "tiny.yaml"), "--data.train", inputs["rollouts"]),
            *("--data.validation_fraction", "0.2", *extra),
        ]
    )
    (run,) = folder.glob("*-fit")
    return run


def scores(model: Any) -> torch.Tensor:
    dataset = TrajectoryDataset(make_examples(6))
    with torch.no_grad():
        return response_scores(model.eval(), collate(dataset, range(6))).log_probs


def trained(run: Path, base: str, *, lora: bool) -> Any:
    """The model as training left it, put together here."""
    from ipvrm_lightning.models import LoRA

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
    assert record["reference"] == {
        "kind": "model",
        "name": base,
        "revision": None,
        "weights": weights_fingerprint(PretrainedLanguageModel(name=base).build_model()),
    }
    card = (out / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["base_model"] == base
    assert "beta 10.0, margin 5.0" in card and real_inputs["rollouts"] in card


def test_adapters_come_back_exactly_and_merged_ones_closely(
    tmp_path: Path,
    base: str,
    real_inputs: dict[str, str],  # noqa: F811
) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    run = fit(tmp_path, base, real_inputs, lora=True)
    expected = scores(trained(run, base, lora=True))
    alone = export_checkpoint(run, tmp_path / "alone")
    assert not (alone / "model.safetensors").exists()
    loaded = AutoPeftModelForCausalLM.from_pretrained(alone)
    assert torch.equal(scores(loaded), expected)
    with loaded.disable_adapter():
        assert torch.equal(scores(loaded), scores(AutoModelForCausalLM.from_pretrained(base)))
    assert json.loads((alone / "ipvrm_config.json").read_text())["reference"]["kind"] == "adapters_off"
    merged = export_checkpoint(run, tmp_path / "merged", merge=True)
    torch.testing.assert_close(scores(AutoModelForCausalLM.from_pretrained(merged)), expected, rtol=0, atol=1e-5)


def test_a_value_head_comes_along(tmp_path: Path, base: str, real_inputs: dict[str, str]) -> None:  # noqa: F811
    from safetensors.torch import load_file

    run = fit(tmp_path, base, real_inputs, lora=False, objective="qrm")
    out = export_checkpoint(run, tmp_path / "out")
    state = torch.load(find_run(run).checkpoint, weights_only=True)["state_dict"]
    head = load_file(out / "value_head.safetensors")
    assert torch.equal(head["value_head.weight"], state["value_head.weight"])
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
    main(["export", str(run), "--out", str(tmp_path / "out"), "--results", str(results)])
    stored = json.loads(results.read_text())["reports"]["step_f1"]["subsets"]["gsm8k"]["protocols"]["step_sum"]
    thresholds = json.loads((tmp_path / "out" / "ipvrm_config.json").read_text())["thresholds"]
    assert thresholds["gsm8k"]["step_sum"]["cross_fitted"] == stored["cross_fitted"]["threshold"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "gsm8k (12)" in card and "longest step (floor)" in card
    with pytest.raises(SystemExit):
        main(["export", str(run), "--out", str(tmp_path / "out")])
    assert "exists; give another folder, or --overwrite" in capsys.readouterr().err
    main(["export", str(run), "--out", str(tmp_path / "out"), "--overwrite"])
    assert not json.loads((tmp_path / "out" / "ipvrm_config.json").read_text())["thresholds"]


def test_a_config_that_does_not_fit_leaves_nothing(tmp_path: Path, base: str, real_inputs: dict[str, str]) -> None:  # noqa: F811
    run = fit(tmp_path, base, real_inputs, lora=True)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["init_args"]["language_model"]["init_args"]["lora"]["r"] = 8
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=r"the checkpoint does not fit this config: parameter .*lora_A"):
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


def test_the_callback_exports_the_best(tmp_path: Path, base: str, real_inputs: dict[str, str]) -> None:  # noqa: F811
    from types import SimpleNamespace

    from ipvrm_lightning.callbacks import HFExport

    run = fit(tmp_path, base, real_inputs, lora=True)
    best = find_run(run).checkpoint
    trainer: Any = SimpleNamespace(
        log_dir=str(run), is_global_zero=True, checkpoint_callback=SimpleNamespace(best_model_path=str(best))
    )
    HFExport().on_fit_end(trainer, LightningModule())
    assert (run / "export" / "adapter_model.safetensors").is_file()
