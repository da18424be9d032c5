"""This file knows whose folder a run is: one process at a time writes into it.

The claim is a lock that the system takes back when the process ends, however it ends; beside it stands who has it, for
the one who is refused.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from datetime import datetime
from io import TextIOWrapper
from pathlib import Path

from swift.core.errors import RunError
from swift.core.logs import get_logger

FILE_NAME = ".lock"
HELD = (errno.EACCES, errno.EAGAIN)
"""What the system answers when another process has the lock; anything else means that it knows no locks."""


class Claim:
    """The folder of a run, held by this process until `release`, the end of its context, or the end of the process.

    The lock belongs to this process alone: processes that it starts neither have it nor keep it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: TextIOWrapper | None = None

    def take(self) -> Claim:
        """Take the folder. Raises RunError saying who has it, when another process does."""
        file = (self.folder / FILE_NAME).open("a+", encoding="utf-8")
        file.seek(0)
        before = file.read()
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            if error.errno in HELD:
                raise RunError(_refusal(self.folder, before)) from None
            get_logger().warning(
                "%s is on a file system without locks (%s): a second run in the same folder would not be noticed",
                self.folder, os.strerror(error.errno or 0),
            )  # fmt: skip
            return self
        if before:
            get_logger().info("%s was held by %s, which has ended; taking it over", self.folder, _named(before))
        file.truncate(0)
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now}))
        file.flush()
        self._file = file
        return self

    def release(self) -> None:
        """Give the folder back; once it is given back, nothing happens."""
        if self._file is None:
            return
        self._file.truncate(0)
        self._file.close()
        self._file = None

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def is_held(folder: Path) -> bool:
    """Whether another process is writing into the folder of a run."""
    try:
        with (folder / FILE_NAME).open("r+", encoding="utf-8") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError as error:
        return error.errno in HELD
    return False


def _refusal(folder: Path, text: str) -> str:
    return (
        f"{folder} is being written by {_named(text)}. Two runs in one folder would overwrite each other's checkpoints: "
        "wait for the other, end it, or choose another --output_dir."
    )


def _named(text: str) -> str:
    """Who is written in a lock, in words."""
    try:
        who = json.loads(text)
        return f"process {who['pid']} on {who['host']} (since {who['since']})"
    except (ValueError, KeyError, TypeError):
        return "another process"
