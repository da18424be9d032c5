"""This file knows how a layout becomes a Jinja chat template that renders the same everywhere.

The template knows two switches beside `add_generation_prompt`: `enable_thinking` (on or off, where the layout knows
both) and `preserve_thinking` (keep what past replies thought).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from swift.catalog.layout import Layout

_PLACEHOLDER = re.compile(r"\{\{([A-Z0-9]+)\}\}")
_EXPRESSIONS = {
    "SYSTEM": "system",
    "QUERY": "message['content']",
    "ROUND0": "(loop.index0 // 2) | string",
    "ROUND1": "(loop.index0 // 2 + 1) | string",
    "TODAY": "strftime_now('%d %b %Y')",
    "ISODAY": "strftime_now('%Y-%m-%d')",
}


def compile_layout(
    layout: Layout, *, default_system: str, bos: str, eos: str, added: tuple[str, str] = ("", "")
) -> str:
    """The Jinja chat template of a layout.

    default_system: for conversations that bring no system message; "" is none.
    bos, eos: what stands for {{BOS}} and {{EOS}}.
    added: what the tokenizer puts before and after every text, used by layouts with `auto_add_bos`.
    """
    before, after = added if layout.auto_add_bos else ("", "")
    texts = {"BOS": bos, "EOS": eos}

    def write(text: str) -> str:
        return _expression(_PLACEHOLDER.sub(lambda m: texts.get(m[1], m[0]), text))

    def front(text: str) -> str:
        return write(text if before and text.startswith(before) else before + text)

    lines = [
        "{%- if messages and messages[0]['role'] == 'system' -%}",
        "{%- set system = messages[0]['content'] -%}",
        "{%- set turns = messages[1:] -%}",
        "{%- else -%}",
        "{%- set system = " + quote(default_system) + " -%}",
        "{%- set turns = messages -%}",
        "{%- endif -%}",
        *_thinking_switch(layout),
        "{%- if system -%}",
        _system(layout, front),
        "{%- else -%}",
        "{{- " + front(layout.prefix) + " -}}",
        "{%- endif -%}",
        *_last_user(layout),
        "{%- for message in turns -%}",
        "{%- if message['role'] == 'user' -%}",
        _user(layout, write),
        "{%- elif message['role'] == 'assistant' -%}",
        *_reply(layout),
        "{{- " + write(layout.assistant + layout.lead) + " + reply -}}",
        "{%- if loop.last -%}{{- " + write(after or layout.suffix) + " -}}",
        "{%- else -%}" + _separator(layout, write) + "{%- endif -%}",
        "{%- else -%}{{- raise_exception('This template has no role ' + message['role'] + '.') -}}",
        "{%- endif -%}",
        "{%- endfor -%}",
        "{%- if add_generation_prompt -%}" + _generation_prompt(layout, write) + "{%- endif -%}",
    ]
    return "\n".join(lines)


def with_default_system(template: str, system: str, *, drop_empty: bool) -> str:
    """A chat template of somebody else that puts `system` in front of conversations without a system message.

    drop_empty: whether an empty system message is left out before the template sees it.
    """
    lines = [
        "{%- if not messages or messages[0]['role'] != 'system' -%}",
        "{%- set messages = [{'role': 'system', 'content': " + quote(system) + "}] + messages -%}",
    ]
    if drop_empty:
        lines += ["{%- elif not messages[0]['content'] -%}", "{%- set messages = messages[1:] -%}"]
    return "\n".join([*lines, "{%- endif -%}"]) + "\n" + template


def quote(text: str) -> str:
    """A Jinja string literal."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{escaped}'"


def _expression(text: str) -> str:
    """A Jinja expression for a text with placeholders: literals and variables joined by +."""
    parts = _PLACEHOLDER.split(text)
    terms = [_EXPRESSIONS[part] if i % 2 else quote(part) for i, part in enumerate(parts) if part]
    return " + ".join(terms) if terms else "''"


def _system(layout: Layout, front: Callable[[str], str]) -> str:
    if not layout.takes_system:
        return "{{- raise_exception('The template " + layout.name + " takes no system message.') -}}"
    return "{{- " + front(layout.prefix if layout.system_prefix is None else layout.system_prefix) + " -}}"


