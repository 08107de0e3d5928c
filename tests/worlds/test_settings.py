from __future__ import annotations

from pathlib import Path

import pytest

from ipvrm_lightning.worlds.arithmetic import ArithmeticWorld
from ipvrm_lightning.worlds.arithmetic.settings import SIZES, make_settings


def test_fingerprint_changes_with_every_kind_of_setting() -> None:
    variants = [
        make_settings("small", 0),
        make_settings("small", 1),
        make_settings("full", 0),
        make_settings("small", 0, {"sft_tokens": 10}),
        make_settings("small", 0, {"difficulty": {"max_steps": 9}}),
        make_settings("small", 0, {"noise_rates": {"add": 0.5}}),
    ]
    assert len({settings.fingerprint for settings in variants}) == len(variants)
    assert make_settings("small", 0).fingerprint == variants[0].fingerprint
    assert make_settings("small", 0, {}).fingerprint == variants[0].fingerprint


def test_a_setting_replaced_by_its_own_value_is_the_same_world() -> None:
    plain = make_settings("full", 3)
    same = make_settings("full", 3, {"sft_tokens": plain.sft_tokens, "format_shares": list(plain.format_shares)})
    assert same == plain


def test_sizes_differ_and_overrides_win() -> None:
    assert set(SIZES) == {"small", "full"}
    assert make_settings("full", 0).train_prompts > make_settings("small", 0).train_prompts
    assert make_settings("full", 0, {"train_prompts": 5}).train_prompts == 5


@pytest.mark.parametrize(
    ("size", "overrides", "message"),
    [
        ("large", {}, "size must be one of small, full, not 'large'"),
        ("small", {"sft_token": 1}, "no setting 'sft_token'"),
        ("small", {"difficulty": {"steps": 1}}, r"overrides.difficulty: .*steps"),
    ],
)
def test_unknown_settings_are_refused(size: str, overrides: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_settings(size, 0, overrides)


def test_folder_follows_root_environment_and_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("IPVRM_WORLDS", raising=False)
    name = f"small-seed4-{make_settings('small', 4).fingerprint}"
    assert ArithmeticWorld("small", 4).folder == Path("outputs/worlds") / name
    monkeypatch.setenv("IPVRM_WORLDS", str(tmp_path))
    assert ArithmeticWorld("small", 4).folder == tmp_path / name
    assert ArithmeticWorld("small", 4, "elsewhere").folder == Path("elsewhere") / name
    assert not ArithmeticWorld("small", 4).is_built
