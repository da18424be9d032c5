"""This file knows how the trainings of a proof are run: each in new processes, with nothing left over from another.

A server that has imported everything and done nothing forks them, so that none of them waits for imports and none sees
a plugin that another has loaded.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swift import launch
from swift.commands import sft
from swift.core.errors import RunError, SwiftError, UsageError
from swift.core.ports import some_free_port
from swift.options.commands import Sft
from swift.proofs.equivalence import Record
from swift.proofs.trace import NOTHING, Tracer, Wish

RUNS: Mapping[str, Callable[..., Any]] = {"sft": sft.run, "pt": sft.run}
"""Command -> what trains it, with watchers that look on."""
REFUSED = 2
LINES = 4
"""Lines of the log of a failed training that are told."""


class TrainingError(RunError):
    """A training of a proof ended with an error; the message is its own."""


class RefusalError(UsageError):
    """A training of a proof cannot be run with these options; the message is its own."""


@dataclass(frozen=True)
class Order:
    """One training: the command as it runs, and what its tracer is to do besides."""

    command: Sft
    folder: Path
    wish: Wish = NOTHING


class Trainings:
    """Runs trainings into a folder. Closing ends what still runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._processes: list[Any] = []
        self._count = 0
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["swift.commands.trainings"])

    def run(self, name: str, command: Sft, processes: int = 1, wish: Wish = NOTHING) -> Record:
        """Train, and give what was written down of it.

        Raises RefusalError where the options are refused, and TrainingError for every other end.
        """
        self._count += 1
        folder = self.folder / f"{self._count}-{re.sub(r'[^a-z0-9]+', '-', name)}"
        folder.mkdir()
        order = Order(command.replace({"output_dir": str(folder / "run")}, {}), folder, wish)
        port = some_free_port()
        for rank in range(processes):
            self._start(carry_out, order, rank, processes, port)
        for process in self._processes:
            process.join()
        codes = [process.exitcode for process in self._processes]
        self._processes = []
        if any(codes):
            said = _last_words(folder)
            raise RefusalError(said) if REFUSED in codes else TrainingError(said)
        return Record(folder)

    def apply(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call a function in a new process, which has nothing of a training in its memory. Raises TrainingError."""
        self._start(_called, self.folder, function, arguments)
        [process] = self._processes
        process.join()
        self._processes = []
        if process.exitcode:
            raise TrainingError(_last_words(self.folder))

    def _start(self, target: Callable[..., None], *arguments: Any) -> None:
        process = self._context.Process(target=target, args=arguments)
        try:
            process.start()
        except (EOFError, ConnectionError) as error:
            raise RunError(
                "The process that starts trainings was ended from outside. Start the proof again."
            ) from error
        self._processes.append(process)

    def __enter__(self) -> Trainings:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
            process.join()


def carry_out(order: Order, rank: int, count: int, port: int) -> None:
    """One process of a training; its last words go to a file, and its exit code says how it ended."""
    launch.take_place(rank, count, port)
    if order.command.training.deepspeed or order.command.training.fsdp:
        launch.stand_alone()
    tracer = Tracer(order.folder, order.wish)
    _told(order.folder / f"log-{rank}", lambda: RUNS[order.command.name](order.command, [tracer]))


def _called(folder: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    launch.take_place(0, 1, 0)
    _told(folder / "log-0", lambda: function(*arguments))


def _told(log: Path, run: Callable[[], Any]) -> None:
    """Run with all that is printed in a file; what fails is told in another and is the exit code."""
    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        run()
    except SwiftError as error:
        log.with_suffix(".error").write_text(str(error), encoding="utf-8")
        sys.exit(error.exit_code)
    except Exception as error:  # noqa: BLE001 (the boundary of this process: whatever it is belongs to the finding)
        traceback.print_exc()
        log.with_suffix(".error").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        sys.exit(1)


def _last_words(folder: Path) -> str:
    """What the processes of a training said of their failure; else the end of the log of the first."""
    errors = sorted(folder.glob("log-*.error"))
    if errors:
        return errors[0].read_text(encoding="utf-8")
    log = folder / "log-0"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    return " / ".join(lines[-LINES:]) or "it ended without a word"
