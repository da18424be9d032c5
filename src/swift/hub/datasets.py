"""This file knows how the id of a data set becomes files on this machine: those of one subset and one split."""

from __future__ import annotations

from pathlib import Path

from swift.core.errors import DataError
from swift.core.logs import get_logger
from swift.hub.base import Hub, Repository
from swift.hub.copies import bring, known_files
from swift.hub.models import hub_named
from swift.hub.splits import card_of, choose

CARD = "README.md"


def fetch(
    dataset_id: str, *, use_hf: bool, revision: str | None, subset: str | None, split: str, token: str | None,
    force: bool,
) -> list[Path]:  # fmt: skip
    """The files of a split of a data set of a hub, in order, downloaded unless the cache has them.

    Which files those are is said by the `configs` of its README.md, else by the names of its files. `subset` None is
    the default one. `force` downloads them anew. Raises DataError when the hub has no such data set, revision, subset or
    split, naming those there are, and when it cannot be reached and the cache is not complete.
    """
    return fetch_from(hub_named(use_hf), dataset_id, revision=revision, subset=subset, split=split, token=token,
                      force=force)  # fmt: skip


def fetch_from(
    hub: Hub, dataset_id: str, *, revision: str | None, subset: str | None, split: str, token: str | None, force: bool
) -> list[Path]:
    """The same from this hub."""
    if hub.needs_owner and "/" not in dataset_id:
        raise DataError(
            f"{dataset_id}: there is no file or folder of this name, and an id of {hub.name} has the form owner/name."
        )
    repository = Repository(dataset_id, "dataset", revision or hub.default_revision, token)
    known = known_files(hub, repository)
    card = None
    if CARD in known.listing.paths:
        folder = bring(hub, repository, known, [CARD], force=force)
        card = card_of((folder / CARD).read_text(encoding="utf-8", errors="replace"))
    chosen = choose(known.listing.paths, card, subset, split, f"{repository} of {hub.name}")
    folder = bring(hub, repository, known, chosen, force=force)
    get_logger().info("%s of %s, split %s: %d files in %s", repository, hub.name, split, len(chosen), folder)
    return [folder / path for path in chosen]
