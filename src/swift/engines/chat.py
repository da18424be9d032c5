"""This file knows how an engine answers conversations: rendered into prompts, continued, and returned as replies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from swift.chat.messages import Conversation
from swift.chat.render import Prompt
from swift.core.errors import UsageError
from swift.engines.base import Completion, Delta, Engine, Request, Sampling
from swift.options.template import TemplateOptions


class Rendering(Protocol):
    """What a chat needs of a renderer."""

    @property
    def stop_words(self) -> tuple[str, ...]:
        """Words that end a reply of this template."""
        ...

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a reply of this template; the engine was given them."""
        ...

    def prompt(self, conversation: Conversation) -> Prompt:
        """The conversation as the beginning of a reply."""
        ...

    def reply_text(self, conversation: Conversation) -> str:
        """What the assistant says last, its calls of tools in the words of their format."""
        ...


class Chat:
    """Conversations in, replies out. The history is the caller's.

    Where the prompt already holds the beginning of the reply (`Prompt.extra["response_prefix"]`), that text stands in
    front of what is returned.
    """

    def __init__(self, renderer: Rendering, engine: Engine) -> None:
        self.renderer = renderer
        self.engine = engine

    def prompt(self, conversation: Conversation) -> Prompt:
        """What the engine will be asked to continue."""
        return self.renderer.prompt(conversation)

    def reply(self, conversations: Sequence[Conversation], sampling: Sampling) -> list[list[Completion]]:
        """`sampling.n` replies to each conversation, in order."""
        return self.complete([self.prompt(conversation) for conversation in conversations], sampling)

    def complete(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """`sampling.n` replies to each prompt, in order."""
        alike: dict[tuple[str, ...], list[int]] = {}
        for i, prompt in enumerate(prompts):
            alike.setdefault(stop_words(prompt), []).append(i)
        found: list[list[Completion]] = [[]] * len(prompts)
        for words, places in alike.items():
            made = self.engine.generate([prompts[i] for i in places], self._stopping(sampling, words))
            for i, completions in zip(places, made, strict=True):
                found[i] = [whole(prompts[i], completion) for completion in completions]
        return found

    def request(self, prompt: Prompt, sampling: Sampling, adapter: str | None = None) -> Request:
        """What an engine is asked for a reply to this prompt; `whole` makes its completion the whole reply."""
        return Request(prompt, self._stopping(sampling, stop_words(prompt)), adapter)

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Delta]:
        """The pieces of one reply; the last one carries the whole."""
        deltas = self.engine.stream(prompt, self._stopping(sampling, stop_words(prompt)))
        return self._pieces(prompt, deltas)

    def _pieces(self, prompt: Prompt, deltas: Iterator[Delta]) -> Iterator[Delta]:
        prefix = response_prefix(prompt)
        if prefix:
            yield Delta(prefix)
        for delta in deltas:
            if delta.completion is None:
                yield delta
            else:
                yield replace(delta, completion=whole(prompt, delta.completion))

    def _stopping(self, sampling: Sampling, words: Sequence[str]) -> Sampling:
        """The request with the template's stop words, and these, behind its own."""
        known = dict.fromkeys((*self.renderer.stop_words, *words))
        more = tuple(word for word in known if word not in sampling.stop)
        return replace(sampling, stop=(*sampling.stop, *more)) if more else sampling


def fitted(prompt: Prompt, options: TemplateOptions, context_length: int | None) -> Prompt | None:
    """The prompt within `--max_length` tokens, and with room for a reply in the context of the model.

    A longer one is cut as `--truncation_strategy` says: from the left or from the right; None means that it must not be
    cut (delete). Raises UsageError for `split`, which makes several rows of one: a prompt has but one reply.
    """
    limits = [options.max_length, None if context_length is None else context_length - 1]
    limit = min((each for each in limits if each is not None), default=len(prompt.input_ids))
    if len(prompt.input_ids) <= limit:
        return prompt
    if options.truncation_strategy == "split":
        raise UsageError("--truncation_strategy split is for training; a prompt can be cut with left or right.")
    if options.truncation_strategy == "left":
        return replace(prompt, input_ids=prompt.input_ids[-limit:])
    if options.truncation_strategy == "right":
        return replace(prompt, input_ids=prompt.input_ids[:limit])
    return None


def stop_words(prompt: Prompt) -> tuple[str, ...]:
    """The words that end the reply to this prompt beside those of its template."""
    return tuple(prompt.extra.get("stop_words") or ())


def response_prefix(prompt: Prompt) -> str:
    """The text of the reply that the prompt already holds; "" when it holds none."""
    return prompt.extra.get("response_prefix") or ""


def whole(prompt: Prompt, completion: Completion) -> Completion:
    """The reply with what the prompt held of it already."""
    prefix = response_prefix(prompt)
    return replace(completion, text=prefix + completion.text) if prefix else completion
