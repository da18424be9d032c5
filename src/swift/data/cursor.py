"""This file knows how the place of a training in a stream of rows is written down: as references, never as rows."""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from swift.core.errors import RunError

REF_SIZE = 4


class Ref(NamedTuple):
    """Where a row stands: its data set, the file of it, and the place in that file (`records.Place`)."""

    dataset: int
    file: int
    offset: int
    line: int


class Waiting(NamedTuple):
    """A row that has been dealt out and not been tokenized. epoch: the pass it belongs to, from 0."""

    ref: Ref
    epoch: int


class PieceRef(NamedTuple):
    """A sample that has been made and not been trained on: piece number `piece` of what a row gave."""

    ref: Ref
    epoch: int
    piece: int


@dataclass
class Reading:
    """How far the rows have been read.

    epoch: the pass that is read, from 0.
    position: rows given out so far, in all passes; given: in this pass.
    length: rows of the last whole pass, None in the first one.
    random: the state of `random.Random`.
    sets: for each data set the file, offset and line to read on from, and how many rows were taken in this pass.
    ended: the data sets that have run out in this pass; done: whether no more is read in it.
    buffer: the rows among which the next one is drawn, as flat references of `REF_SIZE` numbers each.
    """

    epoch: int
    position: int
    given: int
    length: int | None
    random: tuple[Any, ...]
    sets: list[tuple[int, int, int, int]]
    ended: list[int]
    done: bool
    buffer: array[int]

    def rows(self) -> list[Waiting]:
        """The rows of the buffer."""
        flat = self.buffer
        refs = [Ref(*flat[start : start + REF_SIZE]) for start in range(0, len(flat), REF_SIZE)]
        return [Waiting(ref, self.epoch) for ref in refs]


@dataclass
class LaneState:
    """What one lane holds: rows to tokenize, samples, and packs of samples, each in the order of use."""

    queue: list[Waiting] = field(default_factory=list)
    pieces: list[PieceRef] = field(default_factory=list)
    packs: list[list[PieceRef]] = field(default_factory=list)

    def refs(self) -> list[Ref]:
        """Every row that is needed to fill the lane again."""
        packed = [piece for pack in self.packs for piece in pack]
        return [held.ref for held in (*self.queue, *self.pieces, *packed)]


@dataclass
class Cursor:
    """The place of one process in a stream, after an optimizer step.

    plan: what the stream is made of; only a stream of the same plan can go on from here.
    lanes: the lanes this process fills, by number.
    progress: how many passes are read, as a number that grows steadily.
    finished: how many passes this process has trained on to the last row.
    """

    plan: dict[str, Any]
    reading: Reading
    lanes: dict[int, LaneState]
    progress: float
    finished: int

    def as_json(self) -> dict[str, Any]:
        """The cursor as JSON has words for it."""
        reading = {each.name: getattr(self.reading, each.name) for each in fields(Reading)}
        reading["buffer"] = self.reading.buffer.tolist()
        lanes = {number: [lane.queue, lane.pieces, lane.packs] for number, lane in self.lanes.items()}
        return {
            "plan": self.plan, "reading": reading, "lanes": lanes,
            "progress": self.progress, "finished": self.finished,
        }  # fmt: skip

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Cursor:
        """The cursor that `as_json` wrote."""
        reading = dict(values["reading"])
        version, numbers, gauss = reading["random"]
        reading["random"] = (version, tuple(numbers), gauss)
        reading["sets"] = [tuple(each) for each in reading["sets"]]
        reading["buffer"] = array("q", reading["buffer"])
        lanes = {
            int(number): LaneState(
                [Waiting(Ref(*ref), epoch) for ref, epoch in queue],
                [_piece(piece) for piece in pieces],
                [[_piece(piece) for piece in pack] for pack in packs],
            )
            for number, (queue, pieces, packs) in values["lanes"].items()
        }
        return cls(values["plan"], Reading(**reading), lanes, values["progress"], values["finished"])


def _piece(values: tuple[Any, ...]) -> PieceRef:
    ref, epoch, number = values
    return PieceRef(Ref(*ref), epoch, number)


@dataclass
class Resumption:
    """Where a process begins: how far the rows have been read, and what its lanes held.

    dealt: for each lane, the position up to which the rows were dealt out when its state was written.
    """

    reading: Reading
    lanes: dict[int, LaneState]
    dealt: dict[int, int]


def resumption(cursors: list[Cursor], plan: Mapping[str, Any], lanes: list[int]) -> Resumption:
    """What the cursors of all processes of an earlier run mean for a process that fills `lanes`.

    The processes need not be as many as they were: a lane is taken from whoever filled it, and the rows are read on
    from the place of the one that had read least. Raises RunError when the stream is another one.
    """
    held = {number: cursor for cursor in cursors for number in cursor.lanes}
    for cursor in cursors[:1]:
        changed = [name for name, value in plan.items() if cursor.plan.get(name) != value]
        if changed:
            was = ", ".join(f"{name} was {cursor.plan.get(name)!r} and is {plan[name]!r}" for name in changed)
            raise RunError(f"--resume_from_checkpoint: the place in the stream means nothing any more, because {was}.")
    missing = [number for number in lanes if number not in held]
    if missing:
        raise RunError(
            "--resume_from_checkpoint: the checkpoint does not say where in the stream the training was: it lacks the "
            "files stream*.json of some processes. Copy them from the nodes that wrote them."
        )
    used = [held[number] for number in lanes]
    first = min(used, key=lambda cursor: cursor.reading.position)
    return Resumption(
        first.reading,
        {number: held[number].lanes[number] for number in lanes},
        {number: held[number].reading.position for number in lanes},
    )


def cursor_file(folder: Path, rank: int, processes: int) -> Path:
    """Where a process keeps its place: stream.json, or stream_<rank>.json where there are several."""
    return folder / ("stream.json" if processes == 1 else f"stream_{rank}.json")


def cursor_files(folder: Path) -> list[Path]:
    """The places that a checkpoint holds, by rank; none when its run read no stream."""
    return sorted(folder.glob("stream*.json"), key=lambda file: (len(file.name), file.name))


def read_cursors(folder: Path) -> list[dict[str, Any]]:
    """What the processes of an earlier run wrote into a checkpoint, by rank. Raises RunError when there is nothing."""
    files = cursor_files(folder)
    if not files:
        raise RunError(
            f"--resume_from_checkpoint {folder} has no stream.json: it was saved by a run without --streaming, or by one "
            "that ended while it was saving. Go on without --streaming, or from an earlier checkpoint."
        )
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]
