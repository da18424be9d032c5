"""A process that has imported everything, and forks runs of `swift` in one process or several.

What takes long is importing torch, transformers and DeepSpeed; here it is done once for all runs of a test file.

As a program it reads requests from standard input, a JSON object each, and answers with the exit codes of the processes.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ENVIRONMENT = {
    **os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu",
    "GENERATIVE_RERANKER_POSITIVE_TOKEN": "a", "GENERATIVE_RERANKER_NEGATIVE_TOKEN": "b",  # no word of the tiny tokenizer
    "PYTHONPATH": os.pathsep.join([str(HERE.parents[1] / "src"), str(HERE.parent), str(HERE)]),
}  # fmt: skip
PATIENCE = 10.0
"""Seconds that the other processes of a run have after one has failed."""


@dataclass(frozen=True)
class Finished:
    """How a run ended: the exit codes of its processes, and all that they have written."""

    codes: list[int]
    output: str

    @property
    def is_good(self) -> bool:
        """Whether every process ended well."""
        return not any(self.codes)


class Runs:
    """The process that forks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
        )

    def run(self, words: list[str], processes: int, *, allow_fsdp: bool = True) -> Finished:
        """Run `swift` with these words in so many processes. allow_fsdp: on a CPU, where accelerate has none."""
        self.count += 1
        file = self.folder / f"output-{self.count}.txt"
        asked = {"words": words, "processes": processes, "allow_fsdp": allow_fsdp, "output": str(file)}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return Finished(json.loads(self._process.stdout.readline()), file.read_text())

    def close(self) -> None:
        """End it, which it does when nothing more can be asked."""
        with self._process:
            pass


def serve() -> None:
    """Answer requests until there are no more."""
    names = ("swift.commands.sft", "fsdp_on_cpu", *(["deepspeed"] if importlib.util.find_spec("deepspeed") else []))
    for name in names:
        importlib.import_module(name)
    for line in sys.stdin:
        asked = json.loads(line)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        forked = [_forked(asked, rank, port) for rank in range(asked["processes"])]
        print(json.dumps(_codes(forked)), flush=True)


def _forked(asked: dict, rank: int, port: int) -> int:
    child = os.fork()
    if child:
        return child
    output = os.open(asked["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    from fsdp_on_cpu import allow

    from swift import launch
    from swift.cli import main

    launch.take_place(rank, asked["processes"], port)
    if asked["allow_fsdp"]:
        allow()
    code = 1
    try:
        code = main(asked["words"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _codes(processes: list[int]) -> list[int]:
    """The exit codes. When one has failed, the others may wait for it for ever, and are ended after a while."""
    codes: dict[int, int] = {}
    end = float("inf")
    while len(codes) < len(processes):
        for process in processes:
            if process in codes:
                continue
            found, status = os.waitpid(process, os.WNOHANG)
            if found:
                codes[process] = os.waitstatus_to_exitcode(status)
                end = min(end, time.monotonic() + PATIENCE) if codes[process] else end
            elif time.monotonic() > end:
                os.kill(process, signal.SIGKILL)
        time.sleep(0.02)
    return [codes[process] for process in processes]


if __name__ == "__main__":
    serve()
