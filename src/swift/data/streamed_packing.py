"""This file knows how samples that are still coming are packed: a window of them at a time, the emptiest packs waiting."""

from __future__ import annotations

import math
from collections.abc import Sequence

from swift.core.errors import UsageError
from swift.data.packing import pack

PACKS_PER_WINDOW = 16
"""How many packs' worth of tokens are looked at together. More fills packs little better and makes a start slower."""
WAITING = 0.25
"""The share of the packs, the emptiest ones, that is taken apart again to meet the samples of the next window."""


def fills_window(lengths: Sequence[int], capacity: int) -> bool:
    """Whether these lengths are enough to be packed."""
    return sum(lengths) >= PACKS_PER_WINDOW * capacity


def pack_window(lengths: Sequence[int], capacity: int) -> tuple[list[list[int]], list[int]]:
    """The positions of `lengths` in packs, and those that wait for more to come: the samples of the emptiest packs.

    The first position never waits, so that none waits for ever.
    """
    first, *others = pack(lengths, capacity)
    others.sort(key=lambda rows: sum(lengths[row] for row in rows))
    count = min(math.ceil(WAITING * (len(others) + 1)), len(others))
    waiting = sorted(row for rows in others[:count] for row in rows)
    return sorted([first, *others[count:]]), waiting


def check_capacity(packing_length: int, max_length: int | None) -> None:
    """Raise UsageError unless every row that may come fits into a pack; a stream cannot be looked through first."""
    if max_length is None or max_length > packing_length:
        raise UsageError(
            f"--packing_length {packing_length} is shorter than rows of a stream may be (--max_length {max_length}). "
            f"Rows are packed whole: raise --packing_length, or set --max_length {packing_length}."
        )
