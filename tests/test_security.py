"""What comes from elsewhere runs no code: pickles, repositories with code, configs, answers, names of files."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from ipvrm_lightning.cli import main
from ipvrm_lightning.data import TrajectoryDataModule
from ipvrm_lightning.models import PretrainedLanguageModel
from ipvrm_lightning.models.checkpoints import read_checkpoint
from ipvrm_lightning.pretrained import load_config, load_tokenizer
from ipvrm_lightning.rollouts.verifiers import MathVerifier, Submission
from ipvrm_lightning.strategies import FullyShard

from .fuzz.bases import MODEL, write_bases
from .fuzz.driver import write_files
from .fuzz.folders import CHANGES, model_files


class _Run:
    """Makes a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.file}",)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_bases(tmp_path_factory.mktemp("bases"))


def refused(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(list(command))
    assert ended.value.code in (1, 2)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ipvrm ")]
    return line


@pytest.mark.parametrize("option", ["--ckpt_path", "--model.reward.checkpoint"])
def test_a_checkpoint_with_a_pickle_in_it_is_not_executed(
    option: str, bases: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": {}, "callbacks": _Run(tmp_path / "ran")}, tmp_path / "evil.ckpt")
    if option == "--ckpt_path":
        line = refused(capsys, "fit", "--config", f"{bases}/fit.yaml", option, str(tmp_path / "evil.ckpt"))
        assert "could run code" in line and str(tmp_path / "evil.ckpt") in line
    with pytest.raises(ValueError, match=r"evil.ckpt: not a checkpoint that can be read .*could run code"):
        read_checkpoint(tmp_path / "evil.ckpt")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        FullyShard().load_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "evil.ckpt", weights_only=False)
    assert (tmp_path / "ran").exists(), "the test's own pickle does nothing"


def test_pickles_cannot_be_asked_for(bases: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {}, "callbacks": _Run(tmp_path / "ran")}, tmp_path / "evil.ckpt")
    command = ("fit", "--config", f"{bases}/fit.yaml", "--ckpt_path", str(tmp_path / "evil.ckpt"))
    assert "weights_only" in refused(capsys, *command, "--weights_only", "false")
    assert not (tmp_path / "ran").exists()


def test_weights_that_are_pickles_are_refused_with_the_remedy(bases: str, tmp_path: Path) -> None:
    files = model_files(bases)
    CHANGES["weights pickled"](files)
    files["model/pytorch_model.bin"] = pickle.dumps({"x": _Run(tmp_path / "ran")})
    write_files(files, tmp_path)
    with pytest.raises(ValueError, match=r"pickles \(pytorch_model.bin\), which can run code.*save_pretrained"):
        PretrainedLanguageModel(name=str(tmp_path / "model")).build_model()
    assert not (tmp_path / "ran").exists()


