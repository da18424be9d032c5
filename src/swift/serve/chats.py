"""This file knows how a chat is answered: in one piece, or piece by piece."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from swift.serve.answers import AssistantMessage, ChatChunk, ChatCompletion, Choice, ChunkChoice, DeltaMessage, Usage
from swift.serve.choices import Piece, joined, tool_calls
from swift.serve.clients import LAST_EVENT, event_of
from swift.serve.logprobs import for_chat
from swift.serve.protocol import ChatRequest
from swift.serve.visits import Visit
from swift.serve.writer import Question, Writer


class Chat:
    """The answer to one request for a chat."""

    def __init__(self, writer: Writer, question: Question, request: ChatRequest, visit: Visit) -> None:
        self._writer = writer
        self._question = question
        self._request = request
        self._visit = visit
        count = question.request.sampling.n
        self._heard: list[list[Piece]] = [[] for _ in range(count)]
        self._tokens = [0] * count
        self._ids: list[list[int]] = [[] for _ in range(count)]
        self._wants_logprobs = question.request.sampling.wants_logprobs

    async def whole(self) -> ChatCompletion:
        """The answer in one piece."""
        async with aclosing(self._pieces()) as pieces:
            async for _ in pieces:
                pass
        choices = [
            Choice(
                index=index, message=_message(piece), finish_reason=piece.reason or "stop",
                logprobs=for_chat(piece.logprobs) if self._wants_logprobs else None,
                **({"token_ids": self._ids[index]} if self._request.return_details else {}),
            )
            for index, piece in enumerate(map(joined, self._heard))
        ]  # fmt: skip
        asked = self._question.request.prompt.input_ids
        return ChatCompletion(
            id=self._visit.id, object="chat.completion", created=self._visit.created, model=self._request.model,
            choices=choices, usage=self._usage(),
            **({"prompt_token_ids": asked} if self._request.return_details else {}),
        )  # fmt: skip

    async def events(self) -> AsyncGenerator[str, None]:
        """The answer as events: the role of each reply, what it says, why it ends; at last, if asked for, the usage."""
        options = self._request.stream_options
        tail: dict[str, Any] = {"usage": None} if options is not None and options.include_usage else {}
        greeted: set[int] = set()
        async with aclosing(self._pieces()) as pieces:
            async for index, piece in pieces:
                if index not in greeted:
                    greeted.add(index)
                    hello = DeltaMessage(role="assistant", content="")
                    yield self._event(ChunkChoice(index=index, delta=hello, finish_reason=None, logprobs=None), tail)
                if piece.says:
                    yield self._event(self._grown(index, piece), tail)
        if tail:
            yield self._event(None, {"usage": self._usage()})
        yield LAST_EVENT

    async def _pieces(self) -> AsyncGenerator[tuple[int, Piece], None]:
        """The pieces as they come; in the end, however it comes, the visit is over.

        Tokens are counted as they come, and exactly at the end of each reply.
        """
        is_whole = False
        try:
            async with aclosing(self._writer.pieces(self._question)) as pieces:
                async for index, piece, delta in pieces:
                    self._visit.first()
                    self._heard[index].append(piece)
                    self._tokens[index] += 1
                    if delta.completion is not None:
                        self._ids[index] = delta.completion.token_ids
                        self._tokens[index] = len(self._ids[index])
                    yield index, piece
            is_whole = True
        finally:
            usage = self._usage()
            said = [_written(piece) for piece in map(joined, self._heard)]
            self._visit.end(said, usage.prompt_tokens, usage.completion_tokens, is_whole=is_whole)

    def _grown(self, index: int, piece: Piece) -> ChunkChoice:
        logprobs = for_chat(piece.logprobs) if self._wants_logprobs else None
        delta = DeltaMessage(**_parts(piece))
        return ChunkChoice(index=index, delta=delta, finish_reason=piece.reason, logprobs=logprobs)

    def _event(self, choice: ChunkChoice | None, tail: dict[str, Any]) -> str:
        made = ChatChunk(
            id=self._visit.id, object="chat.completion.chunk", created=self._visit.created, model=self._request.model,
            choices=[] if choice is None else [choice], **tail,
        )  # fmt: skip
        return event_of(made.as_json())

    def _usage(self) -> Usage:
        read, written = len(self._question.request.prompt.input_ids), sum(self._tokens)
        return Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)


def _message(piece: Piece) -> AssistantMessage:
    """The message that a whole reply is; its content is null when it only calls."""
    parts = {"content": None if piece.calls else "", **_parts(piece)}
    return AssistantMessage(role="assistant", **parts)


def _written(piece: Piece) -> dict[str, Any]:
    """A reply as it is written down."""
    return {**_message(piece).model_dump(exclude_unset=True, exclude={"role"}), "finish_reason": piece.reason}


def _parts(piece: Piece) -> dict[str, Any]:
    """What there is of content, thinking and calls."""
    parts: dict[str, Any] = {"content": piece.content, "reasoning_content": piece.reasoning}
    parts["tool_calls"] = tool_calls(piece) if piece.calls else None
    return {name: part for name, part in parts.items() if part}
