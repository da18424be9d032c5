"""This file knows how a name becomes an object: tables that load their entries on first use."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import Generic, TypeVar

from swift.core.errors import UsageError

T = TypeVar("T")


def nearest(name: str, known: Mapping[str, object] | list[str], count: int = 1) -> list[str]:
    """The known names most like `name`, best first; [] when nothing is close."""
    return get_close_matches(name, list(known), n=count, cutoff=0.6)


def did_you_mean(name: str, known: Mapping[str, object] | list[str]) -> str:
    """The question to put behind a sentence about an unknown name, with a blank before it; "" when nothing is close."""
    near = nearest(name, known)
    return f" Did you mean {near[0]}?" if near else ""


class Registry(Mapping[str, T], Generic[T]):
    """A table of names for one kind of thing.

    A value is the object itself or its address "package.module:attribute", imported when first asked for, so that
    the names are known (for choices and help) without importing what they stand for.
    """

    def __init__(self, kind: str, entries: Mapping[str, T | str] | None = None) -> None:
        self.kind = kind
        self._entries: dict[str, T | str] = dict(entries or {})

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            guess = did_you_mean(name, self._entries)
            raise UsageError(f"Unknown {self.kind} {name!r}.{guess} There are: {', '.join(sorted(self._entries))}.")
        value = self._entries[name]
        if isinstance(value, str):
            module, _, attribute = value.partition(":")
            value = getattr(importlib.import_module(module), attribute)
            self._entries[name] = value
        return value  # type: ignore[return-value]  # a string address has just been resolved

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __setitem__(self, name: str, value: T) -> None:
        self.add(name, value)

    def add(self, name: str, value: T | None = None, *, replace: bool = False) -> Callable[[T], T]:
        """Register `value`, or what this decorates, under `name`. A name can be taken once, unless it may `replace`."""
        if name in self._entries and not replace:
            raise UsageError(f"{self.kind} {name!r} is registered already; choose another name.")

        def register(thing: T) -> T:
            self._entries[name] = thing
            return thing

        if value is not None:
            register(value)
        return register
