"""`ipvrm rollout`: prompts in, sampled and verified responses out, in a folder that can be added to and trained on."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal, NamedTuple

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace
from tqdm import tqdm

from ipvrm_lightning.config_checks import bound_values, check_class_paths, expand_home
from ipvrm_lightning.data import PromptModule
from ipvrm_lightning.failures import names_full_disk
from ipvrm_lightning.rollouts.sources import Answered, Refused, ResponseSource, Sampling
from ipvrm_lightning.rollouts.store import RolloutStore
from ipvrm_lightning.rollouts.verifiers import Submission, Verifier, judge
from ipvrm_lightning.types import PromptExample

PromptsOf = Literal["train", "validation", "test"]
#: So many prompts refused before any was answered are no matter of the prompts.
_REFUSED_AT_FIRST = 1000


class Summary(NamedTuple):
    """What a store holds, and how fast this run was.

    Args:
        prompts: answered.
        responses: sampled, blank ones included.
        right: responses with score 1.
        cut_off: responses that reached the length limit, blank ones included.
        blank: responses without text, which are counted but cannot be trained on.
        unverified: responses that the verifier had a problem with.
        mixed: prompts with both right and wrong responses, blank ones not counted: those that pairs can be made of.
        alike: prompts whose responses are all the same text.
        new_prompts: answered in this run.
        tokens_per_second: response tokens of this run by its seconds; None where lengths are unknown or nothing was
            sampled.
        refused: what was said of prompts that the source gave no responses to, one line; None where there are none.
    """

    prompts: int
    responses: int
    right: int
    cut_off: int
    blank: int
    unverified: int
    mixed: int
    alike: int
    new_prompts: int
    tokens_per_second: float | None
    refused: str | None = None

    def __str__(self) -> str:
        def part(count: int, whole: int) -> str:
            return f"{count} ({count / whole:.1%})" if whole else "0"

        speed = "unknown" if self.tokens_per_second is None else f"{self.tokens_per_second:,.0f}"
        lines = [
            f"prompts       {self.prompts} ({self.new_prompts} in this run)",
            f"responses     {self.responses}",
            f"right         {part(self.right, self.responses)}",
            f"cut off       {part(self.cut_off, self.responses)}, counted as wrong",
            f"mixed groups  {part(self.mixed, self.prompts)}",
            f"tokens/s      {speed}",
        ]
        lines += [f"blank         {part(self.blank, self.responses)}, left out, counted as wrong"] * bool(self.blank)
        lines += [f"unverified    {part(self.unverified, self.responses)}, counted as wrong"] * bool(self.unverified)
        if self.alike:
            lines.append(f"all alike     {part(self.alike, self.prompts)} groups; where many are, is anything sampled?")
        return "\n".join(lines)


def roll_out(
    *,
    prompts: PromptModule,
    source: ResponseSource,
    verifier: Verifier,
    output: str,
    sampling: Sampling = Sampling(),  # noqa: B008  (frozen)
    prompts_of: PromptsOf = "train",
    settings: Mapping[str, Any],
) -> Summary:
    """Answer prompts, check the answers, keep both.

    `rollouts.jsonl` in the output folder has one line a prompt, in the form that `TrajectoryDataModule` reads. A run
    that was stopped, at any moment, goes on where it was when the same command is given again; prompts may be added in
    between. A response that was cut off counts as wrong, whatever stands in it. A prompt that the source refuses is
    passed over, and asked again by the next run.

    Args:
        prompts: data module of prompts; its tokenizer is the source's where it names none.
        source: what answers: `InProcess` or `Endpoint`.
        verifier: what says whether an answer is right.
        output: folder of the rollouts.
        sampling: how responses are drawn.
        prompts_of: part of the data module to answer.
        settings: what decides the responses and their scores, for the folder's manifest.

    Raises:
        ValueError: no prompts, bad data, a ground truth that the verifier cannot read, a folder with other settings, a
            server that gives no answers or refuses all of the first prompts; one line.
    """
    if prompts.tokenizer is None:
        prompts.with_tokenizer(source.build_tokenizer())
    prompts.prepare_data()
    prompts.setup("fit")
    parts = {"train": prompts.train_prompts, "validation": prompts.val_prompts, "test": prompts.test_prompts}
    if not (chosen := parts[prompts_of]):
        raise ValueError(f"{type(prompts).__name__} has no {prompts_of} prompts")
    try:
        with names_full_disk(output), RolloutStore(output, settings, weights=source.weights()) as store:
            pending = [prompt for prompt in chosen if not store.holds(prompt)]
            verifier.check(pending)
            start, tokens, refused = time.perf_counter(), 0, list[Refused]()
            answers = source.respond(pending, sampling) if pending else ()
            for answered in tqdm(answers, "prompts", len(chosen), initial=len(chosen) - len(pending)):
                if isinstance(answered, Refused):
                    refused.append(answered)
                    if len(refused) == _REFUSED_AT_FIRST and not len(store):
                        raise ValueError(_refusals(refused))
                    continue
                record = verified(answered, verifier)
                store.append(answered.prompt, record)
                tokens += sum(length or 0 for length in record["response_tokens"])
            seconds = time.perf_counter() - start
            found = summarise(store.records(), len(pending) - len(refused), tokens / seconds if tokens else None)
            return found._replace(refused=_refusals(refused) if refused else None)
    finally:
        verifier.close()


def _refusals(refused: list[Refused]) -> str:
    first = refused[0]
    return f"prompts refused: {len(refused)}, the first of them {first.prompt.id!r}: {first.reason}"


def verified(answered: Answered, verifier: Verifier) -> dict[str, Any]:
    """The line of one prompt.

    Trainers cannot use a response without text: such are left out of the lists and counted in `blank`, those among
    them that were cut off in `blank_cut_off`.
    """
    prompt: PromptExample = answered.prompt
    responses = [response for response in answered.responses if response.text.strip()]
    blank = [response for response in answered.responses if not response.text.strip()]
    submissions = [Submission(prompt.prompt, response.text, prompt.ground_truth) for response in responses]
    verdicts = judge(verifier, submissions, [prompt.id] * len(submissions))
    judged = list(zip(responses, verdicts, strict=True))
    return {
        "data_source": prompt.data_source,
        "prompt": prompt.prompt,
        "ground_truth": prompt.ground_truth,
        "responses": [response.text for response in responses],
        "scores": [int(verdict.correct and response.finished) for response, verdict in judged],
        "answers": [verdict.answer for verdict in verdicts],
        "problems": [verdict.problem for verdict in verdicts],
        "finished": [response.finished for response in responses],
        "prompt_tokens": len(prompt.input_ids),
        "response_tokens": [response.tokens for response in responses],
        "blank": len(blank),
        "blank_cut_off": sum(not response.finished for response in blank),
    }


def summarise(records: Iterable[Mapping[str, Any]], new_prompts: int, tokens_per_second: float | None) -> Summary:
    """Counts over a store's lines; see `Summary`."""
    prompts = responses = right = cut_off = blank = unverified = mixed = alike = 0
    for record in records:
        scores = record["scores"]
        prompts += 1
        responses += len(scores) + record["blank"]
        right += sum(scores)
        cut_off += record["finished"].count(False) + record["blank_cut_off"]
        blank += record["blank"]
        unverified += sum(problem is not None for problem in record["problems"])
        mixed += 0 < sum(scores) < len(scores)
        alike += len(scores) > 1 and len(set(record["responses"])) == 1
    return Summary(prompts, responses, right, cut_off, blank, unverified, mixed, alike, new_prompts, tokens_per_second)


