"""This file knows what a hub is: where repositories of models and data sets are listed and fetched from."""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from swift.core.errors import DataError, ModelError, SwiftError
from swift.core.logs import get_logger
from swift.core.paths import exists, is_dir, why_unusable

T = TypeVar("T")
Kind = Literal["model", "dataset"]
ATTEMPTS = 3
"""How often something is asked for that may be there in a second."""
NOUNS: dict[Kind, str] = {"model": "model", "dataset": "data set"}
_ERRORS: dict[Kind, type[SwiftError]] = {"model": ModelError, "dataset": DataError}
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_NO_ACCESS = {errno.EACCES, errno.EPERM, errno.EROFS}
_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Repository:
    """What is asked of a hub.

    id: `owner/name`.
    revision: branch, tag or commit.
    token: the access token, which appears in no message; None leaves it to the client, which knows its own login.
    """

    id: str
    kind: Kind
    revision: str
    token: str | None = field(repr=False)

    def __str__(self) -> str:
        return f"the {NOUNS[self.kind]} {self.id}"


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository; `digest` and `size` (in bytes) are None where the hub does not tell them."""

    path: str
    size: int | None = None
    digest: str | None = None


@dataclass(frozen=True)
class Listing:
    """The files of a repository at one commit.

    commit: what the revision stands for: a commit where the hub tells it, else the revision itself.
    """

    commit: str
    files: tuple[RemoteFile, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of all files, as the hub lists them."""
        return tuple(file.path for file in self.files)


class Hub(Protocol):
    """A place that repositories are fetched from, and the cache of its own client on this machine.

    Asking raises Unreachable when there is no answer, after a few attempts where waiting may help, and a SwiftError
    for an answer that will not change: no such repository, no such revision, no access.

    name: as people write it.
    needs_owner: whether every id has the form `owner/name`.
    """

    name: str
    default_revision: str
    needs_owner: bool

    def listing(self, repository: Repository, *, patient: bool) -> Listing:
        """Ask for the files of a repository. Without `patient`, give up at the first sign that there is no network."""
        ...

    def fetch(self, repository: Repository, commit: str, file: RemoteFile, *, force: bool) -> Path:
        """One file on this machine, downloaded unless the cache has it whole; `force` downloads it in any case."""
        ...

    def cached(self, repository: Repository, commit: str, file: RemoteFile) -> Path | None:
        """A file of the cache, None when it is not there. Nothing is asked and nothing read."""
        ...

    def cached_listing(self, repository: Repository) -> Listing | None:
        """What the cache holds of a repository at its revision, all of it or a part; None if nothing."""
        ...

    def home(self, repository: Repository) -> Path:
        """The folder of the cache that belongs to a repository, whether it exists or not."""
        ...


class Unreachable(Exception):  # noqa: N818 (says what the hub is)
    """A hub gave no answer; the message is what happened, in the words of the network."""


def patiently(
    ask: Callable[[], T], attempts: int, pause: float, errors: tuple[type[Exception], ...],
    passes: Callable[[Exception], bool],
) -> T:  # fmt: skip
    """The answer of the first of several attempts that has one.

    Another one is made only after one of these `errors` that `passes`; `pause` is the number of seconds before the
    second, doubled before every further one. Raises what the last attempt raised.
    """
    for attempt in range(1, attempts):
        try:
            return ask()
        except errors as error:
            if not passes(error):
                raise
            get_logger().info("the hub gives no answer (attempt %d of %d)", attempt, attempts)
            time.sleep(pause * 2 ** (attempt - 1))
    return ask()


def files_below(folder: Path) -> tuple[RemoteFile, ...]:
    """The files of a folder of a cache, hidden ones and halves of downloads left out."""
    found = (
        file.relative_to(folder).as_posix()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.suffix != ".incomplete"
    )
    return tuple(RemoteFile(path) for path in found if not any(part.startswith(".") for part in path.split("/")))


def looks_like_id(name: str) -> bool:
    """Whether a hub could have something of this name: `owner/name`, or a bare name."""
    return bool(_ID.fullmatch(name)) and not name.startswith(".")


