"""This file knows how losses are told apart by the channel of their rows (`--enable_channel_loss`).

Axes: S sequences of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from swift.core.logs import get_logger
from swift.trainers.processes import gathered

COLUMN = "channel"
"""The column of the rows, and the name under which a batch has a list of S channels, None where a row has none."""


class Channels:
    """Numbers the channels of this process in the order in which they come, and says once that rows have none.

    A number means nothing to other processes, so what is gathered from all of them has the process beside it.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self._numbers: dict[str, int] = {}
        self._warned = False

    def marks(self, channels: Sequence[str | None], like: Tensor) -> Tensor:
        """The number of the channel of each sequence, and this process, [S, 2], of the type of `like`."""
        numbers = [self._numbers.setdefault(name, len(self._numbers)) for name in self.names(channels)]
        return torch.tensor([[number, self.rank] for number in numbers], dtype=like.dtype, device=like.device)

    def names(self, channels: Sequence[str | None]) -> list[str]:
        """The names under which losses are logged; rows without a channel are `None` together."""
        if None in channels and not self._warned:
            self._warned = True
            get_logger().warning(
                "--enable_channel_loss: some rows have no column %r; their loss is logged as loss_None", COLUMN
            )
        return [str(channel) for channel in channels]

    def of_marks(self, marks_S2: Tensor) -> list[str]:
        """The channels that marks of all processes stand for; every process has to ask."""
        names = [list(numbers) for numbers in gathered(self._numbers)]
        return [names[int(rank)][int(number)] for number, rank in marks_S2.tolist()]


def by_channel(names: Sequence[str], loss_S: Tensor, tokens_S: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The key `loss_<channel>` of each channel, the sum of its losses, and its learnt tokens."""
    for name in sorted(set(names)):
        here = torch.tensor([other == name for other in names], device=loss_S.device)
        yield f"loss_{name}", loss_S[here].sum(), tokens_S[here].sum()