def test_an_index_that_points_to_a_pickle_is_refused(bases: str, tmp_path: Path) -> None:
    files = model_files(bases)
    CHANGES["weights pickled"](files)
    index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": "pytorch_model.bin"}}
    files["model/model.safetensors.index.json"] = json.dumps(index).encode()
    write_files(files, tmp_path)
    with pytest.raises(ValueError, match=r"model: its weights are pickles \(pytorch_model.bin\)"):
        PretrainedLanguageModel(name=str(tmp_path / "model")).build_model()
    (tmp_path / "model" / "model.safetensors.index.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"index.json: not the index of a sharded model \(RecursionError"):
        PretrainedLanguageModel(name=str(tmp_path / "model")).build_model()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_that_is_no_archive_is_not_read(legacy: bool, tmp_path: Path) -> None:
    evil, file = {"state_dict": {}, "callbacks": _Run(tmp_path / "ran")}, tmp_path / "evil.ckpt"
    if legacy:
        torch.save(evil, file, _use_new_zipfile_serialization=False)
    else:
        file.write_bytes(pickle.dumps(evil))
    for mmap in (False, True):
        with pytest.raises(ValueError, match=r"evil.ckpt: not a checkpoint .*no archive.*bare pickle"):
            read_checkpoint(file, mmap=mmap)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("change", ["own code", "own tokenizer"])
def test_code_of_a_model_folder_is_refused_and_not_run(
    change: str, bases: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = model_files(bases)
    CHANGES[change](files)
    write_files(files, tmp_path)
    monkeypatch.chdir(tmp_path)
    name = str(tmp_path / "model")
    for load in (load_tokenizer, load_config, lambda name: PretrainedLanguageModel(name=name).build_model()):
        if (load is load_tokenizer) is (change == "own tokenizer"):
            with pytest.raises(ValueError, match=r"model: the \w+ cannot be loaded .*trust_remote_code"):
                load(name)
    assert not (tmp_path / "ran").exists()


def test_code_beside_a_model_that_is_known_is_left_alone(
    bases: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = model_files(bases)
    CHANGES["own code beside known"](files)
    write_files(files, tmp_path)
    monkeypatch.chdir(tmp_path)
    model = PretrainedLanguageModel(name=str(tmp_path / "model")).build_model()
    assert type(model).__module__ == "transformers.models.qwen3.modeling_qwen3"
    assert not (tmp_path / "ran").exists()


def test_a_script_in_a_folder_of_data_is_not_run(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "data.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ValueError, match=r"folder holds no .json, .jsonl, .parquet file"):
        TrajectoryDataModule(train=str(folder)).setup()
    assert not (tmp_path / "ran").exists()


EVIL = [
    "{class_path: os.system, init_args: {command: touch ran}}",
    "{class_path: subprocess.Popen, init_args: {args: [touch, ran]}}",
    "{class_path: builtins.exec, init_args: {source: open('ran', 'w')}}",
    "!!python/object/apply:os.system [touch ran]",
    "__import__('os').system('touch ran')",
    "${oc.eval:open('ran','w')}",
]
KEYS = [
    "model",
    "data",
    "model.init_args.language_model",
    "model.init_args.optimizer",
    "trainer.callbacks",
    "trainer.logger",
]


@pytest.mark.parametrize("evil", EVIL)
@pytest.mark.parametrize("key", KEYS)
def test_no_key_of_a_config_runs_code(
    key: str, evil: str, bases: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = evil
    for name in reversed(key.split(".")):
        text = f"{{{name}: {text}}}"
    Path("evil.yaml").write_text(text)
    refused(
        capsys, "fit", "--config", f"{bases}/fit.yaml", "--config", "evil.yaml", "--trainer.default_root_dir", "out"
    )
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    "answer",
    [
        "__import__('os').system('touch ran')",
        "exec(\"open('ran', 'w')\")",
        r"\text{__import__('os').system('touch ran')}",
        "1 + __import__('pathlib').Path('ran').touch()",
        "sympify(\"__import__('os').system('touch ran')\")",
        "().__class__.__mro__[1].__subclasses__()",
        "lambda: 0",
        "from os import system; system('touch ran')",
    ],
)
def test_an_answer_that_is_python_is_read_as_text(answer: str, verifier: MathVerifier, tmp_path: Path) -> None:
    response = rf"\boxed{{{answer}}}"
    verdict, announced = verifier.verify([Submission("?", response, "1"), Submission("?", f"Answer: {answer}", "1")])
    assert not verdict.correct and not announced.correct
    verifier.verify([Submission("?", "Answer: 1", answer)] if "(" not in answer else [])
    assert not (Path(os.environ["PYTEST_RAN"]) / "ran").exists()


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Workers that would make the file in this folder."""
    home, folder = Path.cwd(), tmp_path_factory.mktemp("workers")
    os.environ["PYTEST_RAN"] = str(folder)
    os.chdir(folder)
    verifier = MathVerifier(workers=1, time_limit=20.0)
    verifier.verify([Submission("?", "Answer: 1", "1")])
    os.chdir(home)
    yield verifier
    verifier.close()
    del os.environ["PYTEST_RAN"]


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped", "..", "a/b", "nul\0", "con\n"])
def test_names_in_the_data_become_no_file_names(name: str, bases: str, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    row = {"id": name, "subset": name, "data_source": name, "problem": "1?", "steps": ["a", "b"], "label": 1}
    (folder / "bench").mkdir()
    (folder / "bench" / "gsm8k.jsonl").write_text(json.dumps(row) + "\n")
    prompt = {"id": name, "data_source": name, "prompt": "1?", "ground_truth": name, "extra_info": {"index": name}}
    (folder / "prompts.jsonl").write_text(json.dumps(prompt) + "\n")
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    out = folder / "out"
    for command in ("test", "predict"):
        main([command, "--config", f"{bases}/test.yaml", "--data.path", str(folder / "bench"),
              "--trainer.default_root_dir", str(out)])  # fmt: skip
    main(["rollout", "--config", f"{bases}/rollout.yaml", "--prompts.train", str(folder / "prompts.jsonl"),
          "--output", str(out / "rollouts")])  # fmt: skip
    written = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert written and all(out in path.parents for path in written)
    names = {path.name for path in written}
    assert names <= {"config.yaml", "run.json", "results.json", "scores.jsonl", "tokens.jsonl", "predictions.jsonl",
                     "manifest.json", "rollouts.jsonl", ".lock"}  # fmt: skip
    assert not Path("/tmp/escaped").exists()


def test_a_reward_model_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    from ipvrm_lightning.models import RandomLanguageModel
    from ipvrm_lightning.models.initial_reward import find_initial_reward
    from ipvrm_lightning.models.roles import build_roles
    from ipvrm_lightning.objectives import IPVRM

    other = RandomLanguageModel(config={**MODEL, "vocab_size": 290}).build_model()
    weights = {f"model.{name}": tensor for name, tensor in other.named_parameters()}
    torch.save({"state_dict": weights, "objective": IPVRM().describe()}, tmp_path / "reward.ckpt")
    roles = build_roles(RandomLanguageModel(config=MODEL))
    roles.add_reward()
    found = find_initial_reward(str(tmp_path / "reward.ckpt"))
    with pytest.raises(
        ValueError, match=r"parameter .*(embed_tokens|lm_head).* is \(290, 16\) there and \(300, 16\) in the model"
    ):
        found.load(roles, None)
