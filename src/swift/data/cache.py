"""This file knows where prepared rows are put: kept for later runs under a hash of what they were made of, or for one
run alone.

What is kept (`--load_from_cache_file true`) lies in the folder `swiftlet` of MODELSCOPE_CACHE, or in ~/.cache/swiftlet.
An entry is a folder that appears whole or not at all, so that several runs can look for it and make it at one time; it
is on the disk, and not on its way there, before it appears.
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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swift.core import environment
from swift.core.errors import RunError
from swift.core.logs import get_logger

_MANIFEST = "manifest.json"
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
        home = cache_root() / "prepared"
        place = home / hashed(contents())
        found = _opened(place)
        if found is not None:
            get_logger().info("%s: taken from %s", name, place)
            return found
        folder = _working_folder(home, _MAKING)
        with _removed_on_failure(folder, name):
            _seal(folder, make(folder))
            return _put(folder, place)

    def lend(self, entry: Entry, user: object) -> None:
        """Remove an entry that is not kept when `user` is gone."""
        if entry.folder in self._lent:
            del self._lent[entry.folder]
            weakref.finalize(user, _remove, entry.folder, os.getpid())

    def discard(self) -> None:
        """Remove the entries that are not kept and that nobody uses."""
        for folder in self._lent:
            _remove(folder, os.getpid())
        self._lent.clear()


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
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


# ------------------------------------------------------------------------------------------------------------- folders


def _opened(place: Path) -> Entry | None:
    """The entry of this place; None when there is none, or one of which a part is missing, which is removed."""
    if not place.is_dir():
        return None
    facts = _facts(place)
    if facts is not None:
        return Entry(place, facts)
    # Another run may be at the same: what is removed is taken away first, and put back if it proves to be whole.
    aside = place.with_name(f"{_MAKING}{machine()}-{os.getpid()}-{secrets.token_hex(4)}")
    with suppress(OSError):
        place.rename(aside)
    if _facts(aside) is not None:
        return _put(aside, place)
    get_logger().warning("%s is damaged and made anew", place)
    shutil.rmtree(aside, ignore_errors=True)
    return None


def _facts(folder: Path) -> dict[str, Any] | None:
    """What is to be said of an entry; None when it is not whole."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        whole = all((folder / name).stat().st_size == size for name, size in manifest["sizes"].items())
        return manifest["facts"] if whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _seal(folder: Path, facts: dict[str, Any]) -> None:
    """Say of a folder that it is whole, once all of it is on the disk."""
    files = sorted(folder.iterdir())
    sizes = {file.name: file.stat().st_size for file in files}
    manifest = folder / _MANIFEST
    manifest.write_text(json.dumps({"sizes": sizes, "facts": facts}), encoding="utf-8")
    for file in (*files, manifest):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())


def _put(folder: Path, place: Path) -> Entry:
    """Let a whole folder appear in its place, unless another run was quicker; the entry that stands there."""
    facts = _facts(folder)
    assert facts is not None, "what is put into a place is whole"
    for _ in range(_ATTEMPTS):
        try:
            folder.rename(place)
            return Entry(place, facts)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise RunError(f"{place} cannot be made: {error.strerror or error}.") from error
        found = _opened(place)
        if found is not None:
            shutil.rmtree(folder, ignore_errors=True)
            return found
    raise RunError(f"{place} cannot be made: something damages it as soon as it is there.")


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
    try:
        yield
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if not isinstance(error, OSError) or error.errno not in _NO_ROOM:
            raise
        raise RunError(
            f"There is no room for {name} in {folder.parent}: {error.strerror or error}. It takes about five bytes per "
            f"token. Free some, or choose another folder by {_CHOSEN_BY}."
        ) from error


def _remove(folder: Path, owner: int) -> None:
    """Remove a folder, if this is the process that made it and no copy of it."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
