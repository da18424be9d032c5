"""This file knows what an engine is: it continues prompts, and knows nothing of chats, templates or tools."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from swift.chat.render import Prompt

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Structure:
    """What a reply must match: exactly one of a JSON schema ({} is any JSON object) and a regular expression."""

    json_schema: dict[str, Any] | None = None
    regex: str | None = None


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample. `None` means: as the model's generation_config.json says.

    max_new_tokens: None continues to the end of the model's context.
    temperature: 0 is greedy.
    top_k: 0 or less looks at the whole vocabulary.
    min_p: tokens less likely than this share of the likeliest are not drawn.
    presence_penalty, frequency_penalty: taken from the logits of tokens that the reply holds, once, and once for each
        time it holds them.
    length_penalty: exponent of the length by which the score of a beam is divided.
    structure: what the text of the reply must match; None lets it be anything.
    stop: words that end a reply and stay in it (the end-of-turn token is cut from it).
    logprobs: whether each token comes with its log-probability; top_logprobs adds that many of the likeliest tokens,
        and asks for logprobs by itself.
    prompt_logprobs: how many of the likeliest tokens come with the log-probability of each token of the prompt; None tells
        nothing of the prompt.
    n: how many completions of each prompt.
    seed: makes draws repeatable, whatever else is in the batch: completion j of prompt i draws with seed + i * n + j.
    """

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    num_beams: int = 1
    length_penalty: float = 1.0
    structure: Structure | None = None
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    top_logprobs: int | None = None
    prompt_logprobs: int | None = None
    n: int = 1
    seed: int | None = None

    @property
    def wants_logprobs(self) -> bool:
        """Whether log-probabilities have to be computed."""
        return self.logprobs or bool(self.top_logprobs)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The log-probability of one token, and of the likeliest tokens in its place, likeliest first.

    Both are of the model itself: before temperature, penalties and cuts.
    """

    token_id: int
    token: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """What an engine added to a prompt: ids without the end-of-turn token, their text, and why it stopped.

    prompt_logprobs: those of the tokens of the prompt, all but the first, which nothing precedes.
    """

    token_ids: list[int]
    text: str
    finish_reason: FinishReason
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob] | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a reply that is still growing; the last one carries the finish reason and the whole completion.

    index: which of the `n` completions it belongs to.
    prompt_logprobs: as in Completion, with the first piece of each completion.
    token_ids: the tokens it consists of, from engines whose replies are read by their tokens (vLLM); else [].
    """

    text: str
    completion: Completion | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    index: int = 0
    prompt_logprobs: list[TokenLogprob] | None = None
    token_ids: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt of one caller among many.

    adapter: the name of one of the adapters the engine was given; None is the model as it was loaded.
    """

    prompt: Prompt
    sampling: Sampling
    adapter: str | None = None


def requests_of(prompts: Sequence[Prompt], sampling: Sampling) -> list[Request]:
    """A request for each prompt; completion j of prompt i draws with seed + i * n + j."""
    seed = sampling.seed
    return [
        Request(prompt, sampling if seed is None else replace(sampling, seed=seed + i * sampling.n))
        for i, prompt in enumerate(prompts)
    ]


class Engine(Protocol):
    """Continues prompts, whole or piece by piece."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """`sampling.n` completions for each prompt, in the order of the prompts."""
        ...

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Delta]:
        """The pieces of one completion; joined, their texts equal that of `generate`."""
        ...

    def forget(self) -> None:
        """Forget what was computed of earlier prompts: the weights have changed."""
        ...

    def load_weights(self, folder: Path) -> None:
        """Answer by the weights of another checkpoint of the same architecture from now on, and forget earlier prompts.

        Replies that are growing go on with the new weights. Raises EngineError when the engine cannot do it.
        """
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...


class Serving(Protocol):
    """An engine that many callers ask at once, each in its own time."""

    @property
    def context_length(self) -> int:
        """The most tokens of a prompt and its reply together."""
        ...

    @property
    def adapters(self) -> Sequence[str]:
        """The names a request may give as its adapter."""
        ...

    def answer(self, request: Request) -> AsyncIterator[Delta]:
        """The pieces of all completions as they grow; those of one completion come in order.

        Leaving the iterator early (`aclose`, or a cancelled task) frees the place of the request at the next token.

        Raises EngineError, before the first piece, for a request that cannot be answered.
        """
        ...

    def close(self) -> None:
        """End what is running, and free what the engine holds."""
        ...
