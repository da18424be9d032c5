"""This file knows how a conversation becomes tokens that are read and not learnt: to be classified, embedded, ranked.

A conversation that the assistant ends is rendered whole, as it is learnt elsewhere. One that the user ends is rendered
as the model is asked: up to where its reply would begin. Where a layout opens replies with nothing, as those of
embedding models do, the text is closed with the token that ends it, because that token is what the embedding is of.
Training and inference come through here alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from swift.catalog.layouts import LAYOUTS
from swift.chat.messages import Conversation
from swift.chat.render import Renderer, Sample
from swift.core.errors import DataError
from swift.core.labels import IGNORED


class Readings:
    """Makes samples of which no token is a label. It is used wherever a renderer is, for tasks that only read."""

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer
        self._closing = _closing(renderer)

    def samples(self, conversations: Sequence[Conversation]) -> list[Sample | DataError]:
        """A sample per conversation, or the reason why there is none."""
        answered = [place for place, each in enumerate(conversations) if each.answered]
        whole = self.renderer.samples([_learnable(conversations[place]) for place in answered])
        rendered = dict(zip(answered, whole, strict=True))
        return [
            _read(rendered[place]) if place in rendered else self._asked(conversation)
            for place, conversation in enumerate(conversations)
        ]

    def identity(self) -> dict[str, Any]:
        """All that decides which tokens a conversation becomes, as plain values; and the tokenizer's name."""
        return {**self.renderer.identity(), "reads": True}

    def _asked(self, conversation: Conversation) -> Sample | DataError:
        try:
            ids = self.renderer.prompt(conversation).input_ids
        except DataError as error:
            return error
        if self._closing and ids[-len(self._closing) :] != self._closing:
            ids = [*ids, *self._closing]
        return Sample(ids, [IGNORED] * len(ids), None, conversation.extra)


def _closing(renderer: Renderer) -> list[int]:
    """The tokens that close a text to which nobody replies; none where a reply is opened."""
    layout = LAYOUTS[name] if (name := renderer.identity()["template"]) else None
    if layout is None and renderer.chat_template is not None:
        return []
    if layout is not None and layout.assistant:
        return []
    return renderer.closing_ids


def _learnable(conversation: Conversation) -> Conversation:
    """The conversation with no wish of its own as to what is learnt, which would have nothing to do here."""
    return replace(
        conversation, messages=tuple(replace(message, loss=None) for message in conversation.messages), label=None
    )


def _read(sample: Sample | DataError) -> Sample | DataError:
    return sample if isinstance(sample, DataError) else replace(sample, labels=[IGNORED] * len(sample), weights=None)
