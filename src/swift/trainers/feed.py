"""This file knows what a trainer is fed with, and what it saves beside the weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from swift.data.sharding import EpochSampler, LengthGroupedSampler
from swift.data.stream import Stream
from swift.parallel.mesh import Mesh
from swift.trainers.sharing import Evened


@dataclass(frozen=True)
class Dealing:
    """Who is dealt which rows: neighbours in groups of `size` processes are dealt the same ones.

    Such a group cuts each row into parts (`--sequence_parallel_size`) or each matrix (`--deepspeed_autotp_size`).
    """

    rank: int
    processes: int
    size: int

    @property
    def row(self) -> int:
        """Which of the rows that are dealt at a time this process gets."""
        return self.rank // self.size

    @property
    def rows(self) -> int:
        """How many rows are dealt at a time, where each process takes one."""
        return self.processes // self.size

    @property
    def leads(self) -> bool:
        """Whether this process speaks for all that get its rows."""
        return self.rank % self.size == 0


@dataclass(frozen=True)
class Feed:
    """What a trainer is fed with: samples to learn from, samples to evaluate on, and how they become batches.

    train: a set of samples, or a `Stream` of them, which has an order of its own.
    group_by_length: rows of like length come together in a batch; `train.lengths` says how long they are.
    tells_epoch: whether `train` gives other samples in every epoch, which an index tells it.
    mesh: the processes that share each row (`--sequence_parallel_size`); None when each process has rows of its own.
    twins: how many processes compute the same rows with parts of the matrices (`--deepspeed_autotp_size`).
    """

    train: Any
    val: Any | None
    collate: Callable[[Any], dict[str, Any]]
    seed: int
    shuffle: bool = True
    group_by_length: bool = False
    tells_epoch: bool = False
    mesh: Mesh | None = None
    twins: int = 1

    def dealing(self, rank: int, processes: int) -> Dealing:
        """Who is dealt which rows."""
        return Dealing(rank, processes, self.twins if self.mesh is None else self.mesh.shape.size)

    def sampler(self, batch: int) -> EpochSampler:
        """The order of the rows; `batch` of them are computed at the same time on all processes together."""
        if isinstance(self.train, Stream):
            return EpochSampler(0, self.seed)
        if self.group_by_length:
            return LengthGroupedSampler(self.train.lengths, batch, self.seed, tells_epoch=self.tells_epoch)
        return EpochSampler(len(self.train), self.seed, self.shuffle, tells_epoch=self.tells_epoch)


@dataclass(frozen=True)
class Companions:
    """What is saved beside the weights, so that a checkpoint can be used by itself.

    chat_template: the template that rendered the training samples, in place of the tokenizer's own.
    files: copied as they are: args.json, the model's own generation_config.json.
    background: whether checkpoints are written while training goes on (`--use_flash_ckpt`).
    """

    tokenizer: PreTrainedTokenizerBase
    chat_template: str | None
    files: tuple[Path, ...] = ()
    background: bool = False

    def write(self, folder: Path) -> None:
        """Put everything into the folder of a checkpoint."""
        self.tokenizer.save_pretrained(folder)
        if self.chat_template is not None:
            (folder / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")
        for file in self.files:
            shutil.copy2(file, folder)


def to_validate(feed: Feed, batch: int, *, has_benchmarks: bool) -> Any:
    """The rows to validate on, as many for each process where processes share rows.

    transformers refuses to evaluate without any, so benchmarks alone come with an empty set.
    """
    if feed.val is None:
        return [] if has_benchmarks else None
    return feed.val if feed.mesh is None and feed.twins == 1 else Evened(feed.val, batch)
