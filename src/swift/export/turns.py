"""This file knows what stands around what is said: found out by asking a renderer, whatever its template is written in.

Conversations of marked words are rendered, and the texts between the words are the layout. It is complete for templates
that treat all turns alike; where one does not, what comes out is not what it renders, and a comparison shows that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from swift.chat.messages import Conversation, Message
from swift.core.errors import DataError, UsageError

Render = Callable[[Conversation], str]
"""The text that a model is given to continue a conversation."""

_MARK = "wq{}zq"
_SYSTEM = _MARK.format("System")


@dataclass(frozen=True)
class Turns:
    """The texts of a chat template.

    prefix: in front of everything without a system text.
    system: before and after the system text, in place of `prefix`; None where there is no place for one. With
        `system_last` it stands in the last turn of the user, behind what opens it, and after `prefix`.
    default_system: the system text of conversations that bring none; "" when there is none, or none that can be told
        from `prefix`.
    user: before and after what the user says. opening: before what the assistant has said. separator: after it.
    generation: before what the assistant is to say.
    """

    prefix: str
    system: tuple[str, str] | None
    default_system: str
    user: tuple[str, str]
    opening: str
    separator: str
    generation: str
    system_last: bool = False


def turns_of(render: Render, closed: Render) -> Turns:
    """The layout of a renderer.

    render: a conversation to continue. closed: the same without the words that ask for a reply.
    Raises UsageError for a template that takes one round only, and for one that changes what is said.
    """
    head, tail = _between(render, "user")
    try:
        first, middle, separator, last = _between(render, "user", "assistant", "user")
    except DataError as error:
        raise UsageError(f"The chat template cannot go on with a conversation: {error}") from None
    if (first, last) != (head, tail):
        raise UsageError(
            "The chat template writes the first or the last turn of a longer conversation in another way than that of "
            "a short one."
        )
    close = _common_start([middle, tail, _between(closed, "user")[1]])
    made = Turns(head, None, "", ("", close), middle.removeprefix(close), separator, tail.removeprefix(close))
    made = _with_system(made, render)
    ends = [made.prefix, made.separator, *(made.system[1:] if made.system and not made.system_last else ())]
    opens = _common_start([end[::-1] for end in ends])[::-1]
    return _opened(made, opens)


def _with_system(made: Turns, render: Render) -> Turns:
    """The layout with the place of the system text, and with the one that stands there when there is none."""
    try:
        before, after, _ = _between(render, "system", "user")
        texts = render(_conversation("system", "user", "assistant", "user"))
    except DataError:
        return made
    if texts.index(_SYSTEM) > texts.index(_word("assistant", 2)):
        return replace(made, system=(before.removeprefix(made.prefix), after), system_last=True)
    made = replace(made, system=(before, after))
    try:
        none = _between(render, "", "user")[0]
    except DataError:
        return made
    default = made.prefix.removeprefix(before).removesuffix(after)
    is_default = none != made.prefix and made.prefix == before + default + after
    return replace(made, prefix=none, default_system=default) if is_default else made


def _opened(made: Turns, opens: str) -> Turns:
    """The layout with what opens a turn of the user taken from the ends of what may stand in front of it."""
    if not opens:
        return made
    system = made.system
    if system is not None and not made.system_last:
        system = (system[0], system[1].removesuffix(opens))
    return replace(
        made,
        prefix=made.prefix.removesuffix(opens),
        separator=made.separator.removesuffix(opens),
        system=system,
        user=(opens, made.user[1]),
    )


def _common_start(texts: list[str]) -> str:
    """The longest text with which all of these begin."""
    length = 0
    for letters in zip(*texts, strict=False):
        if len(set(letters)) > 1:
            break
        length += 1
    return texts[0][:length]


def _word(role: str, number: int) -> str:
    return _SYSTEM if role == "system" else _MARK.format(f"{role}{number}")


def _conversation(*roles: str) -> Conversation:
    """Marked words; the role "" is an empty system text."""
    said = [
        Message("system", "") if not role else Message(role, _word(role, number))  # type: ignore[arg-type]  # of two names, both are roles
        for number, role in enumerate(roles)
    ]
    return Conversation(tuple(said))


def _between(render: Render, *roles: str) -> list[str]:
    """The texts before, between and behind the words of a conversation. Raises UsageError where one is not as it was."""
    rest = render(_conversation(*roles))
    parts: list[str] = []
    for number, role in enumerate(roles):
        if not role:
            continue
        before, found, rest = rest.partition(_word(role, number))
        if not found:
            raise UsageError(f"The chat template does not write what the {role} says as it was said.")
        parts.append(before)
    return [*parts, rest]
