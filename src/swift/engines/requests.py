"""This file knows how a model is asked from Python: the conversation, and what is wished of the reply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from swift.core.errors import UsageError
from swift.engines.base import Sampling, Structure

SHOWN = 50
"""Characters that are shown of a text that is no text, such as a picture in base64."""
LONG = 1000


@dataclass
class InferRequest:
    """A conversation to answer, written as the rows of data sets are.

    messages: of OpenAI's form, `{"role": ..., "content": ...}`; contents may be lists of parts.
    images, audios, videos: media in the order of their tags; one alone may stand without a list.
    tools: what may be called. objects: what else the row holds for grounding.
    """

    messages: list[dict[str, Any]]
    images: list[Any] = field(default_factory=list)
    audios: list[Any] = field(default_factory=list)
    videos: list[Any] = field(default_factory=list)
    tools: list[dict[str, Any]] | None = None
    objects: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("images", "audios", "videos"):
            given = getattr(self, name)
            if not isinstance(given, list):
                setattr(self, name, [given])

    @classmethod
    def of(cls, given: InferRequest | Mapping[str, Any]) -> InferRequest:
        """A request from itself or from a row. Raises UsageError for a key that a request does not have."""
        if isinstance(given, InferRequest):
            return given
        unknown = sorted(set(given) - {each.name for each in fields(cls)})
        if unknown or "messages" not in given:
            raise UsageError(
                f"A request has {', '.join(each.name for each in fields(cls))}, and needs messages (got "
                f"{', '.join(map(str, given))})."
            )
        return cls(**given)

    def row(self) -> dict[str, Any]:
        """What is there of it, as a row of a data set."""
        return {each.name: value for each in fields(self) if (value := getattr(self, each.name))}

    def printable(self) -> dict[str, Any]:
        """The row, with all long texts cut that are no texts of the conversation."""
        return _cut(self.row(), is_text=False)


@dataclass
class RequestConfig:
    """What is wished of replies; None: as the model's generation config says.

    max_tokens: None fills the context. temperature: 0 is greedy. n: replies per request, which `best_of` may only repeat.
    stream: pieces while they grow, in place of whole replies. return_details: also the ids of the tokens.
    structured_outputs_regex: what each reply has to match.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    num_beams: int = 1
    stop: list[str] | str = field(default_factory=list)
    seed: int | None = None
    stream: bool = False
    logprobs: bool = False
    top_logprobs: int | None = None
    n: int = 1
    best_of: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    length_penalty: float = 1.0
    structured_outputs_regex: str | None = None
    return_details: bool = False

    def sampling(self) -> Sampling:
        """The same for an engine. Raises UsageError for a `best_of` that is not `n`: all replies are returned."""
        if self.best_of is not None and self.best_of != self.n:
            raise UsageError(f"best_of = {self.best_of} must equal n = {self.n}: all replies are returned.")
        return Sampling(
            max_new_tokens=self.max_tokens, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p,
            min_p=self.min_p, repetition_penalty=self.repetition_penalty, presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty, num_beams=self.num_beams, length_penalty=self.length_penalty,
            structure=None if self.structured_outputs_regex is None else Structure(regex=self.structured_outputs_regex),
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop), logprobs=self.logprobs,
            top_logprobs=self.top_logprobs, n=self.n, seed=self.seed,
        )  # fmt: skip


@dataclass(frozen=True)
class AdapterRequest:
    """The adapter that answers: a name, and the folder or id it is read from when it is first asked for."""

    name: str
    path: str


def _cut(value: Any, *, is_text: bool) -> Any:
    if isinstance(value, Mapping):
        return {key: _cut(each, is_text=key in ("content", "text")) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_cut(each, is_text=is_text) for each in value]
    if isinstance(value, str) and len(value) >= LONG and not is_text:
        return f"<<<base64:{value[:SHOWN]}..>>>"
    return value
