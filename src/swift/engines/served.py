"""This file knows how requests from Python are sent to a server, and what it answers becomes the same responses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from swift.engines.requests import InferRequest, RequestConfig
from swift.engines.responses import (
    ChatCompletionMessageToolCall,
    ChatCompletionResponse,
    ChatCompletionResponseChoice,
    ChatCompletionResponseStreamChoice,
    ChatCompletionStreamResponse,
    ChatMessage,
    DeltaMessage,
    Function,
    UsageInfo,
)

UNSAID = RequestConfig()


def fields_of(request: InferRequest, config: RequestConfig) -> dict[str, Any]:
    """The fields of a request for a chat; what is not said is left to the server."""
    given = {name: value for name, value in asdict(config).items() if value != getattr(UNSAID, name)}
    given.pop("stream", None)
    if config.top_logprobs is not None:
        given["logprobs"] = True
    row = request.row()
    row.pop("objects", None)
    return {**row, **given}


def response_of(answer: Mapping[str, Any]) -> ChatCompletionResponse:
    """A whole answer."""
    choices = [
        ChatCompletionResponseChoice(
            each["index"], _message(each["message"]), each["finish_reason"], each.get("logprobs"), each.get("token_ids")
        )
        for each in answer["choices"]
    ]
    return ChatCompletionResponse(
        answer["model"], choices, _usage(answer["usage"]), answer["id"], created=answer["created"],
        prompt_token_ids=answer.get("prompt_token_ids"),
    )  # fmt: skip


def pieces_of(chunks: Iterable[Mapping[str, Any]]) -> Iterator[ChatCompletionStreamResponse]:
    """The pieces of a streamed answer. Tokens are known with the last, which says nothing else."""
    usage = UsageInfo(0, 0, 0)
    for chunk in chunks:
        usage = _usage(chunk["usage"]) if chunk.get("usage") else usage
        choices = [
            ChatCompletionResponseStreamChoice(
                each["index"], _delta(each["delta"]), each.get("finish_reason"), each.get("logprobs")
            )
            for each in chunk["choices"]
        ]
        yield ChatCompletionStreamResponse(chunk["model"], choices, usage, chunk["id"], created=chunk["created"])


def _message(told: Mapping[str, Any]) -> ChatMessage:
    return ChatMessage("assistant", told["content"], _calls(told.get("tool_calls")), told.get("reasoning_content"))


def _delta(told: Mapping[str, Any]) -> DeltaMessage:
    known = {each.name for each in fields(DeltaMessage)} - {"tool_calls"}
    return DeltaMessage(
        **{name: value for name, value in told.items() if name in known}, tool_calls=_calls(told.get("tool_calls"))
    )


def _calls(told: Sequence[Mapping[str, Any]] | None) -> list[ChatCompletionMessageToolCall] | None:
    if not told:
        return None
    return [
        ChatCompletionMessageToolCall(Function(each["function"]["name"], each["function"]["arguments"]), id=each["id"])
        for each in told
    ]


def _usage(told: Mapping[str, Any]) -> UsageInfo:
    return UsageInfo(told["prompt_tokens"], told["completion_tokens"], told["total_tokens"])