def missing(hub: Hub, repository: Repository) -> SwiftError:
    """There is no such repository, or none that one may see."""
    access = "the token may not see it" if repository.token else "it is private and needs --hub_token"
    other = (
        "drop --use_hf to ask ModelScope" if hub.name == "Hugging Face" else "pass --use_hf true to ask Hugging Face"
    )
    return _ERRORS[repository.kind](
        f"{hub.name} has no {NOUNS[repository.kind]} {repository.id}, or {access}. Check the id, {other}, "
        f"or pass a local path."
    )


def no_revision(hub: Hub, repository: Repository, there: Sequence[str]) -> SwiftError:
    """The repository exists, and the revision does not."""
    listed = f" There are: {', '.join(there[:20])}." if there else ""
    flag = "--model_revision " if repository.kind == "model" else "revision "
    return _ERRORS[repository.kind](f"{repository} of {hub.name} has no {flag}{repository.revision}.{listed}")


def refused(hub: Hub, repository: Repository, why: str) -> SwiftError:
    """The hub knows the repository and does not give it to this user."""
    advice = (
        "The token passed with --hub_token does not open it: check that it is valid, that its account may read the "
        "repository, and that the conditions on its page were accepted."
        if repository.token
        else "Accept the conditions on its page, if there are any, and pass the token of your account: --hub_token."
    )
    return _ERRORS[repository.kind](f"{hub.name} refuses {repository} ({why}). {advice}")


def unreachable(hub: Hub, repository: Repository, why: str) -> SwiftError:
    """There is no network, or the hub is down, and the cache cannot help."""
    return _ERRORS[repository.kind](
        f"{hub.name} cannot be reached for {repository}: {why}. Check the network, or fetch it elsewhere and pass its "
        f"local path."
    )


def damaged(hub: Hub, repository: Repository, path: str, why: str) -> SwiftError:
    """A file arrives otherwise than the hub announces it."""
    return _ERRORS[repository.kind](
        f"{path} of {repository} arrives from {hub.name} damaged or incomplete, again and again: {why}. Try later, or "
        f"fetch it by other means and pass its local path."
    )


def not_written(hub: Hub, repository: Repository, error: OSError, variable: str) -> SwiftError | None:
    """What to say when the cache cannot be written: no space, no permission; None for any other error."""
    where = f"{hub.home(repository)}, where {repository} is kept"
    if error.errno in _NO_SPACE:
        return _ERRORS[repository.kind](
            f"The disk is full: {where}. What has arrived is kept. Free some space, or set {variable} to a folder with "
            f"more of it."
        )
    if error.errno in _NO_ACCESS:
        return _ERRORS[repository.kind](
            f"The cache cannot be written ({error.strerror}): {where}. Set {variable} to a folder of your own."
        )
    return None


def concealed(text: str, repository: Repository) -> str:
    """A text of a client in one line, without the token, should it be in there."""
    line = " ".join(text.split())
    return line.replace(repository.token, "***") if repository.token else line


def local_folder(name: str, option: str) -> Path | None:
    """The absolute folder that `name` means on this machine, None where it can only be an id of a hub.

    `option` is the flag it was given with, for messages. Raises ModelError for a file, and for what is neither a folder
    nor an id.
    """
    if is_dir(name):
        return Path(name).expanduser().resolve()
    if exists(name):
        path = Path(name).expanduser()
        raise ModelError(f"{option} {name} is a file; pass the folder it lies in: {option} {path.resolve().parent}")
    if looks_like_id(name):
        return None
    why = why_unusable(name)
    if why is not None:
        raise ModelError(f"{option} {name}: there is no such folder: {why}.")
    raise ModelError(f"{option} {name}: there is no such folder. {what_is_there(Path(name).expanduser())}")


def what_is_there(path: Path) -> str:
    """The last part of the path that exists, and what lies in it, so that a slip of the pen is seen at once."""
    parent = path.absolute().parent
    while not parent.is_dir():
        parent = parent.parent
    found = sorted(child.name for child in parent.iterdir() if child.is_dir() and not child.name.startswith("."))
    if not found:
        return f"{parent} exists and holds no folders."
    more = f" and {len(found) - 8} more" if len(found) > 8 else ""
    return f"{parent} exists and holds: {', '.join(found[:8])}{more}."
