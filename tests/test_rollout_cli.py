"""`ipvrm rollout` from prompts to a file that trains: killed, resumed, refused, and against a real server."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ipvrm_lightning.cli import main
from ipvrm_lightning.data import PromptModule, TrajectoryDataModule
from ipvrm_lightning.rollout_cli import build_parser, roll_out, summarise, verified
from ipvrm_lightning.rollouts.endpoint import Endpoint
from ipvrm_lightning.rollouts.sources import Answered, Response, Sampling
from ipvrm_lightning.rollouts.verifiers import Submission, Verdict
from ipvrm_lightning.types import PromptExample

from .conftest import REPOSITORY
from .data.tokenizers import byte_level
from .modules.conftest import QWEN
from .processes import Started
from .rollouts.fake_server import serve, status
from .rollouts.judges import EvenLength

PROMPTS = 14
TOKENIZER = byte_level()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a tiny random model with its tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    folder = tmp_path_factory.mktemp("model")
    ends = {"eos_token_id": TOKENIZER.eos_token_id, "pad_token_id": TOKENIZER.pad_token_id}
    fields = {**QWEN, "vocab_size": len(TOKENIZER), "initializer_range": 0.2, **ends}
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields))
    # what a server samples with by default: nothing that the request does not ask for
    made.generation_config = GenerationConfig(do_sample=True, top_k=0, **ends)
    made.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return str(folder)


class GivenPrompts(PromptModule):
    """As the built-in world: no files, its own test prompts."""

    def setup(self, stage: str | None = None) -> None:
        ids = self.load_tokenizer()("1 + 1 =")["input_ids"]
        self.test_prompts = [PromptExample(ids, "1 + 1 =", "2", "given", f"g{n}") for n in range(3)]


def arguments(folder: Path, model: str, *more: str, output: str = "out", prompts: int = PROMPTS) -> list[str]:
    rows = [{"prompt": f"What is {n} + {n}?" + " please" * (n % 3), "answer": 2 * n, "id": n} for n in range(prompts)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "prompts": {"init_args": {"train": str(folder / "prompts.jsonl")}},
        "source": {
            "class_path": "ipvrm_lightning.rollouts.InProcess",
            "init_args": {
                "language_model": {
                    "class_path": "ipvrm_lightning.models.PretrainedLanguageModel",
                    "init_args": {"name": model},
                },
                "batch_size": 4,
                "device": "cpu",
            },
        },
        "verifier": {"class_path": "tests.rollouts.judges.EvenLength"},
        "sampling": {"group_size": 3, "max_new_tokens": 30},
        "output": str(folder / "elsewhere"),
    }
    (folder / "rollout.yaml").write_text(yaml.safe_dump(config))
    return ["rollout", "--config", str(folder / "rollout.yaml"), "--output", str(folder / output), *more]


def lines(folder: Path, output: str = "out") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / output / "rollouts.jsonl").read_bytes().splitlines()]


def test_rollouts_can_be_trained_on(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    main(arguments(tmp_path, model, "--prompts.system_prompt", "Be brief.", "--output=~/out"))
    found = lines(tmp_path)
    assert [record["id"] for record in found] == [str(n) for n in range(PROMPTS)]
    assert found[1]["prompt"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 1 + 1? please"},
    ]
    for record in found:
        columns = ("responses", "scores", "answers", "problems", "finished", "response_tokens")
        assert {len(record[name]) for name in columns} == {3 - record["blank"]}
        assert (record["ground_truth"], record["data_source"]) == (str(2 * int(record["id"])), "prompts")
        for text, score, finished, length in zip(
            record["responses"], record["scores"], record["finished"], record["response_tokens"], strict=True
        ):
            assert score == (len(text) % 2 == 0 and finished)
            assert TOKENIZER.eos_token not in text
            assert 1 <= length <= 30 and finished >= (length < 30)
    scores = [score for record in found for score in record["scores"]]
    assert 0 < sum(scores) < len(scores)  # else the model ends too rarely for this test
    printed = capsys.readouterr().out
    assert f"prompts       {PROMPTS} ({PROMPTS} in this run)" in printed and f"responses     {3 * PROMPTS}" in printed
    assert f"right         {sum(scores)} (" in printed and str(tmp_path / "out" / "rollouts.jsonl") in printed

    data = TrajectoryDataModule(train=str(tmp_path / "out" / "rollouts.jsonl"), validation_fraction=0.0)
    data.with_tokenizer(TOKENIZER).setup()
    assert data.train_set is not None and data.report == {}
    assert data.train_set.outcomes is not None and data.train_set.outcomes.tolist() == scores
    assert len(data.train_set.groups) == PROMPTS


def test_responses_depend_neither_on_batches_nor_on_stops(tmp_path: Path, model: str) -> None:
    main(arguments(tmp_path, model))
    main(arguments(tmp_path, model, "--source.batch_size", "64", output="large"))
    main(arguments(tmp_path, model, output="parts", prompts=5))
    main(arguments(tmp_path, model, "--source.batch_size", "9", "--verifier.delay", "0.001", output="parts"))
    assert lines(tmp_path) == lines(tmp_path, "large") == lines(tmp_path, "parts")
    main(arguments(tmp_path, model, "--sampling.seed", "1", output="other"))
    assert lines(tmp_path, "other") != lines(tmp_path)


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, model: str) -> None:
    main(arguments(tmp_path, model, output="whole"))
    # Judging takes a while, so that kills fall between, before and into lines.
    command = arguments(tmp_path, model, "--verifier.delay", "0.2")
    for count in (0, 1, 7):
        process = Started(main, command)
        path, wanted = tmp_path / "out" / ("rollouts.jsonl" if count else "manifest.json"), count
        while not path.exists() or path.read_bytes().count(b"\n") < wanted:
            assert process.poll() is None, "finished before it was killed"
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert wanted <= (path.read_bytes().count(b"\n") if count else 0) < PROMPTS
    torn = tmp_path / "out" / "rollouts.jsonl"
    with torn.open("ab") as file:
        file.write(b'{"id": "13", "resp')
    main(command)
    assert lines(tmp_path) == lines(tmp_path, "whole")
    before = torn.read_bytes()
    main(command)  # nothing is left to do
    assert torn.read_bytes() == before


def fails(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        main(command)
    assert exit_info.value.code == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ipvrm rollout: ")]
    return line


def test_bad_input_is_one_line_before_a_model_is_built(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main(arguments(tmp_path, model, prompts=2))
    from ipvrm_lightning.models import PretrainedLanguageModel

    monkeypatch.setattr(PretrainedLanguageModel, "build_model", lambda self: pytest.fail("a model was built"))
    assert "sampling.temperature 1.0, now it is 0.5" in fails(
        arguments(tmp_path, model, "--sampling.temperature", "0.5"), capsys
    )
    assert "verifier.init_args.modulus 2, now it is 3" in fails(
        arguments(tmp_path, model, "--verifier.modulus", "3"), capsys
    )
    weights = Path(model) / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "was made with other weights of the same name" in fails(arguments(tmp_path, model), capsys)
    weights.write_bytes(content)
    config = Path(model) / "generation_config.json"
    content = config.read_bytes()
    config.write_text(json.dumps({**json.loads(content), "eos_token_id": [0, 5]}))
    assert "or another config beside them" in fails(arguments(tmp_path, model), capsys)
    config.write_bytes(content)
    assert "prompt '0' was finished with another text" in fails(
        arguments(tmp_path, model, "--prompts.system_prompt", "Be brief."), capsys
    )
    assert "has no validation prompts" in fails(arguments(tmp_path, model, "--prompts_of", "validation"), capsys)
    why = "device mps: Apple's GPU has no float64, which draws, scores and metrics need: use cpu"
    assert fails(arguments(tmp_path, model, "--source.device", "mps"), capsys) == f"ipvrm rollout: {why}"
    assert "max_new_tokens must be at least 1" in fails(
        arguments(tmp_path, model, "--sampling.max_new_tokens", "0"), capsys
    )
    command = arguments(tmp_path, model)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "q", "answer": 1}\n{"prompt": "q", "answer": []}\n')
    assert "prompts.jsonl, row 2, field 'answer': ground truth is neither text nor a number" in fails(command, capsys)
    command = arguments(tmp_path, model, output="math")
    (tmp_path / "prompts.jsonl").write_text(
        '{"prompt": "q", "answer": 1}\n{"prompt": "r", "answer": "???", "id": "r"}\n'
    )
    config = yaml.safe_load((tmp_path / "rollout.yaml").read_text())
    verifier = {"class_path": "ipvrm_lightning.rollouts.MathVerifier", "init_args": {"workers": 1}}
    (tmp_path / "rollout.yaml").write_text(yaml.safe_dump({**config, "verifier": verifier}))
    assert "prompt 'r': ground truth cannot be read: '???'" in fails(command, capsys)


def test_any_data_module_of_prompts_will_do(tmp_path: Path, model: str) -> None:
    command = arguments(tmp_path, model, "--prompts_of", "test")
    overlay = {"prompts": {"class_path": "tests.test_rollout_cli.GivenPrompts", "init_args": {"seed": 3}}}
    config = yaml.safe_load((tmp_path / "rollout.yaml").read_text())
    (tmp_path / "rollout.yaml").write_text(yaml.safe_dump({**config, **overlay}))
    main(command)
    assert [record["id"] for record in lines(tmp_path)] == ["g0", "g1", "g2"]


def test_what_was_cut_off_or_blank_counts_as_wrong() -> None:
    prompt = PromptExample([1, 2], "q", "2", "tests", "p")
    responses = [Response("ab", True, 3), Response("ab", False, 9), Response(" \n", True, 2), Response("a", True, 2)]
    record = verified(Answered(prompt, responses), EvenLength())
    assert record["responses"] == ["ab", "ab", "a"] and record["scores"] == [1, 0, 0] and record["blank"] == 1
    assert record["finished"] == [True, False, True] and record["response_tokens"] == [3, 9, 2]
    only_blank = verified(Answered(prompt, [Response("", True, 1)] * 3 + [Response(" ", False, 9)]), EvenLength())
    assert (record["blank_cut_off"], only_blank["blank_cut_off"]) == (0, 1)
    summary = summarise([record, only_blank], 1, None)
    assert summary == (2, 8, 1, 2, 5, 0, 1, 0, 1, None, None)
    assert "right         1 (12.5%)" in str(summary) and "cut off       2 (25.0%), counted as wrong" in str(summary)
    assert "blank         5 (62.5%)" in str(summary) and "tokens/s      unknown" in str(summary)


def test_a_share_of_being_right_is_no_verdict() -> None:
    class Graded(EvenLength):
        def verify(self, submissions: Sequence[Submission]) -> list[Verdict]:
            return [verdict._replace(correct=0.1) for verdict in super().verify(submissions)]

    answered = Answered(PromptExample([1, 2], "q", "2", "tests", "p"), [Response("ab", True, 3)])
    with pytest.raises(ValueError, match=r"Graded\.verify, prompt 'p': correct must be bool, found 0\.1"):
        verified(answered, Graded())


def test_counts_are_what_a_trainer_finds_in_the_file(tmp_path: Path) -> None:
    def record(name: str, *texts: str) -> dict[str, Any]:
        responses = [Response(text, len(text) < 4, len(text)) for text in texts]
        return {"id": name, **verified(Answered(PromptExample([1], name, "2", "tests", name), responses), EvenLength())}

    records = [record("a", "ab", "a"), record("b", "ab", "cd", " "), record("c", "", " "), record("d", "ab", "abcd")]
    summary = summarise(records, 4, None)
    path = tmp_path / "rollouts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in records))
    pairs, data = (
        TrajectoryDataModule(train=str(path), validation_fraction=0.0, pairwise=pairwise, prompt_format="plain")
        for pairwise in (True, False)
    )
    for module in (pairs, data):
        module.with_tokenizer(TOKENIZER).setup()
    dataset = data.train_set
    assert dataset is not None and dataset.outcomes is not None and pairs.train_set is not None
    assert len(pairs.train_set.groups) == summary.mixed == 2
    assert len(dataset) == summary.responses - summary.blank and dataset.outcomes.sum() == summary.right
    ended = [dataset.input_ids(row)[-1] == TOKENIZER.eos_token_id for row in range(len(dataset))]
    assert ended.count(False) == summary.cut_off == 1


def test_the_config_parses_and_its_parts_are_made() -> None:
    parser = build_parser()
    config = parser.parse_args(["--config", str(REPOSITORY / "configs" / "rollout_qwen.yaml")])
    made = parser.instantiate_classes(config)
    assert made.source.language_model.name == "Qwen/Qwen3-0.6B-Base" and made.source.stop_tokens == ["<|im_end|>"]
    assert (made.sampling.group_size, made.sampling.max_new_tokens) == (16, 3072)


@pytest.mark.parametrize("name", ["distrl_qwen", "grpo_qwen"])
def test_policy_optimisation_draws_anew(name: str) -> None:
    """With the seed of the rollouts, step 1 would get the responses that the reward model was trained on."""
    rollouts, policy = (
        yaml.safe_load((REPOSITORY / "configs" / f"{config}.yaml").read_text()) for config in ("rollout_qwen", name)
    )
    arguments = policy["model"]["init_args"]
    assert rollouts["prompts"]["init_args"]["train"] == policy["data"]["init_args"]["train"]
    assert len({rollouts["sampling"]["seed"], arguments["sampling"]["seed"]}) == 2


def endpoint(url: str, model: str, **options: Any) -> list[str]:
    arguments = {"url": url, "model": model, "tokenizer": model, "prompt_as": "text", **options}
    source = {"class_path": "ipvrm_lightning.rollouts.Endpoint", "init_args": arguments}
    return ["--source", json.dumps(source)]


def test_a_server_that_fails_leaves_what_was_finished(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    with serve() as server:
        options = {"api_key_env": "MY_KEY", "max_concurrency": 1, "max_retries": 0}
        server.troubles = [lambda handler: handler.answer(200, server.reply(handler.body))] * 20 + [status(503, "busy")]
        command = arguments(tmp_path, model, *endpoint(server.url, model, **options))
        assert "answered 503: busy" in fails(command, capsys)
        kept = lines(tmp_path)
        assert 0 < len(kept) < PROMPTS
        main(command)
    found = lines(tmp_path)
    assert found[: len(kept)] == kept
    assert sorted(int(record["id"]) for record in found) == list(range(PROMPTS))
    assert all(record["response_tokens"] == [7, 7, 7] for record in found)
    written = "".join(path.read_text() for path in (tmp_path / "out").iterdir() if path.is_file())
    assert "sk-very-secret" not in written and "127.0.0.1" not in written


def refusing(folder: Path, url: str, count: int) -> dict[str, Any]:
    """Arguments of `roll_out`: prompts `p0`, `p1`, ... of a server, which tells them apart by their last token."""
    prompts = GivenPrompts(tokenizer="none")
    prompts.setup = lambda stage=None: None  # type: ignore[method-assign]
    prompts.test_prompts = [PromptExample([5, n], f"{n}", "2", "given", f"p{n}") for n in range(count)]
    source = Endpoint(url=url, model="m", max_concurrency=4)
    options = {"prompts": prompts, "source": source, "verifier": EvenLength(), "prompts_of": "test", "settings": {}}
    return {**options, "output": str(folder), "sampling": Sampling(group_size=2)}


def test_refused_prompts_leave_the_others_and_are_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipvrm_lightning.rollout_cli._REFUSED_AT_FIRST", 10)  # of which some are answered before
    with serve() as server:
        server.refused = {1, 7, *range(12, 30)}
        summary = roll_out(**refusing(tmp_path / "out", server.url, 40))
        assert sorted(int(record["id"][1:]) for record in lines(tmp_path)) == [
            0,
            *range(2, 7),
            *range(8, 12),
            *range(30, 40),
        ]
        assert (summary.prompts, summary.new_prompts) == (20, 20) and summary.refused is not None
        assert re.fullmatch(
            rf"prompts refused: 20, the first of them 'p1': {server.url} answered 400: prompt 1 is too long",
            summary.refused,
        )
        asked = len(server.requests)
        server.refused = {1}
        summary = roll_out(**refusing(tmp_path / "out", server.url, 40))
        assert len(lines(tmp_path)) == 39 and len(server.requests) - asked in (39, 40)  # 19 prompts, and 1 or 2 for p1
        assert (summary.prompts, summary.new_prompts) == (39, 19)
        server.refused = set()
        assert roll_out(**refusing(tmp_path / "out", server.url, 40)).refused is None


def test_a_server_that_refuses_the_first_prompts_is_asked_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ipvrm_lightning.rollout_cli._REFUSED_AT_FIRST", 10)
    with serve() as server:
        server.refused = set(range(40))
        with pytest.raises(
            ValueError, match=r"^prompts refused: 10, the first of them 'p.': .* answered 400: prompt . is too long$"
        ):
            roll_out(**refusing(tmp_path / "out", server.url, 40))
        assert len(server.requests) < 40
        assert lines(tmp_path) == []


def test_a_run_with_refused_prompts_fails_when_all_others_are_done(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve() as server:
        server.troubles = [status(400, "filtered")]
        command = arguments(tmp_path, model, *endpoint(server.url, model, max_concurrency=1))
        with pytest.raises(SystemExit) as exit_info:
            main(command)
        printed = capsys.readouterr()
        assert exit_info.value.code == 1
        said = f"prompts refused: 1, the first of them '0': {server.url} answered 400: filtered"
        assert printed.err.splitlines()[-1] == f"ipvrm rollout: {said}"
        assert f"prompts       {PROMPTS - 1} ({PROMPTS - 1} in this run)" in printed.out
        main(command)
    assert sorted(int(record["id"]) for record in lines(tmp_path)) == list(range(PROMPTS))


@pytest.fixture(scope="module")
def real_server(model: str) -> Iterator[str]:
    """`transformers serve` on this machine, with the tiny model."""
    pytest.importorskip("uvicorn", reason="transformers serve needs the dev extra")
    pytest.importorskip("fastapi", reason="transformers serve needs the dev extra")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", model, "--device", "cpu"]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(600):
            assert process.poll() is None, "transformers serve ended"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()


def without_special_tokens(text: str) -> str:
    for token in TOKENIZER.all_special_tokens:
        text = text.replace(token, "")
    return text


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_a_real_server_says_what_the_model_says_here(tmp_path: Path, model: str, real_server: str, api: str) -> None:
    greedy = ("--sampling.temperature", "0", "--sampling.group_size", "1", "--sampling.max_new_tokens", "12")
    main(arguments(tmp_path, model, *greedy, output="here", prompts=6))
    main(arguments(tmp_path, model, *greedy, *endpoint(real_server, model, api=api), output="there", prompts=6))
    here, there = ({record["id"]: record for record in lines(tmp_path, output)} for output in ("here", "there"))
    assert len(here) == 6 and here.keys() == there.keys()
    for name, record in here.items():
        text, said = without_special_tokens(record["responses"][0]), there[name]["responses"][0]
        assert said == (text if api == "completions" else text.strip())
        assert record["response_tokens"] == there[name]["response_tokens"]
        assert record["prompt_hash"] == there[name]["prompt_hash"]


def test_a_real_server_samples_groups(tmp_path: Path, model: str, real_server: str) -> None:
    main(arguments(tmp_path, model, *endpoint(real_server, model)))
    found = lines(tmp_path)
    assert len(found) == PROMPTS
    texts = [text for record in found for text in record["responses"]]
    assert len(set(texts)) > len(texts) // 2
    for record in found:  # this server calls a response cut off where it is as long as allowed
        assert record["finished"] == [length < 30 for length in record["response_tokens"]]
