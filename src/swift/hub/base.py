"""This file knows how the name of a model becomes a folder on this machine."""

from __future__ import annotations

import re
from pathlib import Path

from swift.core.errors import ModelError

_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
"""What a hub accepts as the id of a model: `owner/name`, or a bare name."""


def local_folder(name: str, option: str) -> Path:
    """The absolute folder that `name` means; `option` is the flag it was given with, for messages.

    Raises ModelError when there is no such folder: for an id of a hub, for a path that does not exist, for a file.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.exists():
        raise ModelError(f"{option} {name} is a file; pass the folder it lies in: {option} {path.resolve().parent}")
    if _ID.fullmatch(name) and not name.startswith("."):
        raise ModelError(
            f"{option} {name} is no folder on this machine, and not available yet: models from a hub. "
            f"Download the checkpoint and pass its local folder."
        )
    raise ModelError(f"{option} {name}: there is no such folder. {_what_is_there(path)}")


def _what_is_there(path: Path) -> str:
    """The last part of the path that exists, and what lies in it, so that a slip of the pen is seen at once."""
    parent = path.absolute().parent
    while not parent.is_dir():
        parent = parent.parent
    found = sorted(child.name for child in parent.iterdir() if child.is_dir() and not child.name.startswith("."))
    if not found:
        return f"{parent} exists and holds no folders."
    more = f" and {len(found) - 8} more" if len(found) > 8 else ""
    return f"{parent} exists and holds: {', '.join(found[:8])}{more}."
