"""This file knows which files of a repository are on this machine, and brings those that are not.

A listing that a hub has given is noted down in the cache, beside the files. With the note, a later run can tell without
a network whether what it needs is complete, and with one it fetches only what has changed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from swift.core.logs import get_logger
from swift.hub.base import Hub, Listing, RemoteFile, Repository, Unreachable, unreachable

WORKERS = 4
"""Files that are downloaded at once."""
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Known:
    """The listing of a repository, and how far it can be trusted.

    offline: why the hub gave no listing, so that this one is of the cache; None when it is the hub's.
    verified: path -> digest of the files in the cache that were compared with it when they arrived.
    """

    listing: Listing
    offline: str | None
    verified: dict[str, str]


def known_files(hub: Hub, repository: Repository) -> Known:
    """The files of a repository: as the hub lists them, or where it cannot be asked, as it did before.

    Raises SwiftError when the hub says that there is nothing, and when it says nothing and the cache is empty.
    """
    noted = _read_note(hub, repository)
    if noted is not None and _COMMIT.fullmatch(repository.revision):
        return noted  # the files of a commit never change
    try:
        listing = hub.listing(repository, patient=noted is None)
    except Unreachable as error:
        return _remembered(hub, repository, noted, str(error))
    return Known(listing, None, {} if noted is None else noted.verified)


def bring(hub: Hub, repository: Repository, known: Known, paths: Collection[str], *, force: bool = False) -> Path:
    """Have these files on this machine; the folder in which they lie under their paths.

    A file that the cache holds as it is listed is not touched, unless `force`. Raises SwiftError when one cannot be
    had, after those that can be had have arrived.
    """
    chosen = set(paths)
    wanted = [file for file in known.listing.files if file.path in chosen]
    commit = known.listing.commit
    here = {file.path: None if force else _whole(hub, repository, known, file) for file in wanted}
    lacking = [file for file in wanted if here[file.path] is None]
    if known.offline is not None and lacking:
        told = "--download_mode force_redownload asks for a new copy" if force else _told(lacking)
        raise unreachable(hub, repository, f"{known.offline}; {told}")
    with ThreadPoolExecutor(WORKERS) as pool:
        asked = [(file, pool.submit(hub.fetch, repository, commit, file, force=force)) for file in lacking]
    try:
        here.update({file.path: future.result() for file, future in asked})
    except Unreachable as error:
        raise unreachable(hub, repository, str(error)) from error
    if known.offline is None:
        arrived = {file.path: file.digest for file in wanted if file.digest is not None}
        noted = _read_note(hub, repository)  # again: other files may have been fetched since
        before = known.verified if noted is None else noted.verified
        _write_note(hub, repository, known.listing, {**before, **arrived})
    for path, place in here.items():
        if place is not None:
            return place.parents[path.count("/")]
    return hub.home(repository)


def _whole(hub: Hub, repository: Repository, known: Known, file: RemoteFile) -> Path | None:
    """The copy of a file in the cache, if it is what the listing says; None where that is not certain."""
    place = hub.cached(repository, known.listing.commit, file)
    if place is None or (file.size is not None and place.stat().st_size != file.size):
        return None
    unnoted = None if known.offline is None else file.digest  # better than nothing, where nobody can be asked
    if file.digest is not None and known.verified.get(file.path, unnoted) != file.digest:
        return None
    return place


def _remembered(hub: Hub, repository: Repository, noted: Known | None, why: str) -> Known:
    """What is known of a repository without asking."""
    if noted is not None:
        get_logger().warning("%s cannot be reached (%s): using %s as it is in the cache", hub.name, why, repository)
        return Known(noted.listing, why, noted.verified)
    listing = hub.cached_listing(repository)
    if listing is None:
        raise unreachable(hub, repository, why)
    get_logger().warning(
        "%s cannot be reached (%s): using %s as it is in the cache. Another program put it there, and whether it is "
        "complete is not known.",
        hub.name, why, repository,
    )  # fmt: skip
    return Known(listing, why, {})


def _told(lacking: Sequence[RemoteFile]) -> str:
    return f"{len(lacking)} of the files that are needed are not in the cache, such as {lacking[0].path}"


# -------------------------------------------------------------------------------------------------------------- notes


def _note(hub: Hub, repository: Repository) -> Path:
    return hub.home(repository) / f"listing-{quote(repository.revision, safe='')}.json"


def _read_note(hub: Hub, repository: Repository) -> Known | None:
    """What an earlier run has noted; None when it has not, or the note is not ours."""
    try:
        note = json.loads(_note(hub, repository).read_text(encoding="utf-8"))
        files = tuple(RemoteFile(path, size, digest) for path, size, digest in note["files"])
        return Known(Listing(note["commit"], files), None, dict(note["verified"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # without a note, everything is asked and compared anew


def _write_note(hub: Hub, repository: Repository, listing: Listing, verified: dict[str, str]) -> None:
    """Note a listing down, whole or not at all, so that a run beside this one never reads half of it."""
    path = _note(hub, repository)
    note = {
        "commit": listing.commit,
        "files": [[file.path, file.size, file.digest] for file in listing.files],
        "verified": verified,
    }
    text = json.dumps(note, ensure_ascii=False)
    try:
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"{path.name}.{os.getpid()}")
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        get_logger().info("%s cannot be written (%s): without a network, its files will not be found", path, error)
