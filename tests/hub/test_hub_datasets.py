"""A data set of a hub becomes the files of one split of one subset."""

from __future__ import annotations

import pytest

from swift.core.errors import DataError
from swift.hub.datasets import fetch_from

CARD = "---\nconfigs:\n- config_name: small\n  data_files: small/*.jsonl\n- config_name: large\n  data_files: large/*\n---\n"
FILES = {"README.md": CARD, "small/a[1].jsonl": "1", "small/b.jsonl": "2", "large/a.jsonl": "3", "extra.zip": "4"}


def got(hub, name="owner/rows", revision=None, subset=None, split="train", force=False):
    return fetch_from(hub, name, revision=revision, subset=subset, split=split, token=None, force=force)


@pytest.mark.parameter("dataset")
def test_only_the_files_of_the_subset_are_fetched(hub, fakes):
    fakes.add("dataset", "owner/rows", FILES)
    files = got(hub, subset="small")
    assert [file.name for file in files] == ["a[1].jsonl", "b.jsonl"]
    assert [file.read_text() for file in files] == ["1", "2"]
    assert not any("large" in path or "extra" in path for path in fakes.paths())
    with pytest.raises(
        DataError, match=f"data set owner/rows of {hub.name} has several subsets.* Choose: small, large"
    ):
        got(hub)


def test_a_revision_chooses_the_files(hub, fakes):
    fakes.add("dataset", "owner/rows", {"rows.jsonl": "new"})
    fakes.add("dataset", "owner/rows", {"rows.jsonl": "old"}, revision="v1")
    assert [file.read_text() for file in got(hub, revision="v1")] == ["old"]
    assert [file.read_text() for file in got(hub)] == ["new"]
    with pytest.raises(DataError, match=r"has no revision v2\. There are: main, master, v1"):
        got(hub, revision="v2")


@pytest.mark.parameter("download_mode")
def test_a_copy_is_used_again_unless_a_new_one_is_forced(hub, fakes):
    fakes.add("dataset", "owner/rows", {"rows.jsonl": "whole"})
    file = got(hub)[0]
    file.resolve().write_text("wrong")
    assert got(hub)[0].read_text() == "wrong", "of the same length: the copy is trusted"
    assert got(hub, force=True)[0].read_text() == "whole"


def test_without_a_network_a_subset_is_found_or_missed_as_a_whole(hub, fakes):
    fakes.add("dataset", "owner/rows", FILES)
    files = got(hub, subset="small")
    hub._endpoint = "http://127.0.0.1:9"
    if hub.name == "ModelScope":
        hub._apis.clear()
    assert got(hub, subset="small") == files
    with pytest.raises(DataError, match=r"not in the cache, such as large/a\.jsonl"):
        got(hub, subset="large")


def test_a_data_set_that_is_not_there_and_a_name_that_is_no_id(hub, fakes):
    with pytest.raises(DataError, match=f"{hub.name} has no data set owner/rows"):
        got(hub)
    with pytest.raises(DataError, match="rows"):
        got(hub, "rows")
