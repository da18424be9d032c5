"""This file knows how Swiftlet fails: one root, and one kind for each place where the cause can lie.

    SwiftError
    +-- UsageError          the command line or a configuration file
    +-- DataError           rows, datasets, conversations
    +-- ModelError          checkpoints, configurations, weights, adapters
    +-- RunError            a run that had begun: training, output folders, resuming
    +-- EngineError         generation and servers
    +-- MissingPackage      an optional package that is not installed

A message says what is wrong, what was found and what to do. Every kind pickles, so that worker processes can raise it.
"""

from __future__ import annotations


class SwiftError(Exception):
    """Something a user can act on: printed as one message, never as a traceback."""

    exit_code = 1


class UsageError(SwiftError):
    """The command line or a configuration file is wrong; carries every mistake found, not the first only."""

    exit_code = 2

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(self.problems)


class DataError(SwiftError, ValueError):
    """A row, a dataset or a conversation cannot be used."""


class ModelError(SwiftError, ValueError):
    """A checkpoint cannot be read, or does not fit what is asked of it."""


class RunError(SwiftError, RuntimeError):
    """A run that had begun cannot go on: its folder, its checkpoint, its machine."""


class EngineError(SwiftError, RuntimeError):
    """Generation failed or an engine refuses what it was given."""


class MissingPackage(SwiftError, ImportError):  # noqa: N818 (says what it is)
    """An optional package is needed and absent; the message is the install line."""
