"""This file knows how one process becomes several: it re-executes the command under torchrun when the environment asks.

It runs after parsing, so that eight processes do not report one mistake eight times, and before anything heavy is
imported. It is the only file that writes the environment.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from swift.core import environment
from swift.core.logs import get_logger
from swift.core.ports import some_free_port

DISTRIBUTED = ("pt", "sft", "rlhf", "infer")
"""The commands that run in several processes."""
_SET_SIGNAL_OF_PARENTS_DEATH = 1
"""PR_SET_PDEATHSIG of linux/prctl.h."""


def settle_threads() -> None:
    """Let idle threads of OpenMP sleep instead of spin, and let the tokenizer start none of its own.

    Spinning threads take the cores from whoever works: beside one other busy process a training step on two cores
    was seen to take ten times as long. How many cores prepare rows is for `--dataset_num_proc` to say. Whatever the
    user has set stays, but not in forked processes: they have none of the threads that a tokenizer would wait for.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.register_at_fork(after_in_child=_without_tokenizer_threads)
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    os.environ.setdefault("KMP_BLOCKTIME", "0")


def _without_tokenizer_threads() -> None:
    os.environ.update(TOKENIZERS_PARALLELISM="false")


def settle_engines() -> None:
    """Let SGLang tell the log-probabilities of the model itself, which its processes learn from the environment."""
    os.environ.setdefault(environment.SGLANG_RETURN_ORIGINAL_LOGPROB.name, "1")


def export_knobs(knobs: Mapping[str, Any]) -> None:
    """Set the environment variables of `--model_kwargs`, each the name of a knob in capitals.

    That is where the code of models reads them, some of it while it is imported, and where other processes inherit
    them from. What stood there before is replaced: the command line goes before the environment.
    """
    os.environ.update({name.upper(): environment.knob_text(value) for name, value in knobs.items()})


def relaunch(command: str, argv: Sequence[str]) -> None:
    """Replace this process by torchrun when NPROC_PER_NODE or NNODES is set and the command can use it.

    Returns when there is nothing to do: another command, neither variable set, or already a process of torchrun.
    """
    asked = environment.NPROC_PER_NODE.is_set() or environment.NNODES.is_set()
    if command not in DISTRIBUTED or not asked or environment.TORCHELASTIC_RUN_ID.is_set():
        return
    # Within half a minute of a failure nothing of the run is left, whatever the other processes wait for.
    grace = environment.TORCH_ELASTIC_SHUTDOWN_TIMEOUT
    os.environ.setdefault(grace.name, grace.get() or "")
    line = [sys.executable, "-m", "torch.distributed.run", *torchrun_options(), "-m", "swift", command, *argv]
    get_logger().info("starting %s", " ".join(line[1:]))
    os.execv(sys.executable, line)


def end_with_launcher() -> None:
    """Let a process of torchrun be told to stop (SIGTERM) when torchrun is killed, instead of going on for nobody."""
    if environment.TORCHELASTIC_RUN_ID.is_set() and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_SIGNAL_OF_PARENTS_DEATH, signal.SIGTERM)


def stand_alone() -> None:
    """Give a single process the environment of torchrun, where there is none: DeepSpeed and FSDP need a group.

    The group is joined by nobody else, so any free port will do.
    """
    if environment.WORLD_SIZE.is_set():
        return
    os.environ.update(
        RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1",
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(some_free_port()),
    )  # fmt: skip


def leave(code: int) -> int:
    """End a process of torchrun at once with this exit code; any other process only gets the code back.

    At the end of the interpreter, C++ threads of a gloo group are now and then destroyed while they run ("terminate
    called without an active exception"), which makes torchrun report a run as failed that has done all its work. So
    what Python does at its end is done here, and the rest is left out.
    """
    if not environment.TORCHELASTIC_RUN_ID.is_set():
        return code
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def take_place(rank: int, count: int, port: int) -> None:
    """Make this process the `rank`-th of `count` on this machine, which meet at a port; alone where `count` is 1.

    For processes that were started without torchrun, before they import or ask anything that looks at their place.
    """
    for variable in (environment.NPROC_PER_NODE, environment.NNODES, environment.NODE_RANK):
        os.environ.pop(variable.name, None)
    places = {
        environment.RANK: rank, environment.LOCAL_RANK: rank, environment.WORLD_SIZE: count,
        environment.LOCAL_WORLD_SIZE: count, environment.MASTER_ADDR: "127.0.0.1", environment.MASTER_PORT: port,
    }  # fmt: skip
    for variable, value in places.items():
        if count > 1:
            os.environ.update({variable.name: str(value)})
        else:
            os.environ.pop(variable.name, None)


def torchrun_options() -> list[str]:
    """The options of torchrun, from the environment.

    The port is MASTER_PORT, or 29500. On a single node nobody else has to know it, so with no port asked for it is any
    free one: two runs that begin at the same moment would both find 29500 free.
    """
    options = [f"--nproc_per_node={environment.NPROC_PER_NODE.get()}"]
    for name, variable in (
        ("nnodes", environment.NNODES),
        ("node_rank", environment.NODE_RANK),
        ("master_addr", environment.MASTER_ADDR),
    ):
        if variable.is_set():
            options.append(f"--{name}={variable.get()}")
    port = environment.MASTER_PORT.integer() or 0
    if not environment.MASTER_PORT.is_set() and (environment.NNODES.integer() or 1) == 1:
        port = some_free_port()
    return [*options, f"--master_port={port}"]
