"""This file knows the routes: which address is answered by what, and how errors are answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

from swift.core.errors import DataError, EngineError
from swift.core.logs import get_logger
from swift.serve.answers import ErrorAnswer
from swift.serve.auth import Key
from swift.serve.desk import LEFT, Desk, Served
from swift.serve.front import BodyLimits, ClientLeft, Front
from swift.serve.gate import Gate
from swift.serve.journal import Journal
from swift.serve.meters import Meters
from swift.serve.protocol import (
    ChatRequest,
    ClassifyRequest,
    CompletionRequest,
    EmbeddingRequest,
    RerankRequest,
    ScoreRequest,
)
from swift.serve.refusals import Refusal
from swift.serve.visits import Ledger

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
RERANK, SCORE, CLASSIFY = "/v1/rerank", "/v1/score", "/v1/classify"
REQUESTS: dict[str, type[BaseModel]] = {
    CHAT: ChatRequest, COMPLETIONS: CompletionRequest, EMBEDDINGS: EmbeddingRequest,
    RERANK: RerankRequest, "/rerank": RerankRequest, SCORE: ScoreRequest, "/score": ScoreRequest,
    CLASSIFY: ClassifyRequest, "/classify": ClassifyRequest,
}  # fmt: skip
"""Path -> what is asked there."""
PATHS = (*REQUESTS, "/v1/models", "/health", "/ping", "/metrics", "/docs", "/openapi.json")


@dataclass(frozen=True)
class House:
    """How the server keeps itself.

    key: what clients must show. max_body: bytes of a body. log_interval: seconds between two reports; -1 reports none.
    journal: where requests are written down.
    """

    key: str | None = None
    owned_by: str = "swift"
    max_body: int = 32 << 20
    log_interval: int = -1
    journal: Journal = field(default_factory=lambda: Journal(verbose=False))


def build_app(served: Served, house: House, gate: Gate) -> Front:
    """The app, which can be put behind any server that speaks ASGI."""
    meters = Meters(PATHS, gate)
    desk = Desk(served, house.owned_by, Ledger(meters, house.journal))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        reports = asyncio.create_task(_report(meters, house.log_interval))
        try:
            yield
        finally:
            reports.cancel()
            await asyncio.gather(reports, return_exceptions=True)
            desk.close()
            get_logger().info("in all: %s", meters.total.summary())

    app = FastAPI(title="Swiftlet", version="1", lifespan=lifespan, redoc_url=None)
    _add_models(app, desk)
    _add_house(app, desk, gate, meters)
    _add_errors(app)
    _describe(app)
    return Front(app, Key(house.key), gate, BodyLimits(house.max_body), meters)


async def _report(meters: Meters, interval: int) -> None:
    while interval > 0:
        await asyncio.sleep(interval)
        meters.report()


def _add_models(app: FastAPI, desk: Desk) -> None:
    answers: Mapping[str, Callable[[Request], Awaitable[Response]]] = {
        CHAT: desk.chat, COMPLETIONS: desk.completion, EMBEDDINGS: desk.embedding, RERANK: desk.ranking,
        "/rerank": desk.ranking, SCORE: desk.scores, "/score": desk.scores, CLASSIFY: desk.classes,
        "/classify": desk.classes,
    }  # fmt: skip
    for path, shape in REQUESTS.items():
        app.add_api_route(
            path, answers[path], methods=["POST"], response_model=None, openapi_extra=_body(shape),
            responses={400: {"model": ErrorAnswer}}, summary=(shape.__doc__ or path).splitlines()[0],
        )  # fmt: skip


def _add_house(app: FastAPI, desk: Desk, gate: Gate, meters: Meters) -> None:
    async def models() -> Response:
        """The model, and the adapters that can be asked for by their names."""
        return Response(desk.models().as_json(), media_type="application/json")

    async def model(name: str) -> Response:
        """One of them."""
        return Response(desk.card(name).as_json(), media_type="application/json")

    async def health() -> Response:
        """200 while requests are taken, 503 when the server is about to end."""
        gate.check()
        return Response()

    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(meters.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    app.add_api_route("/v1/models", models, methods=["GET"], response_model=None)
    app.add_api_route("/v1/models/{name:path}", model, methods=["GET"], response_model=None)
    app.add_api_route("/health", health, methods=["GET"], response_model=None)
    app.add_api_route("/ping", health, methods=["GET"], response_model=None)
    app.add_api_route("/ping", health, methods=["POST"], response_model=None, include_in_schema=False)
    app.add_api_route("/metrics", metrics, methods=["GET"], response_model=None)


def _add_errors(app: FastAPI) -> None:
    def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal), "it is registered for refusals"
        return _refusal(error)

    def unknown(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException), "it is registered for these"
        code = "no_such_route" if error.status_code == 404 else None
        return _refusal(Refusal(error.status_code, f"{error.detail}.", code=code), error.headers or {})

    def wrong(_: Request, error: Exception) -> Response:
        return _refusal(Refusal(400, str(error), code="invalid_value"))

    def left(_: Request, _error: Exception) -> Response:
        return Response(status_code=LEFT)

    def failed(_: Request, error: Exception) -> Response:
        return _refusal(Refusal(500, f"The server failed ({type(error).__name__}); its log says how."))

    app.add_exception_handler(Refusal, refused)
    app.add_exception_handler(HTTPException, unknown)
    app.add_exception_handler(EngineError, wrong)
    app.add_exception_handler(DataError, wrong)
    app.add_exception_handler(ClientLeft, left)
    app.add_exception_handler(Exception, failed)


def _refusal(refusal: Refusal, headers: Mapping[str, str] | None = None) -> Response:
    return Response(refusal.body, refusal.status, {**refusal.headers, **(headers or {})})


def _body(shape: type[BaseModel]) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{shape.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _describe(app: FastAPI) -> None:
    """Put the shapes of requests, which are read here and not by FastAPI, into the page that describes the routes."""
    shapes = dict.fromkeys(REQUESTS.values())
    _, found = models_json_schema(
        [(shape, "validation") for shape in shapes], ref_template="#/components/schemas/{model}"
    )
    app.openapi()["components"]["schemas"] |= found["$defs"]
