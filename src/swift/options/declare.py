"""This file knows how an option is declared: once, as a field of a group, with its type, default and meaning.

A group is a frozen model whose fields are flags; the docstring under a field is its help. A command is groups side
by side. Where a command wants another default, or not a certain flag, `part()` says so there:

    class Eval(Command):
        generation: GenerationOptions = part(temperature=0.0)

`None` as a default means "not said": either the feature is off, or `rule` says what is derived instead.
"""

from __future__ import annotations

import ast
import itertools
import json
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, core_schema

from swift.core.paths import is_file
from swift.core.registry import did_you_mean
from swift.options.conditions import Condition, Words


class Unfit(ValueError):  # noqa: N818 (says what it is)
    """A value that does not fit its option, and what it must be, in both languages of the interface."""

    def __init__(self, en: str, zh: str) -> None:
        super().__init__(en)
        self.words = Words(en, zh)


class Options(BaseModel):
    """A group of options that belong together. Never changed after it was made."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), defer_build=True)


@dataclass(frozen=True)
class Marks:
    """What is known of an option beside its type and default.

    important: shown first and marked in the help.
    when: the option has an effect only then; given elsewhere it is an error.
    rule: what the value becomes when it is not said, in words.
    later: the feature that is not available yet and that this option belongs to.
    works: values that work although `later` is set.
    """

    important: bool = False
    when: Condition | None = None
    rule: str | None = None
    later: str | None = None
    works: tuple[Any, ...] = ()

    def __call__(self, schema: dict[str, Any]) -> None:
        """Write into the JSON schema of the field what an editor can show."""
        if self.rule:
            schema["x-derived-default"] = self.rule
        if self.when:
            schema["x-applies-when"] = self.when.words.en
        if self.important:
            schema["x-important"] = True


def option(default: Any, *, important: bool = False, when: Condition | None = None, rule: str | None = None,
           later: str | None = None, works: tuple[Any, ...] = (), **bounds: Any) -> Any:  # fmt: skip
    """A field of a group. `bounds` are pydantic's: ge, gt, le, lt, min_length, ..."""
    marks = Marks(important, when, rule, later, works)
    if isinstance(default, (list, dict)):
        return Field(default_factory=default.copy, json_schema_extra=marks, **bounds)
    return Field(default, json_schema_extra=marks, **bounds)


class Origin(str, Enum):
    """Where a value came from."""

    DEFAULT = "default"
    RULE = "rule"
    FILE = "file"
    ENVIRONMENT = "environment"
    CHECKPOINT = "checkpoint"
    COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Source:
    """The origin of a value and the detail of it: the rule in words, `file:line`, the variable, the checkpoint."""

    origin: Origin
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.origin.value}: {self.detail}" if self.detail else self.origin.value

    @property
    def asked_for(self) -> bool:
        """Whether the user gave this value to this very run."""
        return self.origin in {Origin.FILE, Origin.ENVIRONMENT, Origin.COMMAND_LINE}


@dataclass(frozen=True)
class Part:
    """How a command holds a group: with which other defaults, and without which flags."""

    defaults: Mapping[str, Any] = field(default_factory=dict)
    without: frozenset[str] = frozenset()

    def __call__(self, schema: dict[str, Any]) -> None:
        """Nothing of this belongs in a JSON schema."""


def part(*, without: frozenset[str] | set[str] = frozenset(), **defaults: Any) -> Any:
    """A group inside a command, with the defaults and the omissions that this command wants."""
    return Field(json_schema_extra=Part(defaults, frozenset(without)))


