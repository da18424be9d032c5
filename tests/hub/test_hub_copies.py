"""Repositories are listed, fetched once, taken up where they broke, and found again without a network."""

from __future__ import annotations

import errno

import pytest

from swift.core.errors import DataError, ModelError
from swift.core.logs import get_logger
from swift.hub.base import Repository, not_written
from swift.hub.copies import bring, known_files

FILES = {"config.json": "{}", "model.safetensors": bytes(range(256)) * 2000, "inner/tokenizer.json": "[]"}
NOWHERE = "http://127.0.0.1:9"


def repository(hub, kind="model", revision=None, token=None, name="owner/name"):
    return Repository(name, kind, revision or hub.default_revision, token)


def fetched(hub, wanted, **options):
    known = known_files(hub, wanted)
    return bring(hub, wanted, known, known.listing.paths, **options)


def unplugged(hub):
    """The same hub and cache, at an address where nobody answers."""
    hub._endpoint = NOWHERE
    if hub.name == "ModelScope":
        hub._apis.clear()
    return hub


def content_gets(fakes):
    return [path for path in fakes.paths() if "resolve" in path or "FilePath" in path]


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_files_arrive_under_their_paths_and_are_fetched_once(hub, fakes, kind):
    fakes.add(kind, "owner/name", FILES)
    folder = fetched(hub, repository(hub, kind))
    for path, content in FILES.items():
        assert (folder / path).read_bytes() == (content.encode() if isinstance(content, str) else content)
    count = len(content_gets(fakes))
    assert count == len(FILES)
    assert fetched(hub, repository(hub, kind)) == folder
    assert len(content_gets(fakes)) == count


def test_only_what_changed_is_fetched_again(hub, fakes):
    fakes.add("model", "owner/name", FILES)
    fetched(hub, repository(hub))
    before = len(content_gets(fakes))
    fakes.add("model", "owner/name", {**FILES, "config.json": "[]"})
    folder = fetched(hub, repository(hub))
    assert (folder / "config.json").read_text() == "[]", "of the same length: only its digest tells"
    assert not any("model.safetensors" in path for path in content_gets(fakes)[before:])


def test_a_forced_download_fetches_everything_again(hub, fakes):
    fakes.add("dataset", "owner/name", FILES)
    fetched(hub, repository(hub, "dataset"))
    fetched(hub, repository(hub, "dataset"), force=True)
    assert len(content_gets(fakes)) == 2 * len(FILES)


def test_a_cut_connection_is_taken_up_where_it_broke(hub, fakes):
    fakes.add("model", "owner/name", FILES)
    fakes.cuts["model.safetensors"] = 100_000
    folder = fetched(hub, repository(hub))
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    ranges = [headers["range"] for _, path, headers in fakes.asked if "safetensors" in path and "range" in headers]
    assert ranges
    assert all(0 < int(each.removeprefix("bytes=").rstrip("-")) <= 100_000 for each in ranges)


@pytest.mark.parametrize("part", ["model.safetensors", "owner/name"])
def test_two_failures_of_the_server_are_waited_out(hub, fakes, part):
    fakes.add("model", "owner/name", FILES)
    fakes.statuses[part] = [500, 500]
    assert (fetched(hub, repository(hub)) / "inner" / "tokenizer.json").read_text() == "[]"
    assert fakes.statuses[part] == []


def test_a_warm_cache_needs_no_network(hub, fakes, caplog, heard):
    fakes.add("model", "owner/name", FILES)
    folder = fetched(hub, repository(hub))
    assert fetched(unplugged(hub), repository(hub)) == folder
    assert "cannot be reached" in caplog.text
    with pytest.raises(ModelError, match="force_redownload asks for a new copy"):
        fetched(hub, repository(hub), force=True)


