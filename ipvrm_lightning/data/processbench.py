"""Solutions with a label of their first wrong step: ProcessBench (arXiv 2412.06559) and TRL's stepwise supervision."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

from ipvrm_lightning.data.chat import Encoded, PromptFormat, encode, render
from ipvrm_lightning.data.dataset import TrajectoryDataset
from ipvrm_lightning.data.reading import (
    LeftOut,
    OnBadRows,
    Row,
    find_files,
    is_hub_name,
    read_file,
    read_hub,
    render_chunks,
)
from ipvrm_lightning.data.schema import DataError, check_choice, check_limit, group_of
from ipvrm_lightning.data.solutions import Solution, check_solution
from ipvrm_lightning.data.steps import assign_steps, join_steps
from ipvrm_lightning.data.templates import Rendered
from ipvrm_lightning.data.tokenized import TokenizedDataModule
from ipvrm_lightning.types import AVERAGE, Example

SUBSETS = ("gsm8k", "math", "olympiadbench", "omnimath")


class ProcessBenchDataModule(TokenizedDataModule):
    """Judges step scores on solutions whose first wrong step is known.

    Steps are joined as in the paper's evaluation ("Step 1: ..." separated by blank lines). A step spans its text, the
    number before it and the separator after it; a token belongs to the step in which its first character that is no
    space lies, by the offsets of one tokenisation.

    Args:
        path: owner/name on the hub with one split per subset, a folder with `<subset>.json` (or .jsonl, .parquet), or a
            file. Files of TRL's stepwise form (`prompt`, `completions`, `labels`) are read as well.
        subsets: parts to use, in this order; None for those that are there (all four of ProcessBench on the hub).
        step_template: text of a step, with `{number}` (from 1) and `{step}`.
        separator: text between steps.
        limit: solutions per subset, drawn with the seed; None for all.
        max_tokens: rows times longest row of one forward pass, at most.
        max_length: tokens of prompt and solution, at most; None for no limit.
        over_length: "error" where a solution is longer, "drop" to leave it out and count it. Never truncated: steps
            would be left without tokens.
        on_bad_rows: "error" stops at the first row that cannot be used, "skip" counts them by reason.
        prompt_format: "chat" by the tokenizer's template, "plain" text, or "auto" for chat where there is a template.
        system_prompt: put before prompts that have no system message.
        chat_template_kwargs: what else the template is told, such as `enable_thinking: false`.
        tokenizer: name or folder; None for that of the module it is used with.
        seed: of the draw.
        num_workers: processes that build batches ahead; 0 builds them in the evaluating process.
    """

    def __init__(
        self,
        *,
        path: str = "Qwen/ProcessBench",
        subsets: list[str] | None = None,
        step_template: str = "Step {number}: {step}",
        separator: str = "\n\n",
        limit: int | None = None,
        max_tokens: int = 16384,
        max_length: int | None = None,
        over_length: Literal["error", "drop"] = "error",
        on_bad_rows: OnBadRows = "error",
        prompt_format: PromptFormat = "auto",
        system_prompt: str | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        tokenizer: str | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(max_tokens=max_tokens, tokenizer=tokenizer, seed=seed, num_workers=num_workers)
        if over_length not in ("error", "drop"):
            raise ValueError(f"over_length must be error or drop, not {over_length}: cut solutions lose steps")
        check_choice("on_bad_rows", on_bad_rows, OnBadRows)
        check_choice("prompt_format", prompt_format, PromptFormat)
        check_limit("limit", limit)
        check_limit("max_length", max_length)
        if "{step}" not in step_template:
            raise ValueError(f"step_template has no {{step}}: {step_template!r}")
        self.path, self.subsets, self.limit = path, subsets, limit
        self.step_template, self.separator = step_template, separator
        self.max_length, self.over_length, self.on_bad_rows = max_length, over_length, on_bad_rows
        self.prompt_format, self.system_prompt = prompt_format, system_prompt
        self.chat_template_kwargs = chat_template_kwargs
        self.report: dict[str, int] = {}

    def prepare_data(self) -> None:
        """Download a hub data set once per machine."""
        if is_hub_name(self.path):
            for subset in self.subsets or SUBSETS:
                next(read_hub(self.path, subset), None)

    def setup(self, stage: str | None = None) -> None:
        """Read, check and tokenise; runs once.

        Raises:
            DataError: names file, row and field.
        """
        if self.test_sets:
            return
        left_out, sources = LeftOut(self.on_bad_rows), self._sources()
        if len(sources) > 1 and AVERAGE in dict(sources):
            raise DataError(f"a subset is named {AVERAGE!r}, as the mean over subsets is: rename it", source=self.path)
        solutions = [solution for subset, rows in sources for solution in self._read(subset, rows, left_out)]
        examples = list(self._examples(solutions, left_out))
        if any(example.outcome is None for example in examples):  # known of some only, and not what is judged
            examples = [replace(example, outcome=None) for example in examples]
        dataset = TrajectoryDataset(examples)
        if not len(dataset):
            raise ValueError(f"no usable solution in {self.path}; left out: {dict(left_out.counts)}")
        self.test_sets = [dataset]
        self.report = dict(left_out.counts)
        left_out.warn(type(self).__name__)

    def _sources(self) -> list[tuple[str, Iterator[Row]]]:
        if is_hub_name(self.path):
            return [(subset, read_hub(self.path, subset)) for subset in self.subsets or SUBSETS]
        found = find_files(self.path)
        files = {file.stem: file for file in found}
        if len(files) < len(found):
            raise DataError(f"two files of one subset: {', '.join(file.name for file in found)}", source=self.path)
        if self.subsets is None:
            return [(stem, read_file(file)) for stem, file in files.items()]
        if missing := [subset for subset in self.subsets if subset not in files]:
            text = f"no file for subset {missing[0]}; there are {', '.join(files)}; give --data.subsets null for all"
            raise DataError(text, source=self.path)
        return [(subset, read_file(files[subset])) for subset in self.subsets]

    def _read(self, subset: str, rows: Iterator[Row], left_out: LeftOut) -> list[Solution]:
        solutions, rows_of = [], dict[str, int]()
        for source, number, row in rows:
            try:
                solution = check_solution(row, source, number, subset)
                if (first := rows_of.setdefault(solution.id, number)) != number:
                    raise DataError(f"the id of row {first}", field="id", found=solution.id)
            except DataError as error:
                left_out.bad_row(error.at(source, number))
            else:
                solutions.append(solution)
        if self.limit is None or self.limit >= len(solutions):
            return solutions
        chosen = sorted(random.Random(f"{self.seed}-{subset}").sample(range(len(solutions)), self.limit))
        return [solutions[i] for i in chosen]

    def _examples(self, solutions: list[Solution], left_out: LeftOut) -> Iterator[Example]:
        for rendered in render_chunks(solutions, self._render, left_out):
            texts = encode(self.load_tokenizer(), [text for _, (text, _) in rendered])
            for (solution, (text, starts)), encoded in zip(rendered, texts, strict=True):
                try:
                    example = self._example(solution, text, starts, encoded, left_out)
                except DataError as error:
                    left_out.bad_row(error.at(solution.source, solution.row))
                else:
                    if example is not None:
                        yield example

    def _render(self, solution: Solution) -> tuple[Rendered, list[int]]:
        response, starts = join_steps(solution.steps, step_template=self.step_template, separator=self.separator)
        text = render(
            self.load_tokenizer(),
            solution.prompt,
            response,
            prompt_format=self.prompt_format,
            system_prompt=self.system_prompt,
            chat_template_kwargs=self.chat_template_kwargs,
        )
        return text, starts

    def _example(
        self, solution: Solution, text: Rendered, starts: list[int], encoded: Encoded | DataError, left_out: LeftOut
    ) -> Example | None:
        if isinstance(encoded, DataError):
            raise encoded
        steps = assign_steps(encoded, starts, len(text.response))
        if self.max_length is not None and len(encoded.input_ids) > self.max_length:
            if self.over_length == "error":
                raise DataError(
                    f"solution is longer than max_length {self.max_length}; raise it or set over_length to drop",
                    field="steps",
                    found=len(encoded.input_ids),
                )
            left_out.counts[f"dropped: longer than {self.max_length} tokens ({solution.subset})"] += 1
            return None
        group = group_of(solution.prompt)
        metadata = {
            "id": solution.id,
            "subset": solution.subset,
            "problem": group,
            "step_lengths": [len(step) for step in solution.steps],
            "final_answer_correct": solution.final_answer_correct,
        }
        correct = solution.final_answer_correct
        return Example(
            input_ids=encoded.input_ids,
            response_start=encoded.response_start,
            group=group,
            outcome=None if correct is None else int(correct),
            step_ids=steps,
            step_label=solution.label,
            metadata=metadata,
        )
