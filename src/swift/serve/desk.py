"""This file knows how a request is taken at its route: read, given to the model, and answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel, ValidationError

from swift.serve.answers import Answer, ModelCard, ModelList
from swift.serve.chats import Chat
from swift.serve.clients import begun, while_there
from swift.serve.front import ClientLeft
from swift.serve.protocol import (
    ChatRequest,
    ClassifyRequest,
    CompletionRequest,
    EmbeddingRequest,
    RerankRequest,
    ScoreRequest,
)
from swift.serve.reader import Reader
from swift.serve.refusals import Refusal, of_validation
from swift.serve.texts import Texts
from swift.serve.visits import Ledger, Visit
from swift.serve.writer import Writer

R = TypeVar("R", bound=BaseModel)
T = TypeVar("T")
LEFT = 499
"""The status, which nobody reads, of an answer to a client that has left."""


@dataclass(frozen=True)
class Served:
    """What is served: a model under its name, and the adapters that can be asked for by theirs."""

    name: str
    model: Writer | Reader
    adapters: Sequence[str] = ()
    context_length: int | None = None


class Desk:
    """Where requests are read, handed to the model, and answered."""

    def __init__(self, served: Served, owner: str, ledger: Ledger) -> None:
        self.served = served
        self.owner = owner
        self.created = int(time.time())
        self._ledger = ledger
        # One thread renders and tokenizes, so that a long prompt does not hold up what others are being told.
        self._rendering = ThreadPoolExecutor(1, thread_name_prefix="swift-rendering")

    def close(self) -> None:
        """End the thread that renders."""
        self._rendering.shutdown(wait=False, cancel_futures=True)

    async def chat(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        asked, model = await _asked(request, ChatRequest), self.served.model
        adapter = self._adapter(asked.model)
        visit = Visit("chatcmpl", asked, self._ledger)
        if isinstance(model, Reader):
            samples = await self._aside(model.of_chat, asked)
            return await _answered(request, model.chat(samples, asked, visit))
        question = await self._aside(model.chat, asked, adapter)
        chat = Chat(model, question, asked, visit)
        if question.streams:
            return await begun(request.receive, chat.events())
        return await _answered(request, chat.whole())

    async def completion(self, request: Request) -> Response:
        """`POST /v1/completions`."""
        asked = await _asked(request, CompletionRequest)
        adapter, model = self._adapter(asked.model), self._writer()
        visit = Visit("cmpl", asked, self._ledger)
        questions = await self._aside(model.completion, asked, adapter)
        texts = Texts(model, questions, asked, visit)
        if questions[0].streams:
            return await begun(request.receive, texts.events())
        return await _answered(request, texts.whole())

    async def embedding(self, request: Request) -> Response:
        """`POST /v1/embeddings`."""
        asked, model = await _asked(request, EmbeddingRequest), self._reader("embedding")
        self._adapter(asked.model)
        samples = await self._aside(model.of_embedding, asked)
        return await _answered(request, model.embed(samples, asked, Visit("embd", asked, self._ledger)))

    async def ranking(self, request: Request) -> Response:
        """`POST /v1/rerank`."""
        asked, model = await _asked(request, RerankRequest), self._reader("reranker")
        self._adapter(asked.model)
        samples = await self._aside(model.of_ranking, asked)
        return await _answered(request, model.rank(samples, asked, Visit("rerank", asked, self._ledger)))

    async def scores(self, request: Request) -> Response:
        """`POST /v1/score`."""
        asked, model = await _asked(request, ScoreRequest), self._reader("reranker")
        self._adapter(asked.model)
        samples = await self._aside(model.of_scores, asked)
        return await _answered(request, model.score(samples, asked, Visit("score", asked, self._ledger)))

    async def classes(self, request: Request) -> Response:
        """`POST /classify`."""
        asked, model = await _asked(request, ClassifyRequest), self._reader("seq_cls")
        self._adapter(asked.model)
        samples = await self._aside(model.of_classes, asked)
        return await _answered(request, model.classify(samples, asked, Visit("classify", asked, self._ledger)))

    def models(self) -> ModelList:
        """`GET /v1/models`."""
        served = self.served
        about: dict[str, Any] = {"object": "model", "created": self.created, "owned_by": self.owner}
        if served.context_length is not None:
            about["max_model_len"] = served.context_length
        cards = [ModelCard(id=served.name, **about)]
        cards += [ModelCard(id=name, parent=served.name, **about) for name in served.adapters]
        return ModelList(object="list", data=cards)

    def card(self, name: str) -> ModelCard:
        """`GET /v1/models/...`. Raises Refusal (404)."""
        self._adapter(name)
        return next(card for card in self.models().data if card.id == name)

    def _adapter(self, name: str) -> str | None:
        """The adapter that the name of a model means; None for the model itself. Raises Refusal (404)."""
        if name == self.served.name:
            return None
        if name in self.served.adapters:
            return name
        names = ", ".join([self.served.name, *self.served.adapters])
        raise Refusal(404, f"The model `{name}` does not exist. There are: {names}.", param="model",
                      code="model_not_found")  # fmt: skip

    def _writer(self) -> Writer:
        if isinstance(self.served.model, Writer):
            return self.served.model
        raise Refusal(400, f"This model writes no text: its task is {self.served.model.task}.", code="wrong_task")

    def _reader(self, task: str) -> Reader:
        if isinstance(self.served.model, Reader):
            return self.served.model
        raise Refusal(400, f"This is for models of the task {task}, and this one writes text.", code="wrong_task")

    async def _aside(self, work: Callable[..., T], *given: Any) -> T:
        """What `work` gives, done in the thread that renders."""
        return await asyncio.get_running_loop().run_in_executor(self._rendering, work, *given)


async def _asked(request: Request, shape: type[R]) -> R:
    """The body in its shape. Raises Refusal."""
    try:
        return shape.model_validate_json(await request.body())
    except ValidationError as error:
        raise of_validation(error) from None


async def _answered(request: Request, work: Awaitable[Answer]) -> Response:
    """The answer that `work` gives, unless the client leaves before."""
    try:
        answer = await while_there(request.receive, work)
    except ClientLeft:
        return Response(status_code=LEFT)
    return Response(answer.as_json(), media_type="application/json")
