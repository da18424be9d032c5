"""This file knows how the examiner is started and heard: its questions become conversations, its scores get their names."""

from __future__ import annotations

import json
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from swift.chat.messages import Conversation, Message
from swift.core import environment
from swift.core.errors import RunError, UsageError
from swift.core.extras import need_installed
from swift.core.logs import get_logger
from swift.core.registry import did_you_mean
from swift.engines.base import Sampling
from swift.trainers.benchmarks import PREFIX, Answer, Marks, Question

MODULE = "swift.evaluate.examiner"
WHY = "--eval_use_evalscope true"
LOG = "examiner.log"
"""What the examiner prints, beside what EvalScope itself writes."""
PAUSE = 0.05
"""Seconds without a question after which those that have come are answered."""
FAREWELL = 5.0
"""Seconds that an examiner which has said everything has to end."""


@dataclass(frozen=True)
class Task:
    """Benchmarks to run at each evaluation.

    settings: of EvalScope, by benchmark. limit: most questions of each part of a benchmark. generation: how the model
    answers, in EvalScope's words. at_once: questions that may be open. hub: where EvalScope loads rows from.
    """

    benchmarks: tuple[str, ...]
    model: str
    at_once: int
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    limit: int | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    hub: str = "modelscope"


class Examination:
    """An examiner at work on a task, its results in `folder`. Used as a context, at whose end it is no more.

    marks: what has come of the task so far.
    """

    def __init__(self, task: Task, folder: Path) -> None:
        self.marks = Marks()
        self._task = task
        self._log = folder / LOG
        self._heard: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._has_ended = False
        folder.mkdir(parents=True, exist_ok=True)
        with self._log.open("w", encoding="utf-8") as log:
            self.process = _start(log)
        self._reader = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Examination:
        self._reader.start()
        self._say({**asdict(self._task), "folder": str(self._log.parent)})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._has_ended:
            self.process.kill()
        _end(self.process)
        self._reader.join()
        assert self.process.stdout is not None, "it was opened as a pipe"
        self.process.stdout.close()

    def questions(self, patience: float) -> list[Question] | None:
        """What is asked now, [] when nothing was for `patience` seconds; None when the task is done or cannot go on."""
        asked: list[Question] = []
        while not self._has_ended and len(asked) < self._task.at_once:
            try:
                message = self._heard.get(timeout=PAUSE if asked else patience)
            except queue.Empty:
                break
            if message is None:
                self._has_ended = True
            elif "number" in message:
                asked.append(_question(message, self._task.seed))
            else:
                self._mark(message)
        if asked or not self._has_ended:
            return asked
        self._explain()
        return None

    def answer(self, answers: Mapping[int, Answer]) -> None:
        """Give the answers to questions, by number."""
        for number, answer in answers.items():
            self._say({"number": number, **asdict(answer)})

    def _say(self, message: Mapping[str, Any]) -> None:
        assert self.process.stdin is not None, "it was opened as a pipe"
        try:
            self.process.stdin.write(json.dumps(message, ensure_ascii=False) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            get_logger().debug("the examiner has ended before it was answered")  # `questions` says why

    def _read(self) -> None:
        assert self.process.stdout is not None, "it was opened as a pipe"
        for line in self.process.stdout:
            self._heard.put(json.loads(line))
        self._heard.put(None)

    def _mark(self, message: Mapping[str, Any]) -> None:
        name = message["benchmark"]
        if "failure" in message:
            self.marks.failures[name] = f"{message['failure']} ({self._log})"
        else:
            scores: dict[str, float] = message["scores"]
            self.marks.scores |= {_named(name, metric): score for metric, score in scores.items()}

    def _explain(self) -> None:
        """Say of the benchmarks that came to nothing that the examiner has ended."""
        marked = {*self.marks.failures, *(name.removeprefix(PREFIX) for name in self.marks.scores)}
        lost = [name for name in self._task.benchmarks if name not in marked]
        if lost:
            said = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it said nothing"]
            why = f"the examiner ended with exit code {self.process.wait()}: {said[-1]} ({self._log})"
            self.marks.failures |= dict.fromkeys(lost, why)


def check_benchmarks(names: Sequence[str]) -> None:
    """Raise MissingPackage without EvalScope, UsageError for names that it has no benchmark of."""
    need_installed("evalscope", WHY)
    with _start(subprocess.DEVNULL) as process:
        said, _ = process.communicate(json.dumps({"benchmarks": list(names), "only_names": True}) + "\n")
    if process.returncode:
        raise RunError(f"{WHY}: EvalScope does not start here. What it says:  {sys.executable} -c 'import evalscope'")
    unknown: dict[str, list[str]] = json.loads(said)["unknown"]
    if unknown:
        raise UsageError(*(
            f"--eval_dataset {name}: EvalScope has no such benchmark." + did_you_mean(name, nearest)
            for name, nearest in unknown.items()
        ))  # fmt: skip


def _named(benchmark: str, metric: str) -> str:
    """The name of a score: that of its benchmark, and of the metric where there are several, in letters and digits."""
    return PREFIX + "_".join([benchmark, *re.findall(r"\w+", metric)])


def _start(log: Any) -> subprocess.Popen[str]:
    """An examiner that waits for its task, in a session of its own: a Ctrl-C is not for it, it ends with its pipes."""
    return subprocess.Popen(
        [sys.executable, "-m", MODULE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, encoding="utf-8",
        start_new_session=True, env=environment.inherited(CUDA_VISIBLE_DEVICES="", PYTHONUNBUFFERED="1"),
    )  # fmt: skip


def _end(process: subprocess.Popen[str]) -> None:
    """Wait for the end of an examiner, which a kill brings about where it does not come."""
    assert process.stdin is not None, "it was opened as a pipe"
    try:
        process.stdin.close()
    except BrokenPipeError:
        get_logger().debug("the examiner has ended without reading all it was told")
    try:
        process.wait(FAREWELL)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _question(message: Mapping[str, Any], seed: int) -> Question:
    said = tuple(Message(row["role"], row["content"]) for row in message["messages"])
    return Question(
        message["number"], Conversation(said, tuple(message["tools"])), _sampling(message["sampling"], seed)
    )


def _sampling(settings: Mapping[str, Any], seed: int) -> Sampling:
    """The settings of a question; greedy, unless something else is asked for."""
    is_greedy = settings.get("do_sample") is False
    drawn = None if settings.get("do_sample") else 0.0
    return Sampling(
        max_new_tokens=settings.get("max_tokens"), temperature=0.0 if is_greedy else settings.get("temperature", drawn),
        top_k=settings.get("top_k"), top_p=settings.get("top_p"),
        repetition_penalty=settings.get("repetition_penalty"),
        presence_penalty=settings.get("presence_penalty", 0.0), frequency_penalty=settings.get("frequency_penalty", 0.0),
        num_beams=settings.get("num_beams", 1),
        stop=tuple(settings.get("stop_seqs", ())), seed=settings.get("seed", seed),
    )  # fmt: skip
