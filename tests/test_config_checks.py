from __future__ import annotations

from argparse import ArgumentError
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import pytest
from jsonargparse import ArgumentParser, Namespace

from ipvrm_lightning.cli import main
from ipvrm_lightning.config_checks import (
    bound_values,
    check_class_paths,
    check_config_files,
    check_output_folder,
    expand_home,
    read_counts_as_counts,
)
from ipvrm_lightning.data import TrajectoryDataModule
from ipvrm_lightning.lightning_cli import IPVRMCLI
from ipvrm_lightning.modules import IPVRMModule
from ipvrm_lightning.modules.distrl_settings import AdvantageSettings
from ipvrm_lightning.modules.schedule import Schedule

from .conftest import REPOSITORY
from .fuzz.config_values import TEXTS

if TYPE_CHECKING:
    from decimal import Decimal

EXPECTED = {
    "unclosed": "line 2, column 5",
    "runs a command": "line 1, column 8: could not determine a constructor for the tag",
    "contains itself": "nested too deeply, or within itself",
    "grows": f"expands to {1 + sum((8**k - 1) // 7 for k in range(2, 11))} values, more than 100000",
    "deep": "nested too deeply",
    "two documents": "line 2, column 1: but found another document",
    "a list": "expected keys and values, found sequence",
    "a number": "expected keys and values, found scalar",
    "a key twice": "line 1, column 25: key 'max_steps' comes twice",
    "a date": "a value that cannot be read",
}


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("option", ["--config", "-c", "--config="])
def test_a_broken_config_is_named_with_the_place(name: str, option: str, tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(TEXTS[name])
    words = [f"{option}{file}"] if option.endswith("=") else [option, str(file)]
    with pytest.raises(ValueError) as caught:
        check_config_files(["fit", *words])
    assert str(caught.value).startswith(f"{file}: ") and EXPECTED[name] in str(caught.value)


def test_a_broken_config_ends_a_command_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "twice.yaml").write_text("trainer: {max_steps: 1, max_steps: 2}\n")
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", str(tmp_path / "twice.yaml")])
    told = f"ipvrm fit: {tmp_path / 'twice.yaml'}: line 1, column 25: key 'max_steps' comes twice\n"
    assert (ended.value.code, capsys.readouterr().err) == (1, told)


def test_sound_configs_pass(tmp_path: Path) -> None:
    file = tmp_path / "sound.yaml"
    file.write_text("\ufeffa: &a {b: 1}\nc: *a\nd: [*a, *a]\n")
    check_config_files(["fit", "--config", str(file), "--config", "{model: null}", "--config"])
    file.write_text("")
    with pytest.raises(ValueError, match="found nothing"):
        check_config_files(["-c", str(file)])


@pytest.mark.parametrize("options", [["--config", "configs/ipvrm_arithmetic.yml"], ["-c=configs/ipvrm_aritmetic.yaml"]])
def test_a_config_that_is_not_there_is_named_with_the_nearest(options: list[str]) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such config; did you mean configs/ipvrm_arithmetic.yaml\?$"):
        check_config_files(["fit", *options])
    with pytest.raises(FileNotFoundError, match=r"^not/there.yaml: no such config$"):
        check_config_files(["fit", "--config", "not/there.yaml"])


@pytest.mark.parametrize("name", ["grows", "contains itself", "deep"])
def test_files_within_configs_are_bounded_too(name: str, tmp_path: Path) -> None:
    bound_values()
    bound_values()
    file = tmp_path / "broken.yaml"
    file.write_text(TEXTS[name])
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(TrajectoryDataModule, "data")
    with pytest.raises(
        ArgumentError, match=r"broken.yaml: (expands to .* values|nested too deeply|while increasing flow level)"
    ):
        parser.parse_args(["--data", str(file)])
    (tmp_path / "sound.yaml").write_text(
        "class_path: ipvrm_lightning.data.TrajectoryDataModule\ninit_args: {train: &a r.jsonl, test: *a}\n"
    )
    chosen = parser.parse_args(["--data", str(tmp_path / "sound.yaml")]).data
    assert chosen.init_args.train == chosen.init_args.test == "r.jsonl"


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"model": {"class_path": "os.system", "init_args": {"command": "true"}}}, "model"),
        ({"model": {"init_args": {"optimizer": {"class_path": "builtins.exec"}}}}, "model.init_args.optimizer"),
        ({"trainer": {"callbacks": [{"class_path": "os.system"}]}}, r"trainer.callbacks\[0\]"),
    ],
)
def test_a_function_is_no_class(config: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=f"^{key}: class_path .* is no class$"):
        check_class_paths(config)
    check_class_paths({"model": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1.0, "betas": (0.1, 0.2)}}})


