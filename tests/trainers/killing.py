"""Runs that are killed with SIGKILL at moments nobody chose, and go on by themselves until they have come to their end.

One process imports everything and forks a training for each trial, so that a trial costs what it trains.
`python killing.py FOLDER TRIALS SEED` prints one line of JSON: how many were killed where, and how many ended equal.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import runs
import torch
from transformers.utils.logging import disable_progress_bar

from swift.core.logs import get_logger
from swift.trainers.checkpoints import tidy
from swift.trainers.claims import Claim
from swift.trainers.outputs import Continuation, checkpoints, newest_good

STEPS = 8
LIVES = 4
"""How often a run is killed before it is left alone."""
SETTINGS: dict[str, Any] = {
    "max_steps": STEPS, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2, "val": runs.samples(2, seed=5),
    "eval_strategy": "steps", "eval_steps": 2,
}  # fmt: skip


def train(folder: Path, background: bool) -> None:
    """One life of a run: it goes on from the newest good checkpoint in its own folder, as a command would."""
    with Claim(folder).take():
        tidy(folder)
        begin = newest_good(folder, False, [])
        continuation = Continuation(begin) if begin else None
        run = runs.train(folder, model=runs.lora(0.2), resume=continuation, use_flash_ckpt=background, **SETTINGS)
        torch.save(run.weights(), folder / "weights.tmp")
        (folder / "weights.tmp").rename(folder / "weights.pt")


def forked(work: Callable[[], None]) -> int:
    """The id of a process that does the work and ends."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
            work()
        code = 0
    finally:
        if code:
            traceback.print_exc()
        os._exit(code)


def moment(folder: Path) -> str:
    """What a run was doing when it was killed, by what it left behind."""
    left = sorted(path.name for path in folder.glob(".checkpoint-*"))
    if any(name.endswith(".old") for name in left):
        return "rotating"
    return "saving" if left else "training or evaluating"


def trial(folder: Path, draw: random.Random, lives: int, life: float) -> Counter[str]:
    """Kill one run `lives` times, at moments within `life` seconds, then let it come to its end."""
    moments: Counter[str] = Counter()
    background = draw.random() < 0.5
    folder.mkdir(parents=True)
    for _ in range(lives):
        pid = forked(lambda: train(folder, background))
        time.sleep(draw.uniform(0.1, life))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            assert os.WEXITSTATUS(status) == 0, "a run failed by itself"
            moments["too late"] += 1
            break
        moments[moment(folder)] += 1
    else:
        _, status = os.waitpid(forked(lambda: train(folder, background)), 0)
        assert status == 0, "a run that was killed does not go on"
    return moments


def main() -> None:
    folder, trials, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    disable_progress_bar()
    get_logger().setLevel("ERROR")
    draw = random.Random(seed)
    runs.prepare(folder / "warm", model=runs.lora(), **SETTINGS)  # imports what a first trainer imports
    began = time.monotonic()
    (folder / "whole").mkdir()
    os.waitpid(forked(lambda: train(folder / "whole", False)), 0)
    life = time.monotonic() - began
    whole = torch.load(folder / "whole" / "weights.pt")
    moments: Counter[str] = Counter()
    equal = killed = 0
    began = time.monotonic()
    while killed < trials:
        each = folder / f"trial-{killed}"
        now = trial(each, draw, min(LIVES, trials - killed), life)
        moments += now
        killed += now.total() - now["too late"]
        same = runs.equal(torch.load(each / "weights.pt"), whole)
        equal += same
        kept = [path.name for path in checkpoints(each)]
        assert same, f"{each}: other weights"
        assert len(kept) <= 2, kept
        assert not list(each.glob(".checkpoint-*"))
        shutil.rmtree(each)
    print(json.dumps({"killed": killed, "equal": equal, "moments": moments, "seconds": time.monotonic() - began}))


main()