class Command(BaseModel):
    """A command line, complete and checked: groups of options side by side, and where each value came from."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, defer_build=True)

    name: ClassVar[str]
    sources: dict[str, Source] = Field(default_factory=dict)
    extra: dict[str, Any] = Field(default_factory=dict)
    """Training arguments of transformers that the manual does not list."""
    language: str = "en"
    """What its user is spoken to in: en or zh."""

    def values(self) -> dict[str, Any]:
        """All options flat, flag -> value, with `command` naming the command itself."""
        flat = {flag.name: getattr(getattr(self, flag.group), flag.name) for flag in flags(type(self)).values()}
        return {"command": self.name, **flat}

    def replace(self, changes: Mapping[str, Any], sources: Mapping[str, Source]) -> Any:
        """The same command with some options changed, flat by flag; their sources are recorded."""
        by_group: dict[str, dict[str, Any]] = {}
        table = flags(type(self))
        for name, value in changes.items():
            by_group.setdefault(table[name].group, {})[name] = value
        groups = {group: getattr(self, group).model_copy(update=update) for group, update in by_group.items()}
        return self.model_copy(update={**groups, "sources": {**self.sources, **sources}})


@dataclass(frozen=True)
class Flag:
    """One option of one command: everything the parser, the help and the documentation need."""

    name: str
    group: str
    owner: type[Options]
    info: FieldInfo
    default: Any

    @property
    def marks(self) -> Marks:
        """The marks of the declaration."""
        marks = self.info.json_schema_extra
        return marks if isinstance(marks, Marks) else Marks()

    @property
    def annotation(self) -> Any:
        """The type with its bounds, as pydantic validates it."""
        bounds = tuple(self.info.metadata)
        return Annotated[(self.info.annotation, *bounds)] if bounds else self.info.annotation

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values a closed option can take; () when it is open."""
        return _choices(self.info.annotation) or next(
            (tuple(m.table) for m in self.info.metadata if isinstance(m, Choices)), ()
        )

    @property
    def is_list(self) -> bool:
        """Whether several words after the flag are its items."""
        return any(get_origin(arm) is list or arm is list for arm in _arms(self.info.annotation))

    @property
    def is_bool(self) -> bool:
        """Whether the bare flag means true."""
        return bool in _arms(self.info.annotation)

    @property
    def help(self) -> str:
        """The docstring under the field."""
        return docstrings(self.owner).get(self.name, "")


@cache
def flags(command: type[Command]) -> dict[str, Flag]:
    """The options of a command by name, in order of declaration.

    Raises TypeError when two groups declare one flag, or a part overrides what is not there: a fault of ours that
    shows the first time the command is looked at.
    """
    table: dict[str, Flag] = {}
    for group, info in command.model_fields.items():
        part_ = info.json_schema_extra
        if not isinstance(part_, Part):
            continue
        owner = info.annotation
        if not (isinstance(owner, type) and issubclass(owner, Options)):
            raise TypeError(f"{command.__name__}.{group} is no group of options")
        unknown = (set(part_.defaults) | part_.without) - set(owner.model_fields)
        if unknown:
            raise TypeError(f"{command.__name__}.{group} overrides options that are not there: {sorted(unknown)}")
        for name, field_ in owner.model_fields.items():
            if name in part_.without:
                continue
            if name in table:
                raise TypeError(f"{command.__name__} declares --{name} in {table[name].group} and in {group}")
            default = part_.defaults.get(name, field_.get_default(call_default_factory=True))
            assert default is not PydanticUndefined, f"--{name} has no default"
            table[name] = Flag(name, group, owner, field_, default)
    return table


def build(command: type[Command], values: Mapping[str, Any], sources: Mapping[str, Source]) -> Any:
    """A command from values that are already validated; what is not among them takes its default.

    Flags that a part leaves out keep the default of their group, so that a component always finds its whole group.
    """
    groups: dict[str, dict[str, Any]] = {}
    for flag in flags(command).values():
        groups.setdefault(flag.group, {})[flag.name] = values.get(flag.name, flag.default)
    made = {}
    for group, info in command.model_fields.items():
        if isinstance(info.json_schema_extra, Part):
            owner = typing.cast("type[Options]", info.annotation)
            made[group] = owner.model_construct(**groups.get(group, {}))
    all_sources = {name: sources.get(name, Source(Origin.DEFAULT)) for name in flags(command)}
    return command.model_construct(**made, sources=all_sources, extra={})


