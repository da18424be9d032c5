"""This file knows how a resolved command explains itself: every value, and where it came from."""

from __future__ import annotations

from swift.core.errors import UsageError
from swift.core.registry import nearest
from swift.options.declare import Command, Flag, Origin, flags
from swift.options.help import default_text, heading, show
from swift.options.wording import say


def explain(command: Command, why: str | None, language: str) -> str:
    """The page of `swift args`: what was given and derived first, then the defaults; with `why`, one option alone."""
    if why is not None:
        return _one(command, why.lstrip("-").replace("-", "_"), language)
    values = command.values()
    table = flags(type(command))
    width = max(len(name) for name in table)
    lines = [f"swift {command.name}"]
    title = None
    for flag in table.values():
        if heading(flag, language) != title:
            title = heading(flag, language)
            lines += ["", title]
        source = command.sources[flag.name]
        note = "" if source.origin is Origin.DEFAULT else f"    <- {source}"
        lines.append(f"  {flag.name:<{width}} = {show(values[flag.name])}{note}")
    lines += [f"  {name:<{width}} = {show(value)}    <- training arguments" for name, value in command.extra.items()]
    return "\n".join(lines)


def _one(command: Command, name: str, language: str) -> str:
    table = flags(type(command))
    if name not in table:
        near = nearest(name, table)
        guess = say("guess", language, name=near[0]) if near else ""
        raise UsageError(say("unknown", language, flag=name, guess=guess))
    flag: Flag = table[name]
    lines = [
        f"{name} = {show(command.values()[name])}",
        f"  {command.sources[name]}",
        f"  {flag.help}",
        f"  {default_text(flag, language)}",
    ]
    if flag.marks.when:
        lines.append(f"  {say('applies', language)} {flag.marks.when.words.say(language)}")
    return "\n".join(lines)
