"""Credit that is exact, on the built-in world: what DistRL would do with a perfect reward model.

A line has one right continuation, given the values that earlier lines state. A token that leaves it has a TD advantage
of -1, every other token 0; what follows in a line that has already gone wrong is neither rewarded nor blamed.
"""

from __future__ import annotations

import torch

from ipvrm_lightning.modules import DistRLModule
from ipvrm_lightning.modules.experience import ScoredBatch
from ipvrm_lightning.worlds.arithmetic.build import split_problems
from ipvrm_lightning.worlds.arithmetic.formats import FORMATS
from ipvrm_lightning.worlds.arithmetic.problems import OPERATIONS, Answer, Line, Problem, Step, operands
from ipvrm_lightning.worlds.arithmetic.settings import WorldSettings
from ipvrm_lightning.worlds.arithmetic.tokenizer import build_tokenizer


class ExactCredit(DistRLModule):
    """DistRL whose TD advantages come from the world's own rules instead of its reward model."""

    def configure_model(self) -> None:
        """Build the models, and let the rules score responses."""
        super().configure_model()
        if self.online_reward is not None:
            self.online_reward.score = Rules(self.language_model.world.settings).score


class Rules:
    """Scores responses to a world's training prompts.

    Args:
        settings: of the world.
    """

    def __init__(self, settings: WorldSettings) -> None:
        self.tokenizer = build_tokenizer()
        self.problems = {FORMATS[0].render_prompt(problem): problem for problem in split_problems(settings).train}

    @torch.no_grad()
    def score(self, part: ScoredBatch) -> None:
        """Give a micro-batch its exact TD advantages."""
        batch, (ids, counted) = part.batch, part.behavior.candidates
        td = torch.zeros_like(part.behavior.log_probs)
        for row in range(len(ids)):
            start, end = int(batch.response_starts[row]), int(batch.lengths[row])
            problem = self.problems[str(self.tokenizer.decode(batch.input_ids[row, :start]))]
            wanted = self.right_tokens(problem, batch.input_ids[row, start:end].tolist())
            for position, token in enumerate(wanted):
                if token is not None:
                    td[row, position] = -(ids[row, position] != token).to(td.dtype)
        scored = counted.clone()
        scored[..., 0] = part.mask
        part.td_advantages = td * scored

    def right_tokens(self, problem: Problem, response: list[int]) -> list[int | None]:
        """The right token at each position of a response, None where its line has already left the right one."""
        wanted: list[int | None] = []
        stated: dict[str, int] = {}
        line_break, end = self.tokenizer.convert_tokens_to_ids("\n"), self.tokenizer.eos_token_id
        number = 0
        while len(wanted) < len(response):
            line = _right_line(problem, number, stated)
            if line is None:
                break
            right = self.tokenizer(FORMATS[0].render_line(line)).input_ids
            right = [*right, end if isinstance(line, Answer) else line_break]
            said = response[len(wanted) :]
            said = said[: said.index(line_break) + 1] if line_break in said else said
            for position in range(len(said)):
                follows = position < len(right) and said[:position] == right[:position]
                wanted.append(right[position] if follows else None)
            parsed = FORMATS[0].parse_line(str(self.tokenizer.decode(said[:-1])))
            if not isinstance(parsed, Step):
                break
            stated[parsed.name] = parsed.result
            number += 1
        return wanted


def _right_line(problem: Problem, number: int, stated: dict[str, int]) -> Line | None:
    """Line `number` of a solution, computed from the values stated so far; None where they do not suffice."""
    try:
        if number == len(problem.definitions):
            return Answer(problem.target, stated[problem.target])
        if number > len(problem.definitions):
            return None
        definition = problem.definitions[number]
        left, right = operands(definition, stated)
        result = OPERATIONS[definition.operator](left.value, right.value)
        return Step(definition.name, definition.operator, left, right, result)
    except (KeyError, ZeroDivisionError):
        return None
