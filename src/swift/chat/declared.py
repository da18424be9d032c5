"""This file knows templates that plugins declare in chunks, and how they become layouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from swift.catalog.layouts import LAYOUTS, Layout
from swift.chat.messages import Conversation
from swift.core.errors import UsageError

Prompt = Sequence[str | Sequence[int] | Sequence[str]]
"""Chunks: text with placeholders, token ids, or names under which the tokenizer has token ids (`eos_token_id`)."""


class Template:
    """What a template does to conversations beyond laying them out; subclass it, and name it in `template_cls`."""

    def __init__(self, meta: TemplateMeta) -> None:
        self.meta = meta

    def prepare(self, conversation: Conversation) -> Conversation:
        """The conversation as it is rendered, to learn from and to continue. Raises DataError for a row it refuses."""
        return conversation


@dataclass(frozen=True)
class TemplateMeta:
    """A template in chunks.

    template_type: its name, the value of --template.
    prefix: at the beginning, without a system text. Where it holds {{SYSTEM}}, it is the system prefix, and without it
        the prefix.
    prompt: one turn up to where the reply begins, with {{QUERY}} and perhaps {{ROUND0}} or {{ROUND1}}. Where a chunk
        holds {{SYSTEM}}, that chunk stands in the last turn only.
    chat_sep: after a reply that is not the last; None allows a single round only.
    suffix: after the last reply.
    template_cls: what else is done to conversations.
    system_prefix: at the beginning, with a system text, around {{SYSTEM}}.
    default_system: the system text of conversations that bring none.
    response_prefix: what replies begin with at inference, unless --response_prefix or --enable_thinking say otherwise.
    auto_add_bos: whether the tokens the tokenizer adds to a text are added around the conversation.
    stop_words: further words that end generation.
    agent_template: how tools are told to the model.
    is_thinking, thinking_prefix, non_thinking_prefix, history_thinking_prefix: see `catalog.layout.Layout`.
    """

    template_type: str
    prefix: Prompt
    prompt: Prompt
    chat_sep: Prompt | None
    suffix: Prompt = field(default_factory=lambda: [["eos_token_id"]])
    template_cls: type[Template] = Template
    system_prefix: Prompt | None = None
    default_system: str | None = None
    response_prefix: str = ""
    auto_add_bos: bool = False
    stop_words: Sequence[str] = ()
    agent_template: str = "react_en"
    is_thinking: bool = False
    thinking_prefix: str = ""
    non_thinking_prefix: str = ""
    history_thinking_prefix: str = ""


def register_template(meta: TemplateMeta, *, exist_ok: bool = False) -> None:
    """Make a template known under its name. Raises UsageError for a name that is taken, unless `exist_ok`."""
    LAYOUTS.add(meta.template_type, layout_of(meta), replace=exist_ok)


def layout_of(meta: TemplateMeta) -> Layout:
    """The layout of a template in chunks. Raises UsageError when a placeholder is missing where it must be."""
    prefix, system_prefix, user = _text(meta.prefix), meta.system_prefix, _text(meta.prompt)
    if "{{SYSTEM}}" in prefix:
        prefix, in_front = prefix.replace("{{SYSTEM}}", ""), prefix
    else:
        in_front = None if system_prefix is None else _text(system_prefix)
    _check(meta, in_front, user)
    carrying = user if "{{SYSTEM}}" in user else None
    if carrying is not None:
        user = _text([chunk for chunk in meta.prompt if not isinstance(chunk, str) or "{{SYSTEM}}" not in chunk])
    at: Literal["first", "last"] = "last" if carrying is not None else "first"
    own = meta.template_cls(meta)
    return Layout(
        meta.template_type,
        prefix=prefix,
        system_prefix=in_front,
        user=user,
        assistant="",
        separator=None if meta.chat_sep is None else _text(meta.chat_sep),
        suffix=_text(meta.suffix),
        default_system=meta.default_system or "",
        stop_words=tuple(meta.stop_words),
        auto_add_bos=meta.auto_add_bos,
        is_thinking=meta.is_thinking,
        thinking_prefix=meta.thinking_prefix,
        non_thinking_prefix=meta.non_thinking_prefix,
        history_thinking_prefix=meta.history_thinking_prefix,
        response_prefix=meta.response_prefix,
        agent_template=meta.agent_template,
        system_user=carrying,
        system_at=at,
        rewrite=None if meta.template_cls is Template else own.prepare,
    )


def _check(meta: TemplateMeta, system_prefix: str | None, user: str) -> None:
    problems = []
    if "{{QUERY}}" not in user:
        problems.append("its prompt has no {{QUERY}}.")
    if system_prefix is not None and "{{SYSTEM}}" not in system_prefix:
        problems.append("its system_prefix has no {{SYSTEM}}.")
    carriers = [chunk for chunk in meta.prompt if isinstance(chunk, str) and "{{SYSTEM}}" in chunk]
    if any("{{QUERY}}" in chunk for chunk in carriers):
        problems.append("{{SYSTEM}} and {{QUERY}} stand in one chunk of its prompt; part them in two.")
    if meta.default_system and system_prefix is None and not carriers:
        problems.append("it has a default_system and no place for it: give it a system_prefix.")
    if problems:
        raise UsageError(*(f"The template {meta.template_type!r}: {problem}" for problem in problems))


def _text(chunks: Prompt) -> str:
    return "".join(chunk if isinstance(chunk, str) else "".join(map(_token, chunk)) for chunk in chunks)


def _token(token: int | str) -> str:
    known = {"bos_token_id": "{{BOS}}", "eos_token_id": "{{EOS}}"}
    return f"{{{{ID:{token}}}}}" if isinstance(token, int) else known.get(token, f"{{{{ATTR:{token}}}}}")
