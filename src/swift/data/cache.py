"""This file knows where prepared rows are put: kept for later runs under a hash of what they were made of, or for one
run alone.

What is kept (`--load_from_cache_file true`) lies in the folder `swiftlet` of MODELSCOPE_CACHE, or in ~/.cache/swiftlet.
An entry is a folder that appears whole or not at all, so that several runs can look for it and make it at one time; it
is on the disk, and not on its way there, before it appears. Its bytes are held against their checksums whenever it is
taken out. `room` says when it goes.
What is not kept lies in the system's folder for temporary files (TMPDIR) and is removed with the last that uses it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import socket
import tempfile
import time
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swift.core import environment
from swift.core.errors import RunError
from swift.core.logs import get_logger
from swift.data.room import MANIFEST, Hold, hold, limit, make_room

_MAKING = ".making-"
_ATTEMPTS = 3
_CHOSEN_BY = "TMPDIR, or with --load_from_cache_file true by MODELSCOPE_CACHE"
_SETTLED = 2.0
"""Seconds since a file was changed last from which on its time of change tells it from a later version of it."""
_CHUNK = 1 << 22
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, None)
"""What an error of writing says when there is no room; numpy says it without a number."""


@dataclass(frozen=True)
class Entry:
    """Something prepared: a folder of files, and what there is to say of it, as JSON can hold it."""

    folder: Path
    facts: dict[str, Any]


Make = Callable[[Path], dict[str, Any]]
"""Writes files into an empty folder and returns the facts of the entry."""


class Shelf:
    """Gives out what is prepared already, and makes the rest.

    keeps: whether what was made is looked for, and kept for later runs.
    """

    def __init__(self, *, keeps: bool) -> None:
        self._keeps = keeps
        self._lent: dict[Path, None] = {}
        self._held: dict[Path, Hold] = {}

    def entry(self, name: str, contents: Callable[[], Any], make: Make) -> Entry:
        """What `contents` describes: from the shelf, or as `make` makes it.

        name: what it is, for the log. contents: plain values that decide what is made; asked for only when it may be
        there already. Raises RunError when it cannot be written.
        """
        if not self._keeps:
            folder = _working_folder(Path(tempfile.gettempdir()), "swiftlet-")
            self._lent[folder] = None
            with _removed_on_failure(folder, name):
                return Entry(folder, make(folder))
        most, home = limit(), cache_root() / "prepared"
        place = home / hashed(contents())
        self._hold(place)
        found = _opened(place)
        if found is not None:
            get_logger().info("%s: taken from %s", name, place)
            return found
        folder = _working_folder(home, _MAKING)
        with _removed_on_failure(folder, name):
            facts = make(folder)
            _seal(folder, facts)
            made = _put(folder, Entry(place, facts))
        self._hold(place)
        if most is not None:
            make_room(home, most, lambda: _aside(home))
        return made

    def lend(self, entry: Entry, user: object) -> None:
        """Let go of an entry when `user` is gone: remove it, or if it is kept, let others remove it."""
        if entry.folder in self._held:
            weakref.finalize(user, self._held.pop(entry.folder).release)
        if entry.folder in self._lent:
            del self._lent[entry.folder]
            weakref.finalize(user, _remove, entry.folder, os.getpid())

    def discard(self) -> None:
        """Let go of the entries that nobody uses; those that are not kept are removed."""
        for folder in self._lent:
            _remove(folder, os.getpid())
        self._lent.clear()
        for held in self._held.values():
            held.release()
        self._held.clear()

    def _hold(self, place: Path) -> None:
        """Use the entry of this place, if it is there, until `lend` or `discard`."""
        if place in self._held:
            self._held.pop(place).release()
        held = hold(place)
        if held is not None:
            self._held[place] = held


def cache_root() -> Path:
    """The folder of all that is kept between runs."""
    base = environment.MODELSCOPE_CACHE.get()
    return Path(base).expanduser() / "swiftlet" if base else Path("~/.cache/swiftlet").expanduser()


# -------------------------------------------------------------------------------------------------------------- hashes


def hashed(contents: Any) -> str:
    """A hash of plain values."""
    text = json.dumps(contents, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def hash_of_file(path: Path) -> str:
    """A hash of the bytes of a file, remembered as long as its size, times of change and inode stay the same."""
    state = path.stat()
    known = [str(path.resolve()), state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
    note = cache_root() / "hashes" / hashed(known[0])
    with suppress(OSError, ValueError):
        remembered = json.loads(note.read_text(encoding="utf-8"))
        if remembered["file"] == known:
            return remembered["hash"]
    found = _hash_of_bytes(path)
    # A file that is being written may change again within the same tick of its clock.
    if time.time() - max(state.st_mtime, state.st_ctime) > _SETTLED:
        with suppress(OSError):  # where nothing can be written, the file is read again next time
            _write_whole(note, json.dumps({"file": known, "hash": found}))
    return found


def hash_of_code() -> str:
    """A hash of the code that makes samples of rows, so that a new version prepares anew."""
    package = Path(__file__).parents[1]
    sources = sorted(file for name in ("catalog", "chat", "data") for file in (package / name).glob("*.py"))
    return hashlib.blake2b(b"".join(file.read_bytes() for file in sources), digest_size=16).hexdigest()


def _hash_of_bytes(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _write_whole(file: Path, text: str) -> None:
    """Write a small file so that nobody sees half of it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=file.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as made:
            made.write(text)
        Path(name).replace(file)
    finally:
        Path(name).unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------------- folders