@cache
def docstrings(owner: type[Options]) -> dict[str, str]:
    """The docstring under each field of a group, read from its source; {} where sources are absent.

    One parse of one file, and only when help is asked for: `swift sft --typo` need not pay for it.
    """
    found: dict[str, str] = {}
    for cls in reversed(owner.__mro__):
        if not (isinstance(cls, type) and issubclass(cls, Options)) or cls is Options:
            continue
        body = _class_bodies(cls.__module__).get(cls.__name__, [])
        for field_, text in itertools.pairwise(body):
            if not (isinstance(field_, ast.AnnAssign) and isinstance(field_.target, ast.Name)):
                continue
            if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[field_.target.id] = " ".join(str(text.value.value).split())
    return found


@cache
def _class_bodies(module: str) -> dict[str, list[ast.stmt]]:
    path = sys.modules[module].__file__
    if not path or not Path(path).is_file():
        return {}
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    return {node.name: node.body for node in tree.body if isinstance(node, ast.ClassDef)}


def _arms(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a type: `int | None` -> (int, NoneType); Annotated is looked through."""
    if get_origin(annotation) is Annotated:
        return _arms(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(arm for inner in get_args(annotation) for arm in _arms(inner))
    return (annotation,)


def _choices(annotation: Any) -> tuple[Any, ...]:
    """The values of a closed type; () when one of its alternatives is open, as in `int | Literal["float8"]`."""
    arms = [arm for arm in _arms(annotation) if arm is not type(None)]
    if len(arms) > 1:
        closed = [_choices(arm) for arm in arms]
        return tuple(value for values in closed for value in values) if all(closed) else ()
    for arm in arms:
        if get_origin(arm) is Literal:
            return get_args(arm)
        if get_origin(arm) is list and get_args(arm):
            inner = _choices(get_args(arm)[0])
            if inner:
                return inner
    return ()


# ---------------------------------------------------------------------------------------------------- types of values


@dataclass(frozen=True)
class Choices:
    """The names of a catalog table as the choices of a text option.

    is_open: plugins may add names, after options are read; a rule says what is unknown.
    """

    table: Mapping[str, Any]
    is_open: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        """Accept the names that are in the table at the time of parsing: plugins add theirs before."""

        def check(name: str) -> str:
            if name not in self.table and not self.is_open:
                guess = did_you_mean(name, self.table)
                raise ValueError(f"must be one of {', '.join(sorted(self.table))}.{guess}")
            return name

        return core_schema.no_info_after_validator_function(check, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        """The names for an editor to complete; of an open table another text is fine too."""
        names = {"enum": list(self.table)}
        return {"anyOf": [names, {"type": "string"}]} if self.is_open else names


def _json(value: Any) -> Any:
    """A dict from JSON text, from the path of a JSON file, or from a Python literal such as {0: "20GB"}."""
    if not isinstance(value, str):
        return value
    if not value.lstrip().startswith("{"):
        if not is_file(value):
            raise Unfit(
                "must be JSON text that begins with {, or the path of a JSON file that exists",
                "必须为以 { 开头的 JSON 文本，或存在的 JSON 文件路径",
            )
        value = Path(value).expanduser().read_text(encoding="utf-8")
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        try:
            return ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError):
            raise Unfit(
                f"is no valid JSON: {error.msg} at character {error.pos + 1}",
                f"不是合法的 JSON：第 {error.pos + 1} 个字符处 {error.msg}",
            ) from None


def _json_or_name(value: Any) -> Any:
    return _json(value) if isinstance(value, str) and value.lstrip().startswith("{") else value


Json = Annotated[dict[Any, Any], BeforeValidator(_json)]
"""A mapping, given as JSON text or as the path of a JSON file."""
JsonOrName = Annotated[Union[dict[Any, Any], str], BeforeValidator(_json_or_name)]  # noqa: UP007 (runs on 3.10)
"""A mapping as JSON text, or a name or path that is passed on as it is."""
Fraction = Annotated[float, Field(ge=0, le=1)]
"""A number from 0 to 1."""
DTypeName = Literal["float16", "bfloat16", "float32"]
"""A floating-point type of weights."""

__all__ = [
    "Choices", "Command", "DTypeName", "Flag", "Fraction", "Json", "JsonOrName", "Marks", "Options",
    "Origin", "Part", "Source", "Unfit", "build", "docstrings", "flags", "option", "part",
]  # fmt: skip
