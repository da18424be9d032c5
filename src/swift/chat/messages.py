"""This file knows what was said, by whom: messages and conversations, the form every row takes before rendering."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool_call", "tool_response"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool_call", "tool_response")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of one speaker.

    `loss` is the row's own wish for an assistant turn: True learns it, False never, None leaves it to `--loss_scale`.
    """

    role: Role
    content: str
    loss: bool | None = None

    def as_dict(self) -> dict[str, str]:
        """The message as chat templates and result files want it."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class Conversation:
    """What was said, by whom, with what in hand.

    messages: at least one; `system` only in front.
    tools: JSON schemas of what may be called.
    images, videos, audios: references to media in order of their tags in the text.
    rejected: the whole conversation that was preferred less, with tools and media of its own.
    positives, negatives: the documents that match this one, and those that do not (embedding, reranker).
    label: class, score or desirability of the conversation; several classes or scores are a list.
    extra: all other columns of the row: solution, channel, margin, ...
    """

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    images: tuple[Any, ...] = ()
    videos: tuple[Any, ...] = ()
    audios: tuple[Any, ...] = ()
    rejected: Conversation | None = None
    positives: tuple[Conversation, ...] = ()
    negatives: tuple[Conversation, ...] = ()
    label: bool | int | float | list[float] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def system(self) -> str | None:
        """The system text; None when the row has none, "" when the row wants none."""
        return self.messages[0].content if self.messages and self.messages[0].role == "system" else None

    @property
    def answered(self) -> bool:
        """Whether the last turn is the assistant's, so that there is something to learn."""
        return bool(self.messages) and self.messages[-1].role in ("assistant", "tool_call")
