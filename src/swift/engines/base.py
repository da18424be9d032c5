"""This file knows what an engine is: it continues prompts, and knows nothing of chats, templates or tools."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from swift.chat.render import Prompt

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample. `None` means: as the model's generation_config.json says.

    max_new_tokens: None continues to the end of the model's context.
    temperature: 0 is greedy.
    top_k: 0 or less looks at the whole vocabulary.
    stop: words that end a reply and stay in it (the end-of-turn token is cut from it).
    logprobs: whether each token comes with its log-probability; top_logprobs adds that many of the likeliest tokens,
        and asks for logprobs by itself.
    n: how many completions of each prompt.
    seed: makes draws repeatable, whatever else is in the batch: completion j of prompt i draws with seed + i * n + j.
    """

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    num_beams: int = 1
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    top_logprobs: int | None = None
    n: int = 1
    seed: int | None = None

    @property
    def wants_logprobs(self) -> bool:
        """Whether log-probabilities have to be computed."""
        return self.logprobs or bool(self.top_logprobs)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The log-probability of one generated token, and of the likeliest tokens in its place, likeliest first.

    Both are of the model itself: before temperature, penalties and cuts.
    """

    token_id: int
    token: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """What an engine added to a prompt: ids without the end-of-turn token, their text, and why it stopped."""

    token_ids: list[int]
    text: str
    finish_reason: FinishReason
    logprobs: list[TokenLogprob] | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a reply that is still growing; the last one carries the finish reason and the whole completion."""

    text: str
    completion: Completion | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)


class Engine(Protocol):
    """Continues prompts, whole or piece by piece."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """`sampling.n` completions for each prompt, in the order of the prompts."""
        ...

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Delta]:
        """The pieces of one completion; joined, their texts equal that of `generate`."""
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...
