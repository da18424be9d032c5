"""This file knows what can be learnt of a chat template by rendering small conversations with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, TemplateError, meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from swift.chat.messages import ROLES, Message
from swift.chat.thinking import OPENING
from swift.core.errors import DataError, ModelError

SWITCHES = ("enable_thinking", "thinking")
"""Names under which templates ask whether to think; the first one a template knows is used."""

_NAMES = {*ROLES, "tool", "role", "content", "tool_calls", "reasoning_content", "name", "type", "text"}

Chat = Callable[[Sequence[Message], bool, dict[str, Any]], str]
"""(messages, add_generation_prompt, variables) -> text."""

_SYSTEM, _USER, _REPLY = Message("system", "Qs1"), Message("user", "Qu1"), Message("assistant", "Qa1")


@dataclass(frozen=True, slots=True)
class Traits:
    """What a chat template does.

    switch: the variable by which thinking is turned on and off; None when it has none.
    is_thinking: whether the model thinks unless told not to.
    opening: what the generation prompt has already begun of the reply, when nothing is said of thinking.
    non_thinking_prefix: the same when thinking is off and the template can turn it off; else "".
    writes_prefix: whether a reply without thinking gets that prefix from the template itself.
    has_default_system: whether the template has a system text of its own.
    end_of_turn: the special token that follows a reply; None when none does.
    """

    switch: str | None
    is_thinking: bool
    opening: str
    non_thinking_prefix: str
    writes_prefix: bool
    has_default_system: bool
    end_of_turn: str | None


class _Generation(Extension):
    """Lets `{% generation %}` blocks be parsed; they mark replies and render as their body."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """The body of the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def variables(template: str) -> set[str]:
    """The names a chat template reads and does not set. Raises ModelError when it is no valid Jinja."""
    return meta.find_undeclared_variables(_parsed(template))


def looks_for(template: str) -> tuple[str, ...]:
    """The strings a chat template may look for in what is said: those it compares, splits at, replaces, ...

    Names of roles and fields are left out: templates compare them with who speaks, not with what is said. White space
    is left out as well.
    """
    tree = _parsed(template)
    methods = [call for call in tree.find_all(nodes.Call) if isinstance(call.node, nodes.Getattr)]
    asking = [*tree.find_all((nodes.Compare, nodes.Filter, nodes.Test)), *methods]
    found = {const.value for node in asking for const in node.find_all(nodes.Const)}
    texts = {text for text in found if isinstance(text, str) and text.strip()}
    return tuple(sorted(texts - _NAMES))


def _parsed(template: str) -> nodes.Template:
    environment = Environment(extensions=["jinja2.ext.loopcontrols", _Generation], autoescape=False)
    try:
        return environment.parse(template)
    except TemplateError as error:
        raise ModelError(f"The chat template is no valid Jinja: {error}. Choose another with --template.") from None


def probe(chat: Chat, known: set[str], special_tokens: Sequence[str]) -> Traits:
    """Ask a chat template what it does.

    known: the names it reads.
    special_tokens: the tokens of which one may end a reply.
    """
    switch = next((name for name in SWITCHES if name in known), None)
    opening = opening_of(chat, {})
    off = opening_of(chat, {switch: False}) if switch else ""
    non_thinking_prefix = off if off.rstrip().endswith("</think>") else ""
    opens = "<think>" in opening and "</think>" not in opening
    is_thinking = opens or bool(non_thinking_prefix and off != opening)
    reply = chat([_USER, _REPLY], False, {}).partition(_USER.content)[2].partition(_REPLY.content)[0]
    return Traits(
        switch=switch,
        is_thinking=is_thinking,
        opening=opening,
        non_thinking_prefix=non_thinking_prefix,
        writes_prefix="</think>" in reply,
        has_default_system=_has_default_system(chat),
        end_of_turn=_end_of_turn(chat, special_tokens),
    )


def opening_of(chat: Chat, given: dict[str, Any]) -> str:
    """What a generation prompt has already begun of the reply, with these variables; "" when nothing."""
    found = OPENING.search(chat([_USER], True, given))
    return found[0] if found else ""


def _has_default_system(chat: Chat) -> bool:
    """A text without a system message that is not the text with one, less something in one place, has its own."""
    try:
        given = chat([_SYSTEM, _USER], False, {})
    except DataError:
        return False
    plain = chat([_USER], False, {})
    return _shared(given, plain) + _shared(given[::-1], plain[::-1]) < len(plain)


def _shared(one: str, other: str) -> int:
    """How many characters two texts begin with in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _end_of_turn(chat: Chat, special_tokens: Sequence[str]) -> str | None:
    """The special token after a reply that is not the last, else after the last one."""
    for messages in ([_USER, _REPLY, _USER, Message("assistant", "Qa2")], [_USER, _REPLY]):
        try:
            after = chat(messages, False, {}).rpartition(_REPLY.content)[2].lstrip()
        except DataError:
            continue
        found = [token for token in special_tokens if after.startswith(token)]
        if found:
            return max(found, key=len)
    return None