def _opened(place: Path) -> Entry | None:
    """The entry of this place; None when there is none, or a damaged one, which is removed."""
    if not place.is_dir():
        return None
    facts = _facts(place)
    if facts is not None:
        return Entry(place, facts)
    # Another run may be at the same: what is removed is taken away first, and put back if it proves to be whole.
    aside = _aside(place.parent)
    with suppress(OSError):
        place.rename(aside)
    facts = _facts(aside)
    if facts is not None:
        return _put(aside, Entry(place, facts))
    get_logger().warning("%s is damaged and made anew", place)
    shutil.rmtree(aside, ignore_errors=True)
    return None


def _aside(home: Path) -> Path:
    """A new name for an entry that is being removed; a later run sweeps it if this one is killed."""
    return home / f"{_MAKING}{machine()}-{os.getpid()}-{secrets.token_hex(4)}"


def _facts(folder: Path) -> dict[str, Any] | None:
    """What is to be said of an entry; None when it is not whole, or a byte of it is not what it was."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return manifest["facts"] if _is_sound(folder, manifest) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _is_sound(folder: Path, manifest: dict[str, Any]) -> bool:
    files = manifest["files"]
    return (
        manifest["hash"] == hashed([files, manifest["facts"]])
        and all((folder / name).stat().st_size == size for name, (size, _) in files.items())
        and all(_checksum(folder / name) == checksum for name, (_, checksum) in files.items())
    )


def _checksum(file: Path) -> int:
    """The CRC-32 of a file. It is there for disks that fail, not for people who forge."""
    found = 0
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK):
            found = zlib.crc32(chunk, found)
    return found


def _seal(folder: Path, facts: dict[str, Any]) -> None:
    """Say of a folder that it is whole, once all of it is on the disk."""
    files = sorted(folder.iterdir())
    states = {file.name: (file.stat().st_size, _checksum(file)) for file in files}
    manifest = folder / MANIFEST
    said = {"files": states, "facts": facts, "hash": hashed([states, facts])}
    manifest.write_text(json.dumps(said), encoding="utf-8")
    for file in (*files, manifest):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())


def _put(folder: Path, entry: Entry) -> Entry:
    """Let a whole folder appear as this entry, unless another run was quicker; the entry that stands there."""
    for _ in range(_ATTEMPTS):
        try:
            folder.rename(entry.folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise RunError(f"{entry.folder} cannot be made: {error.strerror or error}.") from error
        else:
            return entry
        found = _opened(entry.folder)
        if found is not None:
            shutil.rmtree(folder, ignore_errors=True)
            return found
    raise RunError(f"{entry.folder} cannot be made: something damages it as soon as it is there.")


def machine() -> str:
    """Where the numbers of processes mean what they mean here: the host and, in containers, the part of it."""
    try:
        return f"{socket.gethostname()}.{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return socket.gethostname()


def _working_folder(parent: Path, prefix: str) -> Path:
    """A new folder of this process; those of processes that were killed are removed."""
    own = f"{prefix}{machine()}-"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(parent.glob(f"{own}*-*"), len(own))
        return Path(tempfile.mkdtemp(dir=parent, prefix=f"{own}{os.getpid()}-"))
    except OSError as error:
        raise RunError(
            f"Prepared rows cannot be written to {parent}: {error.strerror or error}. The folder is chosen by "
            f"{_CHOSEN_BY}."
        ) from error


def _sweep(folders: Iterable[Path], skip: int) -> None:
    for folder in folders:
        pid = folder.name[skip:].partition("-")[0]
        if pid.isdigit() and not _lives(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # of another user
    return True


@contextmanager
def _removed_on_failure(folder: Path, name: str) -> Iterator[None]:
    """Leave nothing of a folder that could not be filled. Raises RunError when there was no room for it."""
    is_filled = False
    try:
        yield
        is_filled = True
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise RunError(
            f"There is no room for {name} in {folder.parent}: {error.strerror or error}. It takes about five bytes per "
            f"token. Free some, or choose another folder by {_CHOSEN_BY}."
        ) from error
    finally:
        if not is_filled:
            shutil.rmtree(folder, ignore_errors=True)


def _remove(folder: Path, owner: int) -> None:
    """Remove a folder, if this is the process that made it and no copy of it."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
