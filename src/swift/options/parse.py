"""This file knows how a command line becomes a command: argv, YAML and JSON in, frozen groups of options out.

The way of a value: words after a flag (or an entry of `--config`) -> validated by the flag's own type -> filled up
from the checkpoint's args.json where `--load_args` says so -> derived defaults -> rules. Every mistake on the way is
collected and all are reported at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from swift.core.errors import UsageError
from swift.core.logs import get_logger
from swift.core.registry import nearest
from swift.options import commands, config, saved
from swift.options.declare import Command, Flag, Origin, Source, Unfit, build, flags
from swift.options.defaults import derive
from swift.options.expectations import expected
from swift.options.rules import RENAMED, broken, not_ready
from swift.options.training_extra import NOT_TAKEN, TRAINING_EXTRA
from swift.options.wording import say

COMMANDS: dict[str, type[Command]] = {
    command.name: command
    for command in (
        commands.Pt, commands.Sft, commands.Rlhf, commands.Infer, commands.Deploy, commands.Rollout, commands.Eval,
        commands.Export, commands.MergeLora, commands.Parity, commands.Sample, commands.App, commands.WebUi,
    )
}  # fmt: skip
"""Every command that has options, by name."""

EXTRA_TYPES: dict[str, Any] = {
    "bool": bool, "int": int, "float": float, "str": str, "list": list[str], "json": dict[str, Any],
}  # fmt: skip
UNSET = ("null", "None")
FLAG = re.compile(r"--[A-Za-z]")


@dataclass(frozen=True)
class Given:
    """A value as the user wrote it, and where. `raw` is the list of words from argv, or a YAML value."""

    flag: str
    raw: Any
    source: Source

    @property
    def where(self) -> tuple[str, str] | None:
        """File and line, when the value stands in a file."""
        if self.source.origin is not Origin.FILE:
            return None
        file, _, line = self.source.detail.rpartition(":")
        return file, line


@dataclass
class Findings:
    """What was collected while reading: the problems, and the flags they are about."""

    language: str
    problems: list[str] = field(default_factory=list)
    about: set[str] = field(default_factory=set)

    def add(self, key: str, *about: str, **values: Any) -> None:
        """One more problem, and the flags it is about."""
        self.problems.append(say(key, self.language, **values))
        self.about.update(about)


def parse(name: str, argv: Sequence[str], language: str = "en", *, runs: bool = False) -> Any:
    """The command called `name` with the options of `argv`, complete, derived and checked.

    runs: whether it is about to run, so that what it reads must be there and what it writes must have room.

    Raises UsageError carrying every mistake found. Imports nothing heavy and touches nothing but the files that the
    options name (`--config`, a checkpoint's args.json).
    """
    command = COMMANDS[name]
    found = Findings(language)
    given = {**_from_config(argv, found), **_from_argv(argv, found)}
    values, extra, sources = _validated(command, given, found)
    loaded = saved.load(command, values, sources, found.add)
    return _completed(command, values, extra, sources, loaded, found, runs=runs)


def with_checkpoint(made: Command, checkpoint: Path) -> Any:
    """The same command line once more, with the args.json in `checkpoint`, which was not on this machine before."""
    found = Findings(made.language)
    flat = made.values()
    sources = {name: source for name, source in made.sources.items() if source.asked_for}
    values = {name: flat[name] for name in sources if name in flat}
    loaded = saved.load(type(made), {**values, "adapters": [str(checkpoint)]}, sources, found.add)
    return _completed(type(made), values, made.extra, sources, loaded, found, runs=False)


def _completed(
    command: type[Command], values: dict[str, Any], extra: dict[str, Any], sources: dict[str, Source],
    loaded: saved.Loaded, found: Findings, *, runs: bool,
) -> Any:  # fmt: skip
    """The command of what was given and what a checkpoint says, with all that follows from it, checked."""
    read_back = {flag: _read_back(flags(command)[flag], loaded, found) for flag in loaded.values}
    made = build(command, {**values, **read_back}, {**sources, **loaded.sources})
    made = derive(made.model_copy(update={"extra": extra, "language": found.language}))
    for words in [*broken(made), *(not_ready(made) if runs else ())]:
        text = words.say(found.language)
        if not any(f"--{flag}" in text for flag in found.about):
            found.problems.append(text)
    if found.problems:
        raise UsageError(*found.problems)
    return made


# ------------------------------------------------------------------------------------------------------------ reading


def _from_argv(argv: Sequence[str], found: Findings) -> dict[str, Given]:
    """Flag -> the words after it. A flag that stands twice with different words is a problem: one would be ignored."""
    given: dict[str, Given] = {}
    for flag, words in _split(argv, found):
        before = given.get(flag)
        if before is not None and before.raw != words:
            found.add("twice", flag, flag=flag, first=" ".join(before.raw), second=" ".join(words))
        given[flag] = Given(flag, words, Source(Origin.COMMAND_LINE))
    return given


def _split(argv: Sequence[str], found: Findings) -> list[tuple[str, list[str]]]:
    """argv cut at its flags: `--a 1 2 --b=3` -> [("a", ["1", "2"]), ("b", ["3"])]."""
    pieces: list[tuple[str, list[str]]] = []
    for word in argv:
        if FLAG.match(word):
            flag, equals, value = word[2:].partition("=")
            pieces.append((flag.replace("-", "_"), [value] if equals else []))
        elif pieces:
            pieces[-1][1].append(word)
        else:
            found.add("positional", word=word)
    return pieces


def _from_config(argv: Sequence[str], found: Findings) -> dict[str, Given]:
    """The entries of the file that `--config` names; {} without it."""
    file = config.named_in(argv)
    if file is None:
        return {}
    try:
        entries = config.read(file)
    except config.ConfigError as error:
        found.add(error.key, "config", file=file, **error.values)
        return {}
    return {
        entry.flag: Given(entry.flag, entry.value, Source(Origin.FILE, f"{file}:{entry.line}")) for entry in entries
    }


# --------------------------------------------------------------------------------------------------------- validating


def _validated(
    command: type[Command], given: Mapping[str, Given], found: Findings
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Source]]:
    """The values, the extra training arguments, and the sources of all that is given."""
    table = flags(command)
    extras = TRAINING_EXTRA if issubclass(command, commands.Sft) else {}
    values: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    sources: dict[str, Source] = {}
    unknown: list[str] = []
    for name, item in given.items():
        if name not in table and name not in extras:
            unknown.append(name)
            continue
        flag = table[name] if name in table else _extra_flag(name, extras[name])
        value = _value(flag, item, found)
        if value is not _NOTHING:
            (values if name in table else extra)[name] = value
            sources[name] = item.source
    for name in unknown:
        problem = _unknown(command, name, extras, found.language)
        if values.get("ignore_args_error"):
            get_logger().warning(say("ignored", found.language, problem=problem))
        else:
            found.problems.append(problem)
            found.about.update([name, *nearest(name, table)])
    return values, extra, sources


_NOTHING = object()


def _extra_flag(name: str, kind: str) -> Flag:
    info = FieldInfo(annotation=EXTRA_TYPES[kind], default=None)
    return Flag(name, "extra", commands.TrainingOptions, info, None)


def _value(flag: Flag, item: Given, found: Findings) -> Any:
    """The validated value of a flag, or _NOTHING when it is unset or wrong (then the problem is in `found`)."""
    raw = item.raw
    if item.source.origin is Origin.COMMAND_LINE:
        raw = _joined(flag, raw, found)
        if raw is _NOTHING:
            return _NOTHING
    if raw is None:
        return _NOTHING
    if flag.is_list and isinstance(raw, (str, int, float)):
        raw = [raw]
    annotation = flag.annotation
    try:
        return TypeAdapter(annotation, config=ConfigDict(coerce_numbers_to_str=True)).validate_python(raw)
    except ValidationError as error:
        _report(flag, item, raw, error, found)
        return _NOTHING


def _read_back(flag: Flag, loaded: saved.Loaded, found: Findings) -> Any:
    """A value of a checkpoint's args.json, validated like any other; a wrong one is a problem of that file."""
    item = Given(flag.name, loaded.values[flag.name], loaded.sources[flag.name])
    value = _value(flag, item, found)
    return flag.default if value is _NOTHING else value


def _joined(flag: Flag, words: list[str], found: Findings) -> Any:
    """The words after a flag as one raw value: a list for lists, true for a bare switch, else the one word."""
    if len(words) == 1 and words[0] in UNSET:
        return _NOTHING
    if flag.is_list:
        return config.inline_list(words[0]) if len(words) == 1 and words[0].startswith("[") else list(words)
    if len(words) == 1:
        return next((choice for choice in flag.choices if str(choice) == words[0]), words[0])  # a number among words
    if not words and flag.is_bool:
        return True
    if not words:
        found.add("needs_value", flag.name, flag=flag.name, expected=expected(flag.info, found.language))
    else:
        found.add("one_value", flag.name, flag=flag.name, count=len(words), found=" ".join(words))
    return _NOTHING


def _report(flag: Flag, item: Given, raw: Any, error: ValidationError, found: Findings) -> None:
    where = ""
    if item.where:
        where = say("in_file", found.language, file=item.where[0], line=item.where[1])
    shown = repr(raw) if isinstance(raw, str) else str(raw)
    own = next((e for e in error.errors() if e["type"] == "value_error"), None)
    if own is not None and not flag.choices:
        cause = own.get("ctx", {}).get("error")
        why = cause.words.say(found.language) if isinstance(cause, Unfit) else own["msg"].removeprefix("Value error, ")
        found.add("bad_value_why", flag.name, flag=flag.name, found=shown, where=where, why=why)
        return
    guess = ""
    if flag.choices:
        bad = [word for word in (raw if isinstance(raw, list) else [raw]) if word not in flag.choices]
        near = nearest(str(bad[0]), [str(choice) for choice in flag.choices]) if bad else []
        guess = say("value_guess", found.language, name=near[0]) if near else ""
    found.add(
        "bad_value", flag.name, flag=flag.name, found=shown, where=where,
        expected=expected(flag.info, found.language), guess=guess,
    )  # fmt: skip


def _unknown(command: type[Command], name: str, extras: Mapping[str, str], language: str) -> str:
    """What to say of a flag the command does not have."""
    if name in RENAMED:
        return say("renamed", language, flag=name, name=RENAMED[name])
    if extras and name in NOT_TAKEN:
        return say("not_taken", language, flag=name, why=NOT_TAKEN[name])
    others = [other for other, cls in COMMANDS.items() if name in flags(cls)]
    if others:
        shown = ", ".join(f"swift {other}" for other in others)
        return say("elsewhere", language, flag=name, command=command.name, others=shown)
    near = nearest(name, [*flags(command), *extras, *RENAMED])
    near = [RENAMED.get(guess, guess) for guess in near]
    guess = say("guess", language, name=near[0]) if near else ""
    return say("unknown", language, flag=name, guess=guess)
