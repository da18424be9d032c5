"""This file knows Hugging Face: how its client lists and fetches, and what its errors mean."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # of httpx or httpx2, as its version has it
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    XetDownloadError,
)
from huggingface_hub.hf_api import RepoFile

from swift.core.errors import SwiftError
from swift.hub.base import (
    ATTEMPTS,
    Listing,
    RemoteFile,
    Repository,
    Unreachable,
    concealed,
    damaged,
    files_below,
    missing,
    no_revision,
    not_written,
    patiently,
    refused,
)

TIMEOUT = 10.0
"""Seconds without an answer after which a request has failed."""
TRUNCATED = 50_000
"""From so many files on, the description of a repository may not name all of them, and its tree is walked instead."""
_NOT_NOW = {408, 429, 500, 502, 503, 504}
"""Statuses that may be another one in a second."""
_NETWORK = (HTTPError, OfflineModeIsEnabled, LocalEntryNotFoundError, XetDownloadError)
"""What the client raises when requests fail: of a refusal, too, which is a HfHubHTTPError."""


class HuggingFace:
    """Hugging Face, by the client that transformers brings along.

    endpoint, cache: where it is and where it keeps files; None for what HF_ENDPOINT and HF_HOME say.
    pause: seconds before the second attempt, doubled before every other.
    """

    name = "Hugging Face"
    default_revision = "main"
    needs_owner = False

    def __init__(self, endpoint: str | None, cache: Path | None, pause: float) -> None:
        self._endpoint = endpoint
        self._cache = Path(constants.HF_HUB_CACHE) if cache is None else cache
        self._pause = pause

    def listing(self, repository: Repository, *, patient: bool) -> Listing:
        """The commit that the revision stands for, and its files."""
        api = HfApi(endpoint=self._endpoint, token=repository.token)
        kind, revision = repository.kind, repository.revision

        def ask() -> Listing:
            describe = api.model_info if kind == "model" else api.dataset_info
            about = describe(repository.id, revision=revision, timeout=TIMEOUT)
            if about.sha is None:
                raise Unreachable("the answer names no commit")
            paths = [sibling.rfilename for sibling in about.siblings or ()]
            if len(paths) >= TRUNCATED:
                tree = api.list_repo_tree(repository.id, repo_type=kind, revision=about.sha, recursive=True)
                paths = [entry.path for entry in tree if isinstance(entry, RepoFile)]
            return Listing(about.sha, tuple(RemoteFile(path) for path in paths))

        with self._understood(repository):
            return patiently(ask, ATTEMPTS if patient else 1, self._pause, _NETWORK, _passes)

    def fetch(self, repository: Repository, commit: str, file: RemoteFile, *, force: bool) -> Path:
        """One file of a commit. A connection that breaks is taken up again where it broke."""

        def ask() -> Path:
            try:
                path = hf_hub_download(
                    repository.id, file.path, repo_type=repository.kind, revision=commit, cache_dir=self._cache,
                    force_download=force, token=repository.token, endpoint=self._endpoint, etag_timeout=TIMEOUT,
                )  # fmt: skip
            except ValueError as error:  # what it makes of an error of the network, when a download was forced
                if error.__cause__ is None:
                    raise
                raise LocalEntryNotFoundError(str(error)) from error.__cause__
            return Path(path)

        with self._understood(repository, file.path):
            place = patiently(ask, ATTEMPTS, self._pause, _NETWORK, _passes)
            self._refer(repository, commit)
        return place

    def cached(self, repository: Repository, commit: str, file: RemoteFile) -> Path | None:
        """The link to a file in the folder of its commit."""
        found = try_to_load_from_cache(
            repository.id, file.path, cache_dir=self._cache, revision=commit, repo_type=repository.kind
        )
        return Path(found) if isinstance(found, str) else None

    def cached_listing(self, repository: Repository) -> Listing | None:
        """The files in the folder of the commit that the revision last stood for."""
        reference = self.home(repository) / "refs" / repository.revision
        commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else repository.revision
        files = files_below(self.home(repository) / "snapshots" / commit)
        return Listing(commit, files) if files else None

    def home(self, repository: Repository) -> Path:
        """`models--owner--name` in the cache."""
        return self._cache / "--".join([f"{repository.kind}s", *repository.id.split("/")])

    @contextmanager
    def _understood(self, repository: Repository, path: str | None = None) -> Iterator[None]:
        """Whatever the client raises in here, as Unreachable or as a SwiftError that says what to do."""
        try:
            yield
        except RevisionNotFoundError as error:
            raise no_revision(self, repository, self._revisions(repository)) from error
        except (GatedRepoError, DisabledRepoError) as error:
            why = "access to it must be granted" if isinstance(error, GatedRepoError) else "it is disabled"
            raise refused(self, repository, why) from error
        except (RepositoryNotFoundError, HFValidationError) as error:
            raise self._not_found(repository, error) from error
        except _NETWORK as error:
            raise self._failed(repository, path, error) from error
        except OSError as error:
            raise not_written(self, repository, error, "HF_HOME") or damaged(
                self, repository, path or "the listing", concealed(str(error), repository)
            ) from error

    def _failed(self, repository: Repository, path: str | None, error: Exception) -> Exception:
        """What a request that failed for want of access, of the file, or of a network comes to."""
        cause = _cause(error)
        if isinstance(cause, OfflineModeIsEnabled):
            return Unreachable("HF_HUB_OFFLINE is set")
        if not isinstance(cause, HfHubHTTPError):
            return Unreachable(concealed(str(cause), repository) or type(cause).__name__)
        status = cause.response.status_code
        if status in (401, 403):
            return refused(self, repository, f"status {status}")
        if isinstance(cause, EntryNotFoundError) and path is not None:
            return damaged(self, repository, path, "it is listed, and not there")
        return Unreachable(f"it answers with status {status}")

    def _refer(self, repository: Repository, commit: str) -> None:
        """Note which commit the revision stands for, where other programs look for it when they have no network."""
        reference = self.home(repository) / "refs" / repository.revision
        if repository.revision == commit or (reference.is_file() and reference.read_text(encoding="utf-8") == commit):
            return
        reference.parent.mkdir(parents=True, exist_ok=True)
        draft = reference.with_name(f"{reference.name}.{os.getpid()}.{threading.get_ident()}")
        draft.write_text(commit, encoding="utf-8")
        draft.replace(reference)

    def _not_found(self, repository: Repository, error: Exception) -> SwiftError:
        """A wrong token is answered like a repository that is not there."""
        if isinstance(error, RepositoryNotFoundError) and repository.token and error.response.status_code == 401:
            return refused(self, repository, "status 401")
        return missing(self, repository)

    def _revisions(self, repository: Repository) -> list[str]:
        """The branches and tags of a repository; [] when they cannot be had."""
        try:
            refs = HfApi(endpoint=self._endpoint, token=repository.token).list_repo_refs(
                repository.id, repo_type=repository.kind
            )
        except _NETWORK:
            return []
        return [ref.name for ref in (*refs.branches, *refs.tags)]


def _passes(error: Exception) -> bool:
    """Whether what went wrong may be right in a second."""
    cause = _cause(error)
    if isinstance(cause, HfHubHTTPError):
        return cause.response.status_code in _NOT_NOW
    return not isinstance(cause, OfflineModeIsEnabled)


def _cause(error: Exception) -> BaseException:
    """What lies under an error of the client."""
    return error.__cause__ or error if isinstance(error, LocalEntryNotFoundError) else error