class Own:
    """Arguments of which nobody can say that they take no null."""

    def __init__(self, anything: Any, thing: object, number: int = None, share: Decimal | int = 1) -> None:  # type: ignore[assignment]  # noqa: RUF013
        pass


class OwnOfKnownTypes:
    """What the parser takes for a number of one's own."""

    def __init__(self, number: int = 1, either: int | None = 1) -> None:
        pass


def test_a_null_is_no_number() -> None:
    def data(**arguments: Any) -> dict[str, Any]:
        return {"data": {"class_path": "ipvrm_lightning.data.TrajectoryDataModule", "init_args": arguments}}

    check_class_paths(data(batch_size=2, train="rollouts.jsonl", tokenizer=None, unknown=None))
    with pytest.raises(ValueError, match=r"^data\.init_args\.batch_size: expected int, found null$"):
        check_class_paths(data(batch_size=None))
    with pytest.raises(ValueError, match=r"^data\.init_args\.prompt_format: expected .*Literal.*, found null$"):
        check_class_paths(data(prompt_format=None))


def test_nulls_for_arguments_of_ones_own_are_refused_where_their_types_are_known() -> None:
    names = ("anything", "thing", "number", "share")
    check_class_paths({"callbacks": [{"class_path": f"{__name__}.Own", "init_args": dict.fromkeys(names)}]})
    nulls = {"class_path": f"{__name__}.OwnOfKnownTypes", "init_args": {"either": None, "number": None}}
    with pytest.raises(ValueError, match=r"^callbacks\[0\]\.init_args\.number: expected int, found null$"):
        check_class_paths({"callbacks": [nulls]})


def test_a_folder_that_cannot_be_written_is_named_by_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_output_folder(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())  # a command that fails leaves nothing behind
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "runs"):
        with pytest.raises(OSError, match=rf"^trainer\.default_root_dir {place}: runs cannot be written there \("):
            check_output_folder(place)
    monkeypatch.setattr("os.access", lambda place, mode: False)
    with pytest.raises(OSError, match=rf"{tmp_path}: runs cannot be written there \(Permission denied\)$"):
        check_output_folder(tmp_path)


MODEL = ["--config", str(REPOSITORY / "configs" / "distrl_qwen.yaml")]


@pytest.fixture(scope="module")
def fit_parser() -> ArgumentParser:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["ipvrm", "fit"])
        return IPVRMCLI.parsers()["fit"]


def test_a_config_in_the_folder_of_the_user_is_found_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.yaml").write_text("a: 1\n")
    check_config_files(["fit", "--config=~/own.yaml", "-c", "~/own.yaml"])
    (tmp_path / "own.yaml").write_text("a: 1\na: 2\n")
    with pytest.raises(ValueError, match=rf"^{tmp_path}/own.yaml: line 2"):
        check_config_files(["fit", "--config=~/own.yaml"])


def test_the_folder_of_the_user_stands_in_every_place_of_a_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    shared = {"path": "~/a", "files": ["~/b", "c", 3], "texts": ("~ 5", "~root/a", "a/~/b")}
    config = Namespace(part=Namespace(given=shared, nothing=None), number=1.5, path="~/")
    expand_home(config)
    assert config.part.given == {**shared, "path": "/home/me/a", "files": ["/home/me/b", "c", 3]}
    assert (config.path, config.number, config.part.nothing) == ("/home/me/", 1.5, None)
    assert shared["path"] == "~/a"  # a default may be anybody's


def test_null_on_the_command_line_is_null_at_every_depth(fit_parser: ArgumentParser) -> None:
    def found(value: str, *keys: str) -> list[Any]:
        config = fit_parser.parse_args([*MODEL, *(word for key in keys for word in (f"--{key}", value))]).as_dict()
        model, data = config["model"]["init_args"], config["data"]["init_args"]
        language_model = model["language_model"]["init_args"]
        names = ("chat_template", "attn_implementation", "revision")
        values = [config["trainer"]["default_root_dir"], data["system_prompt"], data["tokenizer"]]
        return [*values, *(language_model[name] for name in names), model["reward"]["checkpoint"]]

    keys = [
        "trainer.default_root_dir",
        "data.system_prompt",
        "data.init_args.tokenizer",
        "model.init_args.language_model.init_args.chat_template",
        "model.init_args.language_model.init_args.attn_implementation",
        "model.language_model.revision",
        "model.init_args.reward.init_args.checkpoint",
    ]
    assert found("text", *keys) == ["text"] * 7
    assert found("null", *keys) == [None] * 7


