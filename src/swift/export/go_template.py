"""This file knows the part of Go's text/template that prompts of Ollama are written in: how it is written, and read.

Written are texts and actions; read are, and no more than:

    {{ .Field }}  {{ $.Field }}  {{ $name.Field }}  {{ "text" }}  {{ function operand ... }}
    {{ $name := ... }}  {{ $name = ... }}  {{ if ... }}  {{ else if ... }}  {{ else }}  {{ end }}
    {{ range $index, $item := ... }}

with the functions eq ne gt and or not len slice, parentheses, and the trims {{- and -}}.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from swift.core.errors import RunError

_ACTION = re.compile(r'\{\{(-\s)?((?:"(?:\\.|[^"\\])*"|[^"])*?)(\s-)?\}\}', re.DOTALL)
_TOKEN = re.compile(r'\s*(:=|=|"(?:\\.|[^"\\])*"|\(|\)|,|\$?[.\w]*\w|\$|\.|-?\d+)')


# -------------------------------------------------------------------------------------------------------------- writing


@dataclass(frozen=True)
class Action:
    """What stands between {{ and }}."""

    code: str


def write(parts: Sequence[str | Action]) -> str:
    """A template of texts and actions, each action after another one on a line of its own.

    A text stands as it is, glued to the actions around it, so that no trim can touch its white space.
    """
    written: list[str] = []
    after_action = False
    for part in parts:
        if isinstance(part, Action):
            written.append(f"\n{{{{- {part.code} }}}}" if after_action else f"{{{{ {part.code} }}}}")
        elif part:
            written.append(_literal(part))
        after_action = isinstance(part, Action) if part else after_action
    return "".join(written)


def quoted(text: str) -> str:
    """A string of Go."""
    return json.dumps(text, ensure_ascii=False)


def _literal(text: str) -> str:
    """A text that means itself: opening braces, and triple quotes, which end what they stand in, become strings."""
    return re.sub(r'\{\{|"""|\{$', lambda found: f"{{{{ {quoted(found[0])} }}}}", text)


# -------------------------------------------------------------------------------------------------------------- reading


@dataclass
class _Node:
    """An action with what it governs.

    branches: of an `if` and its `else if`: condition, body; the condition of `else` is empty. Of a `range` just one.
    """

    kind: str
    code: str = ""
    branches: list[tuple[str, list[_Node]]] = field(default_factory=list)


@dataclass
class _Scope:
    """What names mean at a place: the dot, and the variables in order of declaration, inner ones last."""

    dot: Any
    names: list[dict[str, Any]]

    def inner(self, dot: Any, **names: Any) -> _Scope:
        """A scope inside this one."""
        return _Scope(dot, [*self.names, dict(names)])

    def find(self, name: str) -> dict[str, Any]:
        """The table that a variable stands in. Raises RunError for an unknown one."""
        for table in reversed(self.names):
            if name in table:
                return table
        raise RunError(f"The Go template uses the variable {name}, which is not declared.")


def render(template: str, values: Mapping[str, Any]) -> str:
    """What a template makes of values: texts, truths, and lists of mappings; a field that is missing is empty.

    Raises RunError for what stands outside the part of Go's templates that is known here.
    """
    pieces: list[str] = []
    _run(_parse(template), _Scope(values, [{"$": values}]), pieces.append)
    return "".join(pieces)


def _parse(template: str) -> list[_Node]:
    """The actions and texts of a template as a tree."""
    root: list[_Node] = []
    bodies: list[list[_Node]] = [root]
    opened: list[_Node] = []
    for kind, code in _cut(template):
        word = code.partition(" ")[0] if kind == "action" else ""
        if word in ("if", "range"):
            node = _Node(word, branches=[(code.removeprefix(word), [])])
            bodies[-1].append(node)
            opened.append(node)
            bodies.append(node.branches[0][1])
        elif word in ("else", "end"):
            if not opened:
                raise RunError(f"The Go template has an {{{{ {word} }}}} too many.")
            bodies.pop()
            if word == "end":
                opened.pop()
                continue
            opened[-1].branches.append((code.removeprefix("else").strip().removeprefix("if"), []))
            bodies.append(opened[-1].branches[-1][1])
        else:
            bodies[-1].append(_Node(kind, code))
    if opened:
        raise RunError(f"The Go template has no {{{{ end }}}} for {{{{ {opened[-1].kind} }}}}.")
    return root


def _cut(template: str) -> list[tuple[str, str]]:
    """(text or action, what it says), with the white space gone that actions trim."""
    found: list[tuple[str, str]] = []
    at, trims = 0, False
    for match in _ACTION.finditer(template):
        text = template[at : match.start()]
        text = text.lstrip() if trims else text
        found += [("text", text.rstrip() if match[1] else text), ("action", match[2].strip())]
        at, trims = match.end(), bool(match[3])
    rest = template[at:]
    return [*found, ("text", rest.lstrip() if trims else rest)]


def _run(nodes: Sequence[_Node], scope: _Scope, out: Callable[[str], object]) -> None:
    for node in nodes:
        if node.kind == "text":
            out(node.code)
        elif node.kind == "if":
            body = next((body for code, body in node.branches if not code.strip() or _value(code, scope)), [])
            _run(body, scope.inner(scope.dot), out)
        elif node.kind == "range":
            _loop(node, scope, out)
        elif (assigned := re.match(r"(\$\w+)\s*(:?=)\s*(.*)", node.code, re.DOTALL)) is not None:
            table = scope.names[-1] if assigned[2] == ":=" else scope.find(assigned[1])
            table[assigned[1]] = _value(assigned[3], scope)
        else:
            out(_shown(_value(node.code, scope)))


def _loop(node: _Node, scope: _Scope, out: Callable[[str], object]) -> None:
    code, body = node.branches[0]
    declared, mark, over = code.partition(":=")
    names = [name.strip() for name in declared.split(",")] if mark else []
    for index, item in enumerate(_value(over if mark else code, scope) or []):
        given = dict(zip(names, (index, item) if len(names) == 2 else (item,), strict=True)) if names else {}
        _run(body, _Scope(item, [*scope.names, given]), out)


# ---------------------------------------------------------------------------------------------------------- expressions


def _value(code: str, scope: _Scope) -> Any:
    """The value of a pipeline of one command."""
    tokens = _TOKEN.findall(code)
    if "".join(tokens) != "".join(_without_blanks(code)):
        raise RunError(f"The Go template says {{{{ {code.strip()} }}}}, which is not understood here.")
    value, rest = _command(tokens, scope)
    if rest:
        raise RunError(f"The Go template says {{{{ {code.strip()} }}}}, of which {' '.join(rest)} is not understood.")
    return value


def _without_blanks(code: str) -> list[str]:
    return [
        part if part.startswith('"') else re.sub(r"\s", "", part) for part in re.split(r'("(?:\\.|[^"\\])*")', code)
    ]


def _command(tokens: list[str], scope: _Scope) -> tuple[Any, list[str]]:
    """A function with its operands, or an operand; and the tokens behind it."""
    if not tokens or tokens[0] not in _FUNCTIONS:
        return _operand(tokens, scope)
    name, rest, operands = tokens[0], tokens[1:], []
    while rest and rest[0] != ")":
        value, rest = _operand(rest, scope)
        operands.append(value)
    return _FUNCTIONS[name](*operands), rest


def _operand(tokens: list[str], scope: _Scope) -> tuple[Any, list[str]]:
    if not tokens:
        raise RunError("An action of the Go template is empty.")
    first, rest = tokens[0], tokens[1:]
    if first == "(":
        value, rest = _command(rest, scope)
        return value, rest[1:]
    if first.startswith('"'):
        return json.loads(first), rest
    if re.fullmatch(r"-?\d+", first):
        return int(first), rest
    name, *path = first.split(".")
    if name and not name.startswith("$"):
        raise RunError(f"The Go template uses {first}, which is not known here.")
    value = scope.find(name)[name] if name else scope.dot
    for part in filter(None, path):
        value = value.get(part, "")
    return value, rest


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return (
        json.dumps(value, ensure_ascii=False, separators=(",", ":")) if isinstance(value, (dict, list)) else str(value)
    )


def _and(*values: Any) -> Any:
    return next((value for value in values if not value), values[-1])


def _or(*values: Any) -> Any:
    return next((value for value in values if value), values[-1])


def _sliced(value: Any, begin: int = 0, end: int | None = None) -> Any:
    return value[begin:end]


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "eq": lambda first, *others: first in others,
    "ne": lambda one, other: one != other,
    "gt": lambda one, other: one > other,
    "and": _and,
    "or": _or,
    "not": lambda value: not value,
    "len": len,
    "slice": _sliced,
}
