"""What waits is scored in batches: one thread owns the model, and a batch begins as soon as it is free.

All state belongs to the event loop; the thread gets a list of solutions and returns their scores. While a batch runs,
the next one gathers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from ipvrm_lightning.scoring import PrefixValueModel, ScoreRequest, SolutionScore
from ipvrm_lightning.scoring.encoding import EncodedSolution, Place

#: Positions of a batch over tokens in it, at most: what padding adds is computed for nothing.
_PADDING = 1.25


class Busy(Exception):
    """There is no room now; try again later."""


@dataclass(eq=False)
class _Job:
    solution: EncodedSolution
    tokens: bool
    answer: asyncio.Future[SolutionScore]

    @property
    def length(self) -> int:
        return len(self.solution.example.input_ids)


class Batcher:
    """Scores what many callers ask at the same time; each gets what it would get alone.

    Args:
        model: is used by nobody else; its `max_tokens` is the size of a batch, rows times longest row.
        max_waiting: solutions accepted and not yet answered, at most.
    """

    def __init__(self, model: PrefixValueModel, *, max_waiting: int) -> None:
        self.model, self.max_waiting = model, max_waiting
        self.waiting = self.scored = self.batches = 0
        self._queue: list[_Job] = []
        self._worker: asyncio.Task[None] | None = None
        self._tokenizer_thread = ThreadPoolExecutor(1, "tokenizer")  # it must not be used by two at once
        self._model_thread = ThreadPoolExecutor(1, "model")

    async def score(
        self, requests: Sequence[ScoreRequest], place: Place, *, tokens: bool = False
    ) -> list[SolutionScore]:
        """Scores of one caller's solutions. A caller that is cancelled takes those along that have not started.

        Args:
            requests: solutions.
            place: gives an error the place of the solution.
            tokens: give values and TD advantages of every token, too.

        Raises:
            Busy: too many wait already.
            DataError: a solution cannot be scored as it is.
            Exception: the model failed on one of them.
        """
        if self.waiting + len(requests) > self.max_waiting:
            raise Busy(f"{self.waiting} solutions are waiting, and no more than {self.max_waiting} may; try again")
        loop = asyncio.get_running_loop()
        self.waiting += len(requests)
        jobs: list[_Job] = []
        try:
            encode = partial(self.model.encoder.encode, requests, place)
            solutions = await loop.run_in_executor(self._tokenizer_thread, encode)
            jobs += [_Job(solution, tokens, loop.create_future()) for solution in solutions]
            self._queue += jobs
            if self._worker is None or self._worker.done():
                self._worker = loop.create_task(self._work())
            return list(await asyncio.gather(*(job.answer for job in jobs)))
        finally:
            self.waiting -= len(requests)
            for job in jobs:
                job.answer.cancel()

    async def _work(self) -> None:
        while batch := self._next_batch():
            await self._run(batch)

    def _next_batch(self) -> list[_Job]:
        """The job that waited longest, and those of about its length as long as they fit in and padding is little."""
        waiting = [job for job in self._queue if not job.answer.done()]
        batch: list[_Job] = []
        longest = total = 0
        for job in sorted(waiting, key=lambda job: abs(job.length - waiting[0].length)):
            most, sum_then = max(longest, job.length), total + job.length
            padded = (len(batch) + 1) * most
            if not batch or padded <= min(self.model.max_tokens, _PADDING * sum_then):
                batch.append(job)
                longest, total = most, sum_then
        taken = set(batch)
        self._queue = [job for job in waiting if job not in taken]
        return batch

    async def _run(self, batch: list[_Job]) -> None:
        solutions, tokens = [job.solution for job in batch], any(job.tokens for job in batch)
        score = partial(self.model.score_encoded, solutions, tokens=tokens)
        try:
            scores = await asyncio.get_running_loop().run_in_executor(self._model_thread, score)
        except Exception as error:
            half = len(batch) // 2
            for part in (batch[:half], batch[half:]) if half else ():  # one is at fault, and only that one is to fail
                await self._run(part)
            if not half and not batch[0].answer.done():
                batch[0].answer.set_exception(error)
            return
        self.scored += len(batch)
        self.batches += 1
        for job, one in zip(batch, scores, strict=True):
            if not job.answer.done():
                job.answer.set_result(one if job.tokens else replace(one, tokens=None))
