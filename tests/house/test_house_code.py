"""Rules that every source file keeps, read from its syntax tree."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "swift"
FILES = sorted(SOURCE.rglob("*.py"))
NO_NOUNS = {"utils", "util", "helpers", "helper", "misc", "common", "base2", "manager", "mixin", "mixins"}
READS_ENVIRONMENT = SOURCE / "core" / "environment.py"
WRITES_ENVIRONMENT = SOURCE / "launch.py"
NO_PATCH = {"sys.modules"}
"""Where a module loaded from a file is entered, as the documentation of importlib says."""


def named(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported_modules(module: ast.Module) -> set[str]:
    """Names bound by imports; what only type checkers import counts too, and does no harm."""
    names = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def root(node: ast.expr) -> str | None:
    """`a` of `a.b.c`; None for anything that is not a chain of attributes."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def targets(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, (ast.Assign, ast.Delete)):
        return [inner for target in node.targets for inner in ast.walk(target) if isinstance(inner, ast.expr)]
    if isinstance(node, (ast.AugAssign, ast.AnnAssign)):
        return [node.target]
    return []


def patches(module: ast.Module) -> list[int]:
    """Lines that assign onto an attribute of something imported or into it, or call `setattr` on it."""
    imported = imported_modules(module)
    lines = []
    for node in ast.walk(module):
        lines += [
            target.lineno
            for target in targets(node)
            if isinstance(target, ast.Attribute) and root(target) in imported and ast.unparse(target) not in NO_PATCH
        ]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("setattr", "delattr"):
            lines += [node.lineno for argument in node.args[:1] if root(argument) in imported]
    return lines


def environment_uses(module: ast.Module) -> list[int]:
    """Lines that touch the environment of the process."""
    touches = {"environ", "environb", "getenv", "putenv", "unsetenv"}
    lines = []
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute) and node.attr in touches and root(node) == "os":
            lines.append(node.lineno)
        if isinstance(node, ast.ImportFrom) and node.module == "os" and touches & {a.name for a in node.names}:
            lines.append(node.lineno)
    return lines


def test_the_rules_find_what_they_forbid():
    assert patches(ast.parse("import torch\ntorch.add = None")) == [2]
    assert patches(ast.parse("import torch.nn as nn\nsetattr(nn.Linear, 'forward', None)")) == [2]
    assert patches(ast.parse("from x import Y\na, Y.b = 1, 2")) == [2]
    assert patches(ast.parse("import torch\ntorch.table['x'] = 1")) == [2]
    assert patches(ast.parse("import torch\nx = torch.add\nx.y = 1")) == []
    assert environment_uses(ast.parse("import os\nos.environ['A'] = '1'\nos.getenv('A')")) == [2, 3]
    assert environment_uses(ast.parse("from os import environ")) == [1]


def test_no_module_is_named_after_what_it_is_not():
    assert [named(path) for path in FILES if path.stem in NO_NOUNS or path.parent.name in NO_NOUNS] == []


@pytest.mark.parametrize("path", FILES, ids=named)
def test_nothing_is_assigned_onto_what_was_imported(path):
    assert patches(tree(path)) == []


@pytest.mark.parametrize("path", FILES, ids=named)
def test_the_environment_is_touched_in_two_files_only(path):
    if path not in (READS_ENVIRONMENT, WRITES_ENVIRONMENT):
        assert environment_uses(tree(path)) == []


def test_the_environment_is_read_but_not_written_where_it_is_declared():
    module = tree(READS_ENVIRONMENT)
    written = [target for node in ast.walk(module) for target in targets(node) if isinstance(target, ast.Subscript)]
    assert [node.lineno for node in written if root(node.value) == "os"] == []
    assert not {"putenv", "unsetenv", "setdefault", "update", "pop"} & {
        node.attr for node in ast.walk(module) if isinstance(node, ast.Attribute)
    }


@pytest.mark.parametrize("path", [p for p in FILES if p.stem not in ("__init__", "__main__")], ids=named)
def test_every_module_says_what_it_knows(path):
    text = ast.get_docstring(tree(path)) or ""
    assert text.startswith("This file knows "), f"the docstring of {named(path)} begins {text[:40]!r}"
