"""This file knows ModelScope: how its client lists and fetches, and what its errors mean."""

from __future__ import annotations

import logging
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from http.client import HTTPException
from pathlib import Path
from typing import Any

from swift.core.errors import MissingPackage, SwiftError
from swift.core.extras import need
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

PROBE_SECONDS = 5.0
"""How long the hub may take to answer at all."""


class ModelScope:
    """ModelScope, by its own client, which is imported when it is first needed.

    endpoint, cache: where it is and where it keeps files; None for what MODELSCOPE_ENDPOINT and MODELSCOPE_CACHE say.
    pause: seconds before the second attempt to get an answer at all, doubled before every other. The client repeats
    single requests that fail by itself.
    """

    name = "ModelScope"
    default_revision = "master"
    needs_owner = True

    def __init__(self, endpoint: str | None, cache: Path | None, pause: float) -> None:
        self._endpoint = endpoint
        self._pause = pause
        self._cache = cache
        self._apis: dict[str | None, Any] = {}

    def listing(self, repository: Repository, *, patient: bool) -> Listing:
        """The files of a revision. ModelScope does not tell which commit it stands for, and digests tell changes."""
        with self._understood(repository):
            api = self._api(repository)
            patiently(
                lambda: self._probe(repository), ATTEMPTS if patient else 1, self._pause, (Unreachable,), lambda _: True
            )
            entries = api.list_repo_files(repository.id, repository.kind, revision=repository.revision)
        files = (
            RemoteFile(entry.path, entry.size or None, entry.sha256)  # a size of 0 may mean that it is not known
            for entry in entries
            if not entry.is_dir
        )
        return Listing(repository.revision, tuple(files))

    def fetch(self, repository: Repository, commit: str, file: RemoteFile, *, force: bool) -> Path:
        """One file of a revision. What has arrived of it before is kept and continued, also by a later run."""
        with self._understood(repository, file.path):
            place = self._api(repository).download_file(
                repository.id, repository.kind, file.path, revision=commit, force=force,
                expected_sha256=file.digest, file_size=file.size,
            )  # fmt: skip
        return Path(place)

    def cached(self, repository: Repository, commit: str, file: RemoteFile) -> Path | None:
        """A file below `snapshots`, or where clients before 1.38 have put it."""
        try:
            place = self._api(repository).download_file(
                repository.id, repository.kind, file.path, revision=commit, local_files_only=True
            )
        except self._errors.CacheNotFound:
            return None
        return Path(place)

    def cached_listing(self, repository: Repository) -> Listing | None:
        """All files in the folder of the revision."""
        try:
            folder = self._api(repository).download_repo(
                repository.id, repository.kind, revision=repository.revision, local_files_only=True
            )
        except self._errors.CacheNotFound:
            return None
        return Listing(repository.revision, files_below(Path(folder)))

    def home(self, repository: Repository) -> Path:
        """`models/owner--name` in the cache."""
        return self._settings(repository).cache_dir / f"{repository.kind}s" / repository.id.replace("/", "--")

    def _probe(self, repository: Repository) -> None:
        """Whether anybody answers: without a network, the client itself would take a minute to say so."""
        request = urllib.request.Request(self._settings(repository).endpoint, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=PROBE_SECONDS).close()
        except urllib.error.HTTPError as error:
            error.close()  # an answer, whatever it says
        except (OSError, HTTPException) as error:
            why = error.reason if isinstance(error, urllib.error.URLError) else error
            raise Unreachable(str(why) or type(error).__name__) from error

    @cached_property
    def _client(self) -> Any:
        try:
            client = need("modelscope_hub", "Fetching from ModelScope")
        except MissingPackage as error:
            raise MissingPackage(f"{error} Or fetch from Hugging Face: --use_hf true.") from None
        logger = logging.getLogger("modelscope_hub")
        if logger.level == logging.INFO:  # its default; what it says then is said in this log already
            logger.setLevel(logging.WARNING)
        return client

    @property
    def _errors(self) -> Any:
        return self._client.errors

    def _settings(self, repository: Repository) -> Any:
        changes = {} if self._cache is None else {"cache_dir": self._cache}
        return self._client.HubConfig(endpoint=self._endpoint, token=repository.token, **changes)

    def _api(self, repository: Repository) -> Any:
        """The client for a token; kept, so that its connections are."""
        if repository.token not in self._apis:
            self._apis[repository.token] = self._client.HubApi(self._settings(repository))
        return self._apis[repository.token]

    @contextmanager
    def _understood(self, repository: Repository, path: str | None = None) -> Iterator[None]:
        """Whatever the client raises in here, as Unreachable or as a SwiftError that says what to do."""
        errors = self._errors
        try:
            yield
        except errors.NotExistError as error:
            raise self._not_found(repository, path) from error
        except (errors.AuthenticationError, errors.PermissionDeniedError) as error:
            raise refused(self, repository, f"status {error.status_code}") from error
        except errors.FileIntegrityError as error:
            raise damaged(self, repository, path or "", concealed(error.message, repository)) from error
        except errors.ServerError as error:
            raise Unreachable(f"it answers with status {error.status_code}") from error
        except errors.HubError as error:
            raise Unreachable(concealed(str(error), repository)) from error
        except OSError as error:
            told = not_written(self, repository, error, "MODELSCOPE_CACHE")
            if told is None:
                raise Unreachable(concealed(str(error), repository)) from error
            raise told from error

    def _not_found(self, repository: Repository, path: str | None) -> SwiftError:
        """What is not there: a file that was listed, a revision, or all of it."""
        try:
            there = [
                _name(entry) for entry in self._api(repository).list_repo_revisions(repository.id, repository.kind)
            ]
        except self._errors.HubError:
            return missing(self, repository)
        if path is not None and repository.revision in there:
            return damaged(self, repository, path, "it is listed, and not there")
        return no_revision(self, repository, there) if there else missing(self, repository)


def _name(entry: dict[str, Any]) -> str:
    """The name of a branch or a tag, as ModelScope writes it."""
    return str(entry.get("Revision") or entry.get("Name") or entry.get("name"))
