"""This file knows what a chat layout is: what stands around what is said, as data.

Placeholders: {{SYSTEM}}, {{QUERY}}, {{ROUND0}} and {{ROUND1}} (turns counted from 0 and from 1), {{BOS}} and {{EOS}}
(the tokenizer's), {{TODAY}} (the date of rendering, as "24 Nov 2026") and {{ISODAY}} ("2026-11-24"), {{ID:195}} (the
token of that id), {{ATTR:user_token_id}} (the token whose id the tokenizer has under that name). Everything else is
taken as it is written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Layout:
    """How a conversation is laid out as text.

    prefix: in front of everything when there is no system text.
    system_prefix: in front of everything when there is one, around {{SYSTEM}}; None refuses a system text, unless
        `system_user` takes it.
    user: one turn of the user, around {{QUERY}}.
    assistant: what opens a reply; the model is asked to go on from there.
    separator: after a reply that is not the last; None allows a single round only.
    suffix: after the last reply; stripped, it is the word that ends generation.
    lead: what a reply itself begins with, said by the model, not by the prompt.
    default_system: the system text of conversations that bring none; "" is none.
    stop_words: further words that end generation.
    auto_add_bos: whether the tokens the tokenizer adds to a text are added around the conversation.
    is_thinking: whether the model thinks before it answers unless told not to.
    thinking_prefix: opens a reply, in the prompt, when thinking is on.
    non_thinking_prefix: opens a reply when thinking is off, in the prompt and in replies that are learnt.
    prefixed: which replies without thinking are learnt with that prefix: all, those right after the user, or the last.
    history_thinking_prefix: stands in front of past replies, in place of their thinking.
    response_prefix: what replies begin with at inference, unless an option says otherwise.
    past_answer: the tags between which a past reply has its answer; what else it says is dropped with its thinking.
    agent_template: how tools are told to the model.
    system_user: a turn of the user that carries the system text, around {{SYSTEM}} and {{QUERY}}.
    system_at: whether that is the first or the last turn of the user.
    opening: (word, text): a reply that does not begin with the word is opened with the text.
    frame: what stands around the answer of a reply, after its thinking.
    renamed: words that are written otherwise in replies.
    stripped: characters that are taken from both ends of a reply.
    rewrite: a function of plugins, conversation -> conversation, applied before anything is rendered.
    """

    name: str
    prefix: str
    system_prefix: str | None
    user: str
    assistant: str
    separator: str | None
    suffix: str
    lead: str = ""
    default_system: str = ""
    stop_words: tuple[str, ...] = ()
    auto_add_bos: bool = False
    is_thinking: bool = False
    thinking_prefix: str = ""
    non_thinking_prefix: str = ""
    prefixed: Literal["all", "after_user", "last"] = "all"
    history_thinking_prefix: str = ""
    response_prefix: str = ""
    past_answer: tuple[str, str] | None = None
    agent_template: str = "react_en"
    system_user: str | None = None
    system_at: Literal["first", "last"] = "first"
    opening: tuple[str, str] | None = None
    frame: tuple[str, str] | None = None
    renamed: tuple[tuple[str, str], ...] = ()
    stripped: str = ""
    rewrite: Callable[[Any], Any] | None = None

    @property
    def takes_system(self) -> bool:
        """Whether there is a place for a system text."""
        return self.system_prefix is not None or self.system_user is not None