def test_a_half_filled_cache_is_not_taken_for_a_whole_one(hub, fakes):
    fakes.add("dataset", "owner/name", FILES)
    known = known_files(hub, repository(hub, "dataset"))
    bring(hub, repository(hub, "dataset"), known, ["config.json"])
    unplugged(hub)
    assert fetched_some(hub, "config.json").read_text() == "{}"
    with pytest.raises(DataError, match=r"cannot be reached .*; 2 of the files that are needed are not in the cache"):
        fetched(hub, repository(hub, "dataset"))


def fetched_some(hub, path):
    wanted = repository(hub, "dataset")
    return bring(hub, wanted, known_files(hub, wanted), [path]) / path


def test_a_cache_that_another_program_has_filled_is_used_with_a_warning(hub, fakes, caplog, heard):
    fakes.add("model", "owner/name", FILES)
    folder = fetched(hub, repository(hub))
    next(hub.home(repository(hub)).glob("listing-*.json")).unlink()
    assert fetched(unplugged(hub), repository(hub)) == folder
    assert "whether it is complete is not known" in caplog.text


def test_a_cold_cache_without_a_network_says_what_to_do(hub):
    with pytest.raises(
        ModelError, match=r"cannot be reached for the model owner/name: .* pass its local path"
    ) as raised:
        known_files(unplugged(hub), repository(hub))
    assert hub.name in str(raised.value)


def test_a_commit_in_the_cache_is_not_asked_for_again(hub, fakes):
    stored = fakes.add("model", "owner/name", FILES)
    wanted = repository(hub, revision=stored.commit("main"))
    fetched(hub, wanted)
    count = len(fakes.asked)
    fetched(hub, wanted)
    assert len(fakes.asked) == count


def test_what_is_not_there_is_said_at_once(hub, fakes):
    with pytest.raises(ModelError, match=f"{hub.name} has no model owner/name"):
        known_files(hub, repository(hub))
    assert len(fakes.paths()) <= 2, "an answer that will not change is not asked for again"


@pytest.mark.parameter("model_revision")
def test_a_revision_names_other_files_and_a_missing_one_those_there_are(hub, fakes):
    fakes.add("model", "owner/name", FILES)
    fakes.add("model", "owner/name", {"config.json": "[7]"}, revision="v2")
    assert (fetched(hub, repository(hub, revision="v2")) / "config.json").read_text() == "[7]"
    with pytest.raises(ModelError, match=r"has no --model_revision v3\. There are: main, master, v2"):
        known_files(hub, repository(hub, revision="v3"))


@pytest.mark.parameter("hub_token")
def test_a_token_opens_what_is_closed_and_stands_in_no_message(hub, fakes, caplog, heard):
    fakes.add("model", "owner/name", FILES, token="open-sesame")
    assert (fetched(hub, repository(hub, token="open-sesame")) / "config.json").exists()
    for token in (None, "wrong-secret"):
        with pytest.raises(ModelError, match="--hub_token") as raised:
            known_files(hub, repository(hub, token=token, name="owner/name"))
        shown = f"{raised.value}{raised.value.__cause__}{caplog.text}{repository(hub, token=token)!r}"
        assert "secret" not in shown
        assert "sesame" not in shown


def test_a_gated_repository_says_that_access_must_be_granted(hub, fakes):
    fakes.add("model", "owner/name", FILES, token="open-sesame", gated=True)
    with pytest.raises(ModelError, match=r"refuses the model owner/name .* conditions on its page.* --hub_token"):
        fetched(hub, repository(hub))
    assert fetched(hub, repository(hub, token="open-sesame"))


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "The disk is full"), (errno.EROFS, "The cache cannot be written")]
)
def test_a_cache_that_cannot_be_written_is_named_with_the_way_out(hub, number, words):
    told = not_written(hub, repository(hub), OSError(number, "why"), "HF_HOME")
    assert words in str(told)
    assert str(hub.home(repository(hub))) in str(told)
    assert not_written(hub, repository(hub), OSError(errno.EIO, "why"), "HF_HOME") is None


@pytest.fixture
def heard():
    """The log of Swiftlet, which does not reach pytest by itself."""
    logger = get_logger()
    logger.propagate, before = True, logger.propagate
    yield
    logger.propagate = before
