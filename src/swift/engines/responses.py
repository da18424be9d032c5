"""This file knows what a model that is asked from Python answers: the shapes of OpenAI, as plain values.

`swift.serve.answers` has shapes of the same names for the wire. They are others: there a field that was not set is not
written, a chunk of a stream carries its usage last, and calls leave the text; here every field is there to be read,
`usage` counts in every piece, calls stay in the text too, and nothing has to be imported to check it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import uuid4

from swift.engines.base import TokenLogprob


def new_id(kind: str) -> str:
    """An id that no other answer has."""
    return f"{kind}-{uuid4().hex}"


@dataclass
class UsageInfo:
    """Tokens that were read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


@dataclass
class Function:
    """A call: the name of a function, and its arguments as JSON text."""

    name: str
    arguments: str


@dataclass
class ChatCompletionMessageToolCall:
    """A call of a tool."""

    function: Function
    type: Literal["function"] = "function"
    id: str = field(default_factory=lambda: new_id("toolcall"))


@dataclass
class ChatMessage:
    """What the assistant says; a class, classes, a score or scores from models that read."""

    role: Literal["assistant"]
    content: Any
    tool_calls: list[ChatCompletionMessageToolCall] | None = None
    reasoning_content: str | None = None


@dataclass
class ChatCompletionResponseChoice:
    """One reply of several."""

    index: int
    message: ChatMessage
    finish_reason: Literal["stop", "length"] | None
    logprobs: dict[str, Any] | None = None
    token_ids: list[int] | None = None


@dataclass
class ChatCompletionResponse:
    """All replies to a request."""

    model: str
    choices: list[ChatCompletionResponseChoice]
    usage: UsageInfo
    id: str = field(default_factory=lambda: new_id("chatcmpl"))
    object: Literal["chat.completion"] = "chat.completion"
    created: int = field(default_factory=lambda: int(time.time()))
    prompt_token_ids: list[int] | None = None


@dataclass
class DeltaMessage:
    """What a piece adds to a reply; calls come with the last one."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[ChatCompletionMessageToolCall] | None = None
    reasoning_content: str | None = None


@dataclass
class ChatCompletionResponseStreamChoice:
    """A piece of one of the replies; the last one says why it is the last."""

    index: int
    delta: DeltaMessage
    finish_reason: Literal["stop", "length"] | None
    logprobs: dict[str, Any] | None = None


@dataclass
class ChatCompletionStreamResponse:
    """A piece of the answer; `usage` counts what there is so far."""

    model: str
    choices: list[ChatCompletionResponseStreamChoice]
    usage: UsageInfo
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int = field(default_factory=lambda: int(time.time()))


@dataclass
class EmbeddingResponseData:
    """The vector of a text."""

    embedding: list[float]
    index: int = 0
    object: Literal["embedding"] = "embedding"


@dataclass
class EmbeddingResponse:
    """What a model that embeds answers."""

    model: str
    data: list[EmbeddingResponseData]
    usage: UsageInfo
    id: str = field(default_factory=lambda: new_id("embd"))
    object: Literal["list"] = "list"
    created: int = field(default_factory=lambda: int(time.time()))


@dataclass
class InferStats:
    """Counts tokens, requests and time over many answers; `n` replies to a request count its prompt once.

    Give it to `infer(..., metrics=[stats])`, and `compute()` tells.
    """

    usages: dict[str, UsageInfo] = field(default_factory=dict)
    began: float | None = None
    ended: float = 0.0

    def reset(self) -> None:
        """Begin anew, now."""
        self.usages.clear()
        self.began, self.ended = time.perf_counter(), 0.0

    def begin(self) -> None:
        """Let the time count from now on, unless it does already."""
        if self.began is None:
            self.reset()

    def update(self, response: ChatCompletionResponse | ChatCompletionStreamResponse | EmbeddingResponse) -> None:
        """Count an answer, or what a stream has said so far."""
        self.usages[response.id] = response.usage
        self.ended = time.perf_counter()

    def compute(self) -> dict[str, float]:
        """The counts, and what they are per second."""
        seconds = 0.0 if self.began is None else max(self.ended - self.began, 0.0)
        written = sum(usage.completion_tokens for usage in self.usages.values())
        return {
            "num_prompt_tokens": sum(usage.prompt_tokens for usage in self.usages.values()),
            "num_generated_tokens": written,
            "num_samples": len(self.usages),
            "runtime": seconds,
            "samples/s": len(self.usages) / seconds if seconds else 0.0,
            "tokens/s": written / seconds if seconds else 0.0,
        }


def openai_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Log-probabilities as the OpenAI protocol writes them; those of -inf, which JSON cannot hold, are left out."""
    return {"content": [_logprob(each) for each in tokens]}


def _logprob(each: TokenLogprob) -> dict[str, Any]:
    top = [_token(text, value) for _, text, value in each.top if value > -math.inf]
    return {**_token(each.token, each.logprob), **({"top_logprobs": top} if each.top else {})}


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8", "replace"))}
