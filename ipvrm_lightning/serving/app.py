"""The application: `PrefixValueModel` over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection
from typing import Any, TypeVar

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from ipvrm_lightning import __version__
from ipvrm_lightning.data.schema import DataError
from ipvrm_lightning.failures import one_line
from ipvrm_lightning.scoring import PrefixValueModel, SolutionScore
from ipvrm_lightning.scoring.answers import ranked
from ipvrm_lightning.serving.batching import Batcher, Busy
from ipvrm_lightning.serving.guard import OPEN_PATH, Guard
from ipvrm_lightning.serving.schema import Limits, Problems, RankBody, Ranking, ScoreBody, Scores, Status, mistake

Result = TypeVar("Result")

_DESCRIPTION = "Values, TD advantages and first wrong steps of solutions, as `ipvrm score` gives them."
_REFUSALS = {
    400: "no JSON that can be read",
    401: "no token, or a wrong one",
    408: "the body did not arrive in time",
    413: "the body is too large",
    421: "called by a name that is not this machine's own",
    422: "a field is missing, of the wrong kind, too long, or cannot be scored",
    500: "the model failed on this request",
    503: "too many wait; see Retry-After",
    504: "not answered in time",
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": Problems, "description": text} for status, text in _REFUSALS.items()
}


class _TooLate(Exception):
    pass


def create_app(
    model: PrefixValueModel,
    *,
    limits: Limits,
    token: str | None,
    hosts: Collection[str] | None,
) -> FastAPI:
    """The ASGI application.

    Args:
        model: that answers; the application's own from now on.
        limits: of requests.
        token: bearer token that every request but those for `/health` must carry; None for none.
        hosts: names by which the server may be called, None for any.
    """
    batcher = Batcher(model, max_waiting=limits.max_waiting)
    bearer = [] if token is None else [Depends(HTTPBearer(auto_error=False))]  # says so in the schema; Guard decides
    app = FastAPI(
        title="ipvrm serve", description=_DESCRIPTION, version=__version__, docs_url=None, redoc_url=None,
        dependencies=bearer,
    )  # fmt: skip
    app.add_middleware(Guard, token=token, max_body=limits.max_body, hosts=hosts)
    for kind in (RequestValidationError, HTTPException, Busy, _TooLate, ValueError, Exception):
        app.add_exception_handler(kind, _tell)

    async def score(asked: ScoreBody | RankBody, request: Request, *, tokens: bool = False) -> list[SolutionScore]:
        work = batcher.score(asked.requests(model.encoder.layout.step_template), asked.place, tokens=tokens)
        return await _within(limits.timeout, request, work)

    @app.get(OPEN_PATH)
    async def health() -> dict[str, str]:
        """Whether the server is up; needs no token."""
        return {"status": "ok"}

    @app.get("/status")
    async def status() -> Status:
        """What is served, within which limits, and what has been done."""
        described = model.description
        return Status(
            **limits.model_dump(), version=__version__, model=described.name, protocol=described.protocol,
            threshold=described.threshold, max_length=model.encoder.max_length, waiting=batcher.waiting,
            scored=batcher.scored, batches=batcher.batches,
        )  # fmt: skip

    @app.post("/score", response_model=Scores, responses=_RESPONSES)
    async def score_solutions(asked: ScoreBody, request: Request) -> JSONResponse:
        """Score solutions."""
        scores = await score(asked, request, tokens=asked.tokens)
        return JSONResponse({"scores": [one.to_dict() for one in scores]})

    @app.post("/rank", response_model=Ranking, responses=_RESPONSES)
    async def rank_candidates(asked: RankBody, request: Request) -> JSONResponse:
        """Put solutions of one problem in order."""
        return JSONResponse({"ranking": [one.to_dict() for one in ranked(await score(asked, request), asked.by)]})

    return app


async def _within(seconds: float, request: Request, work: Awaitable[Result]) -> Result:
    """The result, unless it takes too long or the client hangs up; the work is cancelled then."""
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({working, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise _TooLate(f"not answered within {seconds:g} s: the server is busy, or the solution is long")
        return working.result()
    finally:
        working.cancel()
        gone.cancel()


async def _tell(request: Request, error: Exception) -> JSONResponse:
    """Every error in one form."""
    status, field, text, headers = 500, "", "the model failed on this request; the server's log says how", {}
    if isinstance(error, HTTPException):  # FastAPI's own
        status, text, headers = error.status_code, error.detail, dict(error.headers or {})
    elif isinstance(error, RequestValidationError):
        text, field = mistake(error.errors()[0])
        if not field and "json" not in request.headers.get("Content-Type", "").lower():  # then it was not read as JSON
            text = "send it with the header Content-Type: application/json"
        status, text = 422, text if field else f"the body: {text}"
    elif isinstance(error, DataError):
        status, text, field = 422, str(error.at(field="")), error.field
    elif isinstance(error, Busy):
        status, text, headers = 503, str(error), {"Retry-After": "1"}
    elif isinstance(error, _TooLate):
        status, text = 504, str(error)
    elif isinstance(error, ValueError):  # the scorer's own words: a value that is not finite, say
        text = str(error)
    text, field = one_line(f"{field}: {text}" if field else text), one_line(field)
    return JSONResponse({"error": text, "field": field or None}, status, headers)
