"""This file knows the shapes of answers: those of OpenAI, and of those who added rankings, scores and classes to them.

Only the fields that were set are written. What is answered in Python, without a server, has plain shapes of its own, in
which every field stands (`swift.engines.responses`, which says how they differ).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

FinishReason = Literal["stop", "length", "tool_calls"]


class Answer(BaseModel):
    """A part of an answer."""

    model_config = ConfigDict(protected_namespaces=())

    def as_json(self) -> str:
        """As JSON, without fields that were not set."""
        return self.model_dump_json(exclude_unset=True)


class Usage(Answer):
    """Tokens that were read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(Answer):
    """A token that could have stood in a place, and the logarithm of its probability."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprobs(TopLogprob):
    """The token that stands there, and the likeliest ones."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(Answer):
    """The log-probabilities of a reply, token by token."""

    content: list[TokenLogprobs]


class FunctionCall(Answer):
    """A call: the name of a function, and its arguments as JSON text."""

    name: str
    arguments: str


class ToolCallAnswer(Answer):
    """A call of a tool."""

    id: str
    type: Literal["function"]
    function: FunctionCall
    index: int


class AssistantMessage(Answer):
    """What the assistant says. Models that classify or rank say a class, classes or a number."""

    role: Literal["assistant"]
    content: str | int | float | list[int] | list[float] | None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallAnswer] = []


class Choice(Answer):
    """One reply of several."""

    index: int
    message: AssistantMessage
    finish_reason: FinishReason
    logprobs: ChoiceLogprobs | dict[str, Any] | None
    token_ids: list[int] = []


class ChatCompletion(Answer):
    """What `/v1/chat/completions` answers."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    prompt_token_ids: list[int] = []


class DeltaMessage(Answer):
    """What a chunk adds to a message."""

    role: Literal["assistant"] = "assistant"
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallAnswer] = []


class ChunkChoice(Answer):
    """What a chunk adds to one of the replies."""

    index: int
    delta: DeltaMessage
    finish_reason: FinishReason | None
    logprobs: ChoiceLogprobs | None


class ChatChunk(Answer):
    """A piece of a streamed chat."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class CompletionLogprobs(Answer):
    """The log-probabilities of a continued text, token by token; the first token of a prompt, which is echoed, has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Answer):
    """One continuation, or in a stream a piece of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    token_ids: list[int] = []
    prompt_token_ids: list[int] = []


class TextCompletion(Answer):
    """What `/v1/completions` answers, whole or a piece of it."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class Embedding(Answer):
    """The vector of a text, as numbers or as their bytes (float32, little endian) in base64."""

    index: int
    object: Literal["embedding"]
    embedding: list[float] | str


class EmbeddingList(Answer):
    """What `/v1/embeddings` answers."""

    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: Usage


class Ranked(Answer):
    """A document and its relevance."""

    index: int
    relevance_score: float
    document: dict[str, str] = {}


class Ranking(Answer):
    """What `/v1/rerank` answers, the most relevant document first."""

    id: str
    model: str
    results: list[Ranked]
    usage: Usage


class Score(Answer):
    """How well a pair of texts matches."""

    index: int
    object: Literal["score"]
    score: float


class ScoreList(Answer):
    """What `/v1/score` answers."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Score]
    usage: Usage


class Classified(Answer):
    """The classes of a text: the likeliest or all that hold, and the probability of each; of a regression its values."""

    index: int
    label: str | list[str] | None
    probs: list[float]
    num_classes: int
    values: list[float] = []


class ClassList(Answer):
    """What `/classify` answers."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Classified]
    usage: Usage


class ModelCard(Answer):
    """A model that can be asked."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    parent: str | None = None
    max_model_len: int | None = None


class ModelList(Answer):
    """What `/v1/models` answers."""

    object: Literal["list"]
    data: list[ModelCard]


class ErrorInfo(Answer):
    """What went wrong: the message, its kind, the field at fault, and a word for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(Answer):
    """How every error is answered."""

    error: ErrorInfo
