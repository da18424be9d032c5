"""This file knows what the tensors behind growing rows can be asked for, whatever memory a model has.

Axes: A rows that grow, R rows that begin, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from swift.engines.rows import Row


class Reading(Protocol):
    """Prompts that are being read; rows of one prompt stand together."""

    @property
    def rows(self) -> Sequence[Row]:
        """Those that will begin, in the order of the logits."""
        ...

    def advance(self, tokens: int) -> Tensor | None:
        """Read about this many tokens more; [R, V] the logits of the first tokens when all is read."""
        ...

    def enter(self, rows: Sequence[Row]) -> None:
        """Let rows that have their first token grow with the others."""
        ...


class Runner(Protocol):
    """The tensors behind rows that grow."""

    @property
    def joins(self) -> bool:
        """Whether rows may enter while others grow."""
        ...

    @property
    def mixes(self) -> bool:
        """Whether rows of different adapters may grow together."""
        ...

    @property
    def rows(self) -> Sequence[Row]:
        """Those that grow."""
        ...

    def unread(self, row: Row) -> tuple[int, bytes | None]:
        """How many tokens of a prompt have to be read, and a name for the first of them that others may share."""
        ...

    def read(self, requests: Sequence[Sequence[Row]]) -> Reading:
        """Begin to read prompts; the rows of a request share theirs."""
        ...

    def step(self) -> tuple[list[Row], Tensor]:
        """All rows that grow, and the logits [A, V] of their next tokens."""
        ...

    def leave(self, row: Row) -> None:
        """A row grows no more."""
        ...

    def reset(self) -> None:
        """Forget all rows."""
        ...
