"""This file knows what is at a path that somebody typed, which may be any text; `~` is a home folder.

A text that can be no path names nothing: one that is too long, one with a NUL, one that begins with the name of an
unknown user.
"""

from __future__ import annotations

from pathlib import Path


def exists(text: str) -> bool:
    """Whether there is a file or a folder."""
    try:
        return bool(text) and Path(text).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False


def is_file(text: str) -> bool:
    """Whether there is a file."""
    try:
        return Path(text).expanduser().is_file()
    except (OSError, RuntimeError, ValueError):
        return False


def is_dir(text: str) -> bool:
    """Whether there is a folder."""
    try:
        return Path(text).expanduser().is_dir()
    except (OSError, RuntimeError, ValueError):
        return False


def unknown_home(text: str) -> str | None:
    """The `~` or `~name` that a path begins with where it is nobody's home folder; None when there is nothing wrong."""
    if not text.startswith("~"):
        return None
    try:
        Path(text).expanduser()
    except RuntimeError:
        return text.partition("/")[0]
    return None


def why_unusable(text: str) -> str | None:
    """What the system says of a text that it cannot even look up, such as `File name too long`; None when it can.

    That nothing is there yet, or that a folder above it is a file, is no fault of the text.
    """
    try:
        Path(text).expanduser().lstat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    except OSError as error:
        return error.strerror or str(error)
    except (RuntimeError, ValueError) as error:
        return str(error)
    return None