def _user(layout: Layout, write: Callable[[str], str]) -> str:
    """A turn of the user; the first or the last one may carry the system text."""
    turn = "{{- " + write(layout.user) + " -}}"
    if layout.system_user is None:
        return turn
    place = "last.user" if layout.system_at == "last" else "0"
    carrying = "{{- " + write(layout.system_user) + " -}}"
    return "{%- if system and loop.index0 == " + place + " -%}" + carrying + "{%- else -%}" + turn + "{%- endif -%}"


def _separator(layout: Layout, write: Callable[[str], str]) -> str:
    if layout.separator is None:
        return "{{- raise_exception('The template " + layout.name + " takes a single round only.') -}}"
    return "{{- " + write(layout.separator) + " -}}"


def _thinking_switch(layout: Layout) -> list[str]:
    if not _thinks(layout):
        return []
    default = "true" if layout.is_thinking else "false"
    return ["{%- set thinking = enable_thinking if enable_thinking is defined else " + default + " -%}"]


def _thinks(layout: Layout) -> bool:
    return layout.is_thinking or bool(layout.thinking_prefix or layout.non_thinking_prefix)


def _last_user(layout: Layout) -> list[str]:
    if not _thinks(layout) and layout.system_at != "last":
        return []
    return [
        "{%- set last = namespace(user=-1) -%}",
        "{%- for message in turns -%}{%- if message['role'] == 'user' -%}",
        "{%- set last.user = loop.index0 -%}",
        "{%- endif -%}{%- endfor -%}",
    ]


def _reply(layout: Layout) -> list[str]:
    """Sets `reply`: what the assistant said as the layout writes it, past replies without what they thought."""
    lines = ["{%- set reply = message['content'] -%}"]
    if layout.lead:
        lines.append("{%- set reply = reply.lstrip(" + quote(layout.lead) + ") -%}")
    if layout.stripped:
        lines.append("{%- set reply = reply.strip(" + quote(layout.stripped) + ") -%}")
    if _thinks(layout):
        lines += _past_reply(layout)
    if layout.frame:
        lines += _framed(*layout.frame)
    if layout.opening:
        word, text = map(quote, layout.opening)
        lines.append(
            "{%- if not reply.startswith(" + word + ") -%}{%- set reply = " + text + " + reply -%}{%- endif -%}"
        )
    lines += [f"{{%- set reply = reply.replace({quote(old)}, {quote(new)}) -%}}" for old, new in layout.renamed]
    return lines


def _past_reply(layout: Layout) -> list[str]:
    """What is left of a reply before the last user message."""
    active = "" if layout.is_thinking else "thinking and "
    lines = [
        "{%- if " + active + "loop.index0 < last.user and not (preserve_thinking is defined and preserve_thinking) -%}",
        "{%- if '</think>' in reply -%}{%- set reply = reply.split('</think>')[-1].strip() -%}{%- endif -%}",
    ]
    if layout.past_answer:
        begin, end = map(quote, layout.past_answer)
        lines.append(
            f"{{%- if {begin} in reply -%}}"
            f"{{%- set reply = reply.split({begin})[-1].split({end})[0].strip() -%}}{{%- endif -%}}"
        )
    return [
        *lines,
        "{%- set reply = " + quote(layout.history_thinking_prefix) + " + reply -%}",
        "{%- endif -%}",
    ]


def _framed(begin: str, end: str) -> list[str]:
    """Puts `begin` and `end` around what follows the thinking of a reply, unless it has them."""
    return [
        "{%- if " + quote(begin.strip()) + " not in reply -%}",
        "{%- set answer = reply.split('</think>')[-1].lstrip() -%}",
        "{%- set head = reply[:(reply | length) - (answer | length)] -%}",
        "{%- set reply = head + " + quote(begin) + " + answer + " + quote(end) + " -%}",
        "{%- endif -%}",
    ]


def _generation_prompt(layout: Layout, write: Callable[[str], str]) -> str:
    def opened(prefix: str) -> str:
        return "{{- " + write(layout.assistant + layout.lead + prefix if prefix else layout.assistant) + " -}}"

    if not _thinks(layout):
        return opened("")
    on, off = opened(layout.thinking_prefix), opened(layout.non_thinking_prefix)
    return "{%- if thinking -%}" + on + "{%- else -%}" + off + "{%- endif -%}"
