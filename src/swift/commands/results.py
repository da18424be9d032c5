"""This file knows a file of results: where it is, what a row of it says, and that no row is lost."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from swift.chat.messages import Conversation, Message
from swift.core.errors import RunError, UsageError
from swift.core.logs import get_logger
from swift.data.formats import as_row
from swift.engines.base import Completion
from swift.engines.responses import openai_logprobs


@dataclass(frozen=True)
class Question:
    """A row to answer: its number from 1, what was said before the reply, and the reply that was expected.

    calls: the messages of that reply, where it ends with calls of tools; how it reads is for a template to say.
    """

    number: int
    conversation: Conversation
    labels: str | None
    calls: tuple[Message, ...] = ()


def result_path(asked_for: str | None, checkpoint: Path | None, model: str, kind: str = "infer_result") -> Path:
    """Where results go: `--result_path`, else a new file in the checkpoint, else in ./result, under the model's name.

    checkpoint: the folder that was trained here (it has an args.json), if there is one. kind: the folder within.
    """
    if asked_for is not None:
        return Path(asked_for).expanduser().resolve()
    home = checkpoint if checkpoint is not None else Path("result") / model
    return (home / kind / f"{datetime.now():%Y%m%d-%H%M%S}.jsonl").resolve()


def result_row(question: Question, completion: Completion) -> dict[str, Any]:
    """The reply, what was expected, and the row with the reply behind its messages.

    Columns of the row that are called like one of the four results give way to it.
    """
    row = as_row(question.conversation)
    reply = Message("assistant", completion.text).as_dict()
    logprobs = None if completion.logprobs is None else openai_logprobs(completion.logprobs)
    results = {"response": completion.text, "labels": question.labels, "logprobs": logprobs}
    results["messages"] = [*row["messages"], reply]
    return {**results, **{name: value for name, value in row.items() if name not in results}}


def written_before(path: Path, asked: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """The results that a file holds of these rows, given by their messages, of which it must hold the first ones.

    A last line that was not written to its end, when the process was killed, is taken off. Raises UsageError where the
    file holds results of other rows.
    """
    if not path.exists():
        return []
    written = path.read_bytes()
    whole = written[: written.rfind(b"\n") + 1]
    if len(whole) < len(written):
        get_logger().info("%s: the last line is not complete and is written again", path)
        with path.open("r+b") as file:
            file.truncate(len(whole))
    found: list[dict[str, Any]] = []
    for number, line in enumerate(whole.splitlines(), 1):
        row = _read_row(line)
        expected = json.loads(json.dumps(asked[number - 1 : number], default=str))  # as a file has them
        if row is None or not expected or row["messages"][: len(expected[0])] != expected[0]:
            raise UsageError(
                f"--resume true: line {number} of --result_path {path} is not the result of row {number} of these data "
                "sets. Give the data sets and options of the run that wrote it, or another --result_path."
            )
        found.append(row)
    return found


def _read_row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and {"response", "labels", "messages"} <= row.keys() else None


class Results:
    """A file of results that grows: rows are added to what is there, and are on disk when `write` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise RunError(f"--result_path {path} cannot be written: {error.strerror}.") from None

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows, one line each."""
        for row in rows:
            self._file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
        self._file.flush()

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