def build_parser() -> ArgumentParser:
    """Arguments of `roll_out`, from configs that stack and the command line."""
    parser = ArgumentParser(
        prog="ipvrm rollout",
        description="Sample responses to prompts, verify them, keep them as training data.",
        exit_on_error=False,
    )
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="YAML; later files and arguments win.")
    parser.add_function_arguments(roll_out, skip={"settings"})
    parser.set_defaults({"prompts": {"class_path": "ipvrm_lightning.data.PromptDataModule"}})
    return parser


def deciding(config: Namespace) -> dict[str, Any]:
    """The part of a parsed config that decides responses and scores: classes, their arguments but for incidental ones.

    Which prompts there are and what they are cut from is left out; what makes their tokens is in each prompt's hash.
    """
    plain = config.as_dict()
    settings: dict[str, Any] = {"sampling": plain["sampling"]}
    for name in ("source", "verifier"):
        chosen = plain[name]
        incidental: frozenset[str] = getattr(resolve_name(chosen["class_path"]), "incidental", frozenset())
        arguments = {key: value for key, value in chosen.get("init_args", {}).items() if key not in incidental}
        settings[name] = {"class_path": chosen["class_path"], "init_args": arguments}
    return settings


def main(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: after `ipvrm rollout`.

    Raises:
        ValueError: as `roll_out`, or prompts were refused, while the others were answered and kept.
    """
    bound_values()
    parser = build_parser()
    config = parser.parse_args(arguments)
    if not isinstance(config.sampling, Namespace):  # jsonargparse takes anything for a group of keys in a file
        raise ValueError(f"sampling: expected keys and values, found {config.sampling!r}")
    check_class_paths(config.clone().as_dict())
    expand_home(config)
    settings = deciding(config)
    try:
        values = parser.instantiate_classes(config).as_dict()
    except (TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"this config cannot be built: {error}") from error
    values.pop("config", None)
    summary = roll_out(**values, settings=settings)
    print(summary)
    print(f"in {Path(values['output']) / 'rollouts.jsonl'}")
    if summary.refused:
        raise ValueError(summary.refused)
