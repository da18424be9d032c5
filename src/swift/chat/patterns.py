"""This file knows patterns of --loss_scale: which parts of a reply weigh how much, as a mapping or a JSON file.

A pattern with two numbers is a delimiter, taken literally: the first number weighs the delimiter, the second what
follows up to the next one; text before the first delimiter weighs 1. A pattern with one number is a regular expression
(in which . matches newlines too): what it matches weighs that number, and all else 1. Where any pattern has two
numbers, all must have.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swift.core.errors import UsageError
from swift.core.paths import is_file


@dataclass(frozen=True)
class Patterns:
    """Delimiters or regular expressions for what is said, and phrases for what was asked.

    delimiters: literal text -> (its weight, the weight of what follows).
    expressions: regular expression -> weight; the first that matches at a place counts.
    queries: phrase -> weight of the whole reply where the user's text holds it; the first found counts.
    """

    delimiters: Mapping[str, tuple[float, float]]
    expressions: tuple[tuple[re.Pattern[str], float], ...]
    queries: Mapping[str, float]

    @property
    def is_binary(self) -> bool:
        """Whether every number is 0 or 1."""
        numbers = [number for pair in self.delimiters.values() for number in pair]
        numbers += [weight for _, weight in self.expressions] + [*self.queries.values()]
        return all(number in (0, 1) for number in numbers)

    def weigh(self, text: str, query: str | None) -> tuple[list[str], list[float]]:
        """The pieces of a text and their weights."""
        if query is not None:
            for phrase, weight in self.queries.items():
                if phrase in query:
                    return [text], [weight]
        return self._by_delimiters(text) if self.delimiters else self._by_expressions(text)

    def _by_delimiters(self, text: str) -> tuple[list[str], list[float]]:
        pieces, weights, at, following = [], [], 0, 1.0
        longest_first = sorted(self.delimiters, key=len, reverse=True)  # or one that begins another would hide it
        for found in re.finditer("|".join(map(re.escape, longest_first)), text):
            own, after = self.delimiters[found[0]]
            pieces += [text[at : found.start()], found[0]]
            weights += [following, own]
            at, following = found.end(), after
        return _filled([*pieces, text[at:]], [*weights, following])

    def _by_expressions(self, text: str) -> tuple[list[str], list[float]]:
        pieces, weights, at = [], [], 0
        while at < len(text):
            matches = [
                (found, weight) for one, weight in self.expressions if (found := one.search(text, at)) and found[0]
            ]
            if not matches:
                break
            found, weight = min(matches, key=lambda match: match[0].start())
            pieces += [text[at : found.start()], found[0]]
            weights += [1.0, weight]
            at = found.end()
        return _filled([*pieces, text[at:]], [*weights, 1.0])


def read_patterns(given: str) -> Patterns:
    """Patterns from the path of a JSON file, or from JSON text. Raises UsageError that names the entry."""
    text, source = given, "--loss_scale"
    if not given.lstrip().startswith("{"):
        source = f"--loss_scale {given}"
        if not is_file(given):
            raise UsageError(f"{source}: there is no such file. Pass a JSON file with patterns, or a strategy's name.")
        text = Path(given).expanduser().read_text(encoding="utf-8")
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{source} is no valid JSON: {error.msg} in line {error.lineno}.") from None
    return patterns_of(config, source)


def patterns_of(config: Any, source: str) -> Patterns:
    """Patterns from a mapping: pattern -> one or two numbers, or `response` and `query`, each such a mapping.

    source: what messages begin with. Raises UsageError that names the entry.
    """
    source = source or "loss_scale_config"
    if not isinstance(config, dict):
        raise UsageError(f"{source} must hold a JSON object of patterns (got {type(config).__name__}).")
    asked: dict[str, Any] = {}
    if config and set(config) <= {"response", "query"} and all(isinstance(part, dict) for part in config.values()):
        config, asked = config.get("response", {}), config.get("query", {})
    numbers = {pattern: _numbers(pattern, value, source) for pattern, value in config.items()}
    queries = {phrase: _numbers(phrase, value, source) for phrase, value in asked.items()}
    if wrong := [phrase for phrase, found in queries.items() if len(found) != 1]:
        raise UsageError(f"{source}: {wrong[0]!r} is looked for in what was asked, and takes one number.")
    delimiters = {pattern: (found[0], found[1]) for pattern, found in numbers.items() if len(found) == 2}
    single = {pattern: found[0] for pattern, found in numbers.items() if len(found) == 1}
    if delimiters and single:
        raise UsageError(
            f"{source}: {next(iter(single))!r} has one number and {next(iter(delimiters))!r} two. Patterns are either "
            f"all delimiters (two numbers) or all regular expressions (one number)."
        )
    expressions = tuple((_compiled(pattern, source), weight) for pattern, weight in single.items())
    return Patterns(delimiters, expressions, {phrase: found[0] for phrase, found in queries.items()})


def _numbers(pattern: str, value: Any, source: str) -> list[float]:
    found = value if isinstance(value, list) else [value]
    is_right = len(found) in (1, 2) and all(
        isinstance(one, (int, float)) and not isinstance(one, bool) and 0 <= one < float("inf") for one in found
    )
    if not is_right or not pattern:
        raise UsageError(f"{source}: {pattern!r} must have one or two numbers, none below 0 (got {value!r}).")
    return [float(one) for one in found]


def _compiled(pattern: str, source: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise UsageError(f"{source}: {pattern!r} is no regular expression: {error}.") from None


def _filled(pieces: list[str], weights: list[float]) -> tuple[list[str], list[float]]:
    """Without pieces that are empty."""
    kept = [(piece, weight) for piece, weight in zip(pieces, weights, strict=True) if piece]
    return [piece for piece, _ in kept], [weight for _, weight in kept]