def test_nulls_within_a_nested_value_are_kept(fit_parser: ArgumentParser) -> None:
    words = ["--model.language_model", "ipvrm_lightning.models.RandomLanguageModel"]
    words += ["--model.language_model.config", "{a: null, b: [null, true, None], c: {d: 1}}"]
    model = fit_parser.parse_args([*MODEL, *words]).model.init_args.language_model
    assert model.init_args.config == {"a": None, "b": [None, True, "None"], "c": {"d": 1}}


@dataclass
class Halved(Schedule):
    """Half of the rate.

    Args:
        floor: of the rate's share.
    """

    floor: float = 0.5


@dataclass
class OwnCredit(AdvantageSettings):
    """Advantages of one's own.

    Args:
        temperature: of the credit.
    """

    temperature: float = 1.0


def test_schedules_and_advantages_of_ones_own_are_named_by_class_path(fit_parser: ArgumentParser) -> None:
    words = ["--model.scheduler.name", "linear", "--model.advantages", f"{__name__}.OwnCredit"]
    words += ["--model.advantages.temperature", "2", "--model.reward.scheduler", f"{__name__}.Halved"]
    model = fit_parser.instantiate_classes(fit_parser.parse_args([*MODEL, *words])).model
    assert type(model.scheduler) is Schedule and model.scheduler.name == "linear"
    assert type(model.reward.scheduler) is Halved and model.reward.scheduler.floor == 0.5
    assert type(model.advantages) is OwnCredit and model.advantages.temperature == 2
    assert model.advantages.normalization == "minibatch"  # the config's, under another class


class OwnModule(IPVRMModule):
    """As it is."""


@pytest.mark.parametrize("kind", ["SFTModule", f"{__name__}.OwnModule"])
def test_a_module_of_another_class_keeps_the_adapters_of_the_config(kind: str, fit_parser: ArgumentParser) -> None:
    """And whatever else both classes have, as everywhere."""
    config = str(REPOSITORY / "configs" / "ipvrm_smollm2.yaml")
    given = fit_parser.parse_args(["--config", config, "--model", kind, "--model.language_model.lora.alpha", "8"])
    assert given.model.class_path.endswith(kind)
    model = fit_parser.instantiate_classes(given).model
    assert (model.language_model.lora.r, model.language_model.lora.alpha) == (16, 8)
    assert model.language_model.name == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert model.scheduler.name == "cosine" and given.model.init_args.optimizer.init_args.lr == 3e-4
    assert ("objective" in given.model.init_args) == (kind != "SFTModule")


@pytest.mark.parametrize("text", ["# Task", "#", "# Role\n# Rules", " ", "null"])
def test_an_argument_that_yaml_takes_for_a_comment_is_text(text: str, fit_parser: ArgumentParser) -> None:
    data = ["--data", "ipvrm_lightning.data.TrajectoryDataModule", "--data.train", "rollouts.jsonl"]
    found = fit_parser.parse_args([*MODEL, *data, f"--data.system_prompt={text}"]).data.init_args.system_prompt
    assert found == (None if text == "null" else text)


def test_one_is_a_count_in_whichever_order_python_has_the_types() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--batches", type=Union[float, int, None])  # noqa: UP007
    assert isinstance(parser.parse_args(["--batches=1"]).batches, float)  # else there is nothing left to mend
    read_counts_as_counts(parser)
    for text, value in (("1", 1), ("4", 4), ("1.0", 1.0), ("0.25", 0.25), ("null", None)):
        found = parser.parse_args([f"--batches={text}"]).batches
        assert (found, type(found)) == (value, type(value))
    with pytest.raises(ArgumentError):
        parser.parse_args(["--batches=some"])


def test_a_share_of_an_epoch_is_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr(IPVRMCLI, "_run_subcommand", lambda self, subcommand: made.append(self.trainer))
    command = ["fit", "--config", "configs/ipvrm_arithmetic.yaml", "--trainer.default_root_dir", str(tmp_path)]
    for text, value in (("0.5", 0.5), ("1.0", 1.0), ("4", 4)):
        main([*command, f"--trainer.val_check_interval={text}"])
        found = made[-1].val_check_interval
        assert (found, type(found)) == (value, type(value))
    main([*command, "--trainer.val_check_interval=00:01:30:00"])
    assert made[-1]._val_check_time_interval == 90 * 60


def test_one_batch_is_not_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr(IPVRMCLI, "_run_subcommand", lambda self, subcommand: made.append(self.trainer))
    names = [f"limit_{stage}_batches" for stage in ("train", "val", "test", "predict")]
    command = ["fit", "--config", "configs/ipvrm_arithmetic.yaml", "--trainer.default_root_dir", str(tmp_path)]
    for text, kind in (("1", int), ("1.0", float)):
        main([*command, *(f"--trainer.{name}={text}" for name in names)])
        assert [type(getattr(made[-1], name)) for name in names] == [kind] * 4
