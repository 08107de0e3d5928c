"""What DistRL's reward model starts from: the same weights from a checkpoint and from what was exported of it."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ipvrm_lightning.exporting import export_checkpoint
from ipvrm_lightning.models import LoRA, PretrainedLanguageModel
from ipvrm_lightning.models.exported import ExportedConfig, read_exported_config
from ipvrm_lightning.models.initial_reward import find_initial_reward
from ipvrm_lightning.models.reference import base_fingerprint
from ipvrm_lightning.models.roles import Roles, build_roles
from ipvrm_lightning.objectives import DPORM, IPVRM, Objective

from ..exporting.runs import fit, save_model
from ..test_cli import real_inputs  # noqa: F401

pytestmark = pytest.mark.usefixtures("real_inputs")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, real_inputs: dict[str, str]) -> str:  # noqa: F811
    return save_model(tmp_path_factory.mktemp("base"), real_inputs["tokenizer"])


@pytest.fixture(scope="module", params=[False, True], ids=["whole", "adapter"])
def lora(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory,
    base: str,
    lora: bool,
    real_inputs: dict[str, str],  # noqa: F811
) -> Path:
    return fit(tmp_path_factory.mktemp("run"), base, real_inputs, lora=lora)


def started(checkpoint: Path, factory: PretrainedLanguageModel, objective: Objective | None = None) -> Roles:
    """The roles of a run whose reward model starts from a checkpoint or an export."""
    found = find_initial_reward(str(checkpoint))
    found.check(objective or IPVRM(), factory)
    roles = build_roles(factory)
    roles.add_reward()
    with roles.use("policy") as policy:
        found.load(roles, base_fingerprint(policy))
    return roles


def factory_of(base: str, lora: bool, **options: int) -> PretrainedLanguageModel:
    return PretrainedLanguageModel(name=base, lora=LoRA(**{"r": 4, **options}) if lora else None)


def rewrite(folder: Path, **changes: object) -> None:
    replace(read_exported_config(folder / "ipvrm_config.json"), **changes).write(folder)  # type: ignore[arg-type]


def test_an_export_starts_the_model_that_its_checkpoint_does(run: Path, base: str, lora: bool, tmp_path: Path) -> None:
    out = export_checkpoint(run, tmp_path / "out")
    factory = factory_of(base, lora)
    expected, found = (started(place, factory).trained("reward") for place in (run.parent, out))
    fresh = build_roles(factory)
    fresh.add_reward()
    assert expected.keys() == found.keys() == fresh.trained("reward").keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert not all(torch.equal(weight, found[name]) for name, weight in fresh.trained("reward").items())
    if lora:
        merged = started(export_checkpoint(run, tmp_path / "merged", merge=True), factory_of(base, False))
        plain = factory_of(base, True).build_model()
        plain.load_state_dict({n.replace(".reward.", ".default.").removeprefix("model."): w for n, w in found.items()},
                              strict=False)  # fmt: skip
        for name, weight in plain.merge_and_unload().named_parameters():
            torch.testing.assert_close(merged.reward.get_parameter(name), weight, rtol=0, atol=1e-6)


def test_what_does_not_fit_is_refused(run: Path, base: str, lora: bool, tmp_path: Path) -> None:
    out = export_checkpoint(run, tmp_path / "out")
    factory = factory_of(base, lora)
    with pytest.raises(ValueError, match=r"reward.checkpoint .*out was trained by .*IPVRM with beta 10.0"):
        started(out, factory, IPVRM(beta=1.0))
    with pytest.raises(ValueError, match=r"reward.checkpoint .*out was trained by .*IPVRM .* is .*DPORM"):
        started(out, factory, DPORM())
    with pytest.raises(ValueError, match=r"reward.checkpoint .*out does not fit .* language_model.lora"):
        started(out, factory_of(base, not lora))
    if lora:
        with pytest.raises(ValueError, match=r"out does not fit .*language_model.lora.alpha is 32 there and 64 here"):
            started(out, factory_of(base, lora, alpha=64))
        with pytest.raises(ValueError, match=r"the reward model's checkpoint does not fit .*lora_A"):
            started(out, factory_of(base, lora, r=8))
    other = save_model(tmp_path / "other", base, seed=1)
    with pytest.raises(ValueError, match=r"reward.checkpoint .*out was trained from other weights than those"):
        started(out, factory_of(other, lora))
    (weights,) = out.glob("*.safetensors")
    weights.write_bytes(b"broken")
    with pytest.raises(ValueError, match=str(out)):
        started(out, factory)
    rewrite(out, part="reward")
    with pytest.raises(ValueError, match=r"out: an export of a reward model of DistRL, not of"):
        started(out, factory)
    rewrite(out, part=None, objective=None)
    with pytest.raises(ValueError, match=r"out: an export of a supervised model, not of"):
        started(out, factory)


def test_a_checkpoint_of_no_reward_model_is_refused(run: Path, tmp_path: Path) -> None:
    stored = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    del stored["objective"]  # as in one of supervised fine-tuning
    torch.save(stored, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"reward.checkpoint .*last.ckpt: is of no reward model that `ipvrm fit` has"):
        find_initial_reward(str(tmp_path / "last.ckpt"))


def test_exports_that_say_too_little_are_refused(tmp_path: Path) -> None:
    ExportedConfig("model", objective=IPVRM().describe()).write(tmp_path)
    written = json.loads((tmp_path / "ipvrm_config.json").read_text())
    del written["settings"]  # as earlier versions wrote it
    (tmp_path / "ipvrm_config.json").write_text(json.dumps(written))
    with pytest.raises(ValueError, match=r"does not say what it was trained from: export its checkpoint again"):
        find_initial_reward(str(tmp_path))


@pytest.mark.parametrize("exported", [False, True])
def test_what_is_written_anew_while_a_run_begins_is_refused(
    exported: bool, run: Path, base: str, lora: bool, tmp_path: Path
) -> None:
    """Else a run would say that it began with other weights than it has loaded, and go on with those.

    What was found of a checkpoint is loaded whole all the same, for a fit that goes on replaces its file.
    """
    if exported:
        place = export_checkpoint(run, tmp_path / "out")
        file = place / ("adapter_model.safetensors" if lora else "model.safetensors")
    else:
        place = file = Path(shutil.copy(run / "checkpoints" / "last.ckpt", tmp_path))
    found = find_initial_reward(str(place))
    shutil.copy2(file, tmp_path / "same")  # with its time, and an inode of its own, as after a mount was lost
    (tmp_path / "same").replace(file)
    assert found.identity()
    shutil.copy(file, tmp_path / "new")
    (tmp_path / "new").replace(file)
    roles = build_roles(factory_of(base, lora))
    roles.add_reward()
    refused = pytest.raises(ValueError, match="was written anew while this run began") if exported else nullcontext()
    with roles.use("policy") as policy, refused:
        found.load(roles, base_fingerprint(policy))
    with pytest.raises(ValueError, match="was written anew while this run began"):
        found.identity()
    assert find_initial_reward(str(place)).identity()
