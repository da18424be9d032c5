"""This file knows how `--adapters` names adapters: a folder or id, or `name=folder` for one that requests ask for."""

from __future__ import annotations

from collections.abc import Sequence

from swift.core.paths import exists


def split_name(text: str) -> tuple[str | None, str]:
    """The name of an adapter, if it has one, and its folder or id. A path that holds a `=` itself is no name."""
    name, equals, folder = text.partition("=")
    if not equals or "/" in name or not name or exists(text):
        return None, text
    return name, folder


def unnamed(texts: Sequence[str]) -> list[str]:
    """The folders or ids of adapters, without their names."""
    return [split_name(text)[1] for text in texts]
