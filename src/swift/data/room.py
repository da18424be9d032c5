"""This file knows how long what is kept between runs stays there: until others need its room, never while it is used.

Who uses an entry holds a shared lock on its manifest, which the system takes back when a process ends, however it ends.
An entry is removed under the exclusive lock. Where the file system has no locks, nothing is removed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from swift.core import environment
from swift.core.logs import get_logger

MANIFEST = "manifest.json"
"""What every whole entry has; its time of change is that of its last use."""
_GIGABYTE = 1_000_000_000


class Hold:
    """An entry that is used: no other process removes it before `release`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """The entry is used no more; the second time, nothing happens."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def hold(folder: Path) -> Hold | None:
    """Use the entry of this folder from now on; None when there is none, or none any more."""
    descriptor = _locked(folder, fcntl.LOCK_SH)
    if descriptor is None:
        return None
    with suppress(OSError):  # of a cache that can only be read
        os.utime(descriptor)
    return Hold(descriptor)


def limit() -> int | None:
    """The bytes that all entries together may take; None without a bound. Raises UsageError."""
    gigabytes = environment.SWIFT_CACHE_LIMIT.number()
    return round(gigabytes * _GIGABYTE) if gigabytes is not None and gigabytes > 0 else None


def make_room(home: Path, most: int, aside: Callable[[], Path]) -> None:
    """Remove entries of `home`, the one unused for longest first, until they take no more than `most` bytes.

    aside: a new name in `home` for what is being removed, which nobody takes for an entry and a later run sweeps.
    """
    entries = []
    for manifest in home.glob(f"[!.]*/{MANIFEST}"):
        with suppress(OSError):  # of one that another process is removing
            size = sum(file.stat().st_size for file in manifest.parent.iterdir())
            entries.append((manifest.stat().st_mtime, size, manifest.parent))
    total = sum(size for _, size, _ in entries)
    for used, size, folder in sorted(entries):
        if total <= most:
            return
        if _removed(folder, aside):
            total -= size
            words = "%s: removed, unused since %s; the cache holds %.1f GB and may hold %.1f (SWIFT_CACHE_LIMIT)"
            since = f"{datetime.fromtimestamp(used):%Y-%m-%d %H:%M}"
            get_logger().info(words, folder, since, total / _GIGABYTE, most / _GIGABYTE)


def _removed(folder: Path, aside: Callable[[], Path]) -> bool:
    """Remove an entry that nobody uses; whether that could be done."""
    descriptor = _locked(folder, fcntl.LOCK_EX)
    if descriptor is None:
        return False
    try:
        gone = folder.rename(aside())
    except OSError:
        return False
    finally:
        os.close(descriptor)
    shutil.rmtree(gone, ignore_errors=True)
    return True


def _locked(folder: Path, kind: int) -> int | None:
    """The manifest of this folder, open and locked; None when it is not there, or cannot be locked in this way.

    A file system without locks grants the shared one, since nobody will get the exclusive one.
    """
    manifest = folder / MANIFEST
    is_shared = kind == fcntl.LOCK_SH
    try:
        # Over NFS, only who may write may lock exclusively.
        descriptor = os.open(manifest, os.O_RDONLY if is_shared else os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, kind if is_shared else kind | fcntl.LOCK_NB)  # who removes needs but a moment
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        if not is_shared:
            os.close(descriptor)
            return None
    # It may have been moved away between the two, and another may stand in its place.
    with suppress(OSError):
        if os.path.samestat(os.fstat(descriptor), manifest.stat()):
            return descriptor
    os.close(descriptor)
    return None
