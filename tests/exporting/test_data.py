from __future__ import annotations

from typing import Any, ClassVar

import pytest

from ipvrm_lightning.data import TokenizedDataModule, TrajectoryDataModule
from ipvrm_lightning.exporting.data import known_arguments, layout
from ipvrm_lightning.models.exported import Layout


class Csv(TokenizedDataModule):
    """Its separator is one of columns."""

    def __init__(self, *, separator: str = ",", **options: Any) -> None:
        super().__init__(**options)


class LaidOut(Csv):
    layout: ClassVar[dict[str, Any]] = {"separator": " "}


class Rollouts(TrajectoryDataModule):
    """Its arguments mean what they mean to its base."""


def chosen(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": name if "." in name else f"{__name__}.{name}", "init_args": arguments}


def test_arguments_are_read_by_name_where_they_are_those_of_this_package(caplog: pytest.LogCaptureFixture) -> None:
    judged = chosen("ipvrm_lightning.data.ProcessBenchDataModule", separator=";", system_prompt="Be brief.")
    assert layout(judged, chat=True) == Layout("chat", "Be brief.", separator=";")
    assert layout(chosen("Rollouts", prompt_format="plain"), chat=True) == Layout("plain")
    assert layout(chosen("LaidOut", separator=";"), chat=False) == Layout("plain", separator=" ")
    assert layout(None, chat=False) == Layout("plain") and not caplog.messages
    assert layout(chosen("Csv", separator=";"), chat=False) == Layout("plain")
    assert "Csv does not say how it lays out problems and steps" in caplog.text
    assert known_arguments(chosen("Csv", separator=";", tokenizer="t"))[1] == {"tokenizer": "t"}
    assert layout({"class_path": f"{__name__}.LaidOut"}, chat=False) == Layout("plain", separator=" ")
    with pytest.raises(ValueError, match=r"^elsewhere\.Data, .* \(PYTHONPATH\)"):
        layout(chosen("elsewhere.Data"), chat=False)
