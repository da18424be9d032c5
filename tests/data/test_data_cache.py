from __future__ import annotations

import gc
import json
import os
import resource
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import tiny
from swift.chat.messages import Conversation
from swift.chat.render import Renderer, Sample
from swift.core.errors import DataError, RunError
from swift.data import cache, conversations
from swift.data.cache import Shelf, cache_root, hash_of_file, machine
from swift.data.encode import LoadedData, load_samples
from swift.options.data import DataOptions
from swift.options.template import TemplateOptions


class Counting:
    """A renderer that counts what it renders."""

    def __init__(self, template: TemplateOptions) -> None:
        self.inner = Renderer(tiny.tokenizer(), template)
        self.rendered = 0

    def identity(self) -> dict[str, Any]:
        return self.inner.identity()

    def samples(self, conversations: list[Conversation]) -> list[Sample | DataError]:
        self.rendered += len(conversations)
        return self.inner.samples(conversations)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "home"))
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    return tmp_path / "home" / "swiftlet"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return tiny.jsonl(tmp_path / "rows.jsonl", [*tiny.conversations(40), {"messages": []}, {"query": "no reply"}])


def load(path: Path | str, rendered: int | None, *, template: dict[str, Any] | None = None,
         plugins: tuple[str, ...] = (), **options: Any) -> LoadedData:  # fmt: skip
    """The samples, and whether so many rows were rendered for them."""
    chosen = TemplateOptions(**(template or {}))
    counting = Counting(chosen)
    data = DataOptions(dataset=[str(path)], load_from_cache_file=True, **options)
    loaded = load_samples(data, chosen, counting, plugins=plugins)
    assert rendered is None or counting.rendered == rendered
    return loaded


def samples(loaded: LoadedData) -> list[Sample]:
    return [loaded.train[i] for i in range(len(loaded.train))]


@pytest.mark.parameter("load_from_cache_file")
def test_a_second_run_renders_nothing_and_learns_and_says_the_same(rows: Path):
    first = load(rows, 41, split_dataset_ratio=0.2)
    second = load(rows, 0, split_dataset_ratio=0.2)
    assert samples(first) == samples(second)
    assert first.report == second.report
    assert second.report.num_dropped == 2
    assert first.val_rows == second.val_rows
    assert len(second.val_rows) == 8


@pytest.mark.parameter("load_from_cache_file")
def test_without_it_every_run_prepares_anew_and_keeps_nothing(rows: Path, home: Path):
    template = TemplateOptions()
    for _ in range(2):
        counting = Counting(template)
        load_samples(DataOptions(dataset=[str(rows)]), template, counting)
        assert counting.rendered == 41
    assert not home.exists()


def test_sampling_splitting_and_order_are_free_to_change(rows: Path):
    load(rows, 41)
    load(rows, 0, data_seed=7)
    load(rows, 0, split_dataset_ratio=0.5)
    load(rows, 0, dataset_shuffle=False)
    chosen = load(f"{rows}#5", 5)
    assert samples(load(f"{rows}#5", 0)) == samples(chosen)
    load(f"{rows}#5", 5, data_seed=7)


def test_what_changes_samples_is_prepared_anew(rows: Path, tmp_path: Path):
    load(rows, 41)
    for template in (
        {"max_length": 60},
        {"max_length": 60, "truncation_strategy": "right"},
        {"loss_scale": "last_round"},
        {"system": "Be brief."},
        {"template": "chatml"},
        {"use_chat_template": False},
    ):
        load(rows, 41, template=template)
        load(rows, 0, template=template)
    load(rows, 41, remove_unused_columns=False)
    load(rows, 41, columns={"query": "response"})
    plugin = tmp_path / "plugin.py"
    plugin.write_text("one = 1")
    load(rows, 41, plugins=(str(plugin),))
    load(rows, 0, plugins=(str(plugin),))
    plugin.write_text("one = 2")
    load(rows, 41, plugins=(str(plugin),))


def test_the_bytes_of_the_rows_decide_and_not_the_time_of_their_file(rows: Path):
    load(rows, 41)
    os.utime(rows, (1, 1))
    load(rows, 0)
    text = rows.read_text()
    rows.write_text(text.replace("What is 1 and 1?", "What is 1 and 2?"))  # of the same length
    os.utime(rows, (1, 1))
    changed = load(rows, 41)
    assert any("and 2" in tiny.tokenizer().decode(sample.input_ids) for sample in samples(changed))


def test_a_hash_is_remembered_only_when_the_file_is_at_rest(rows: Path, home: Path, monkeypatch: pytest.MonkeyPatch):
    young = hash_of_file(rows)
    assert not (home / "hashes").exists()
    monkeypatch.setattr("swift.data.cache._SETTLED", -1.0)
    assert hash_of_file(rows) == young
    [note] = (home / "hashes").iterdir()
    note.write_text(note.read_text().replace(young, "remembered"))
    assert hash_of_file(rows) == "remembered"
    rows.write_text("other")
    assert hash_of_file(rows) not in ("remembered", young)


def test_mistakes_of_options_are_found_in_the_second_run_too(rows: Path):
    for _ in range(2):
        with pytest.raises(DataError, match="--columns names nothing_like_it"):
            load(rows, None, columns={"nothing_like_it": "query"})
        with pytest.raises(DataError, match="--model_name"):
            load(rows, None, model_name=["Robin"])
    load(rows, 41)
    with pytest.raises(DataError, match=r"rows.jsonl:41.*--strict true"):
        load(rows, 0, strict=True)


@pytest.mark.parametrize("harm", ["cut", "gone", "flipped", "renumbered", "factless", "listed"])
def test_a_damaged_entry_is_made_anew(rows: Path, home: Path, logged: list[str], harm: str):
    whole = samples(load(rows, 41))
    [entry] = (home / "prepared").iterdir()
    file = entry / ("tokens.bin" if harm in ("cut", "gone", "flipped") else "manifest.json")
    if harm == "gone":
        file.unlink()
    elif harm == "flipped":
        file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])  # of the same size
    elif harm == "renumbered":
        file.write_text(file.read_text().replace('"readable": [41]', '"readable": [40]'))
    elif harm in ("factless", "listed"):
        file.write_text('{"sizes": {}}' if harm == "factless" else "[]")
    else:
        file.write_bytes(file.read_bytes()[:10])
    assert samples(load(rows, 41)) == whole
    assert sum("is damaged" in message for message in logged) == 1
    load(rows, 0)


def test_a_preparation_that_fails_leaves_nothing_behind(rows: Path, home: Path, tmp_path: Path):
    class Failing(Counting):
        def samples(self, conversations: list[Conversation]) -> list[Sample | DataError]:
            raise KeyboardInterrupt(len(conversations))

    for keeps in (True, False):
        data = DataOptions(dataset=[str(rows)], load_from_cache_file=keeps)
        with pytest.raises(KeyboardInterrupt):
            load_samples(data, TemplateOptions(), Failing(TemplateOptions()))
    assert list((home / "prepared").iterdir()) == []
    assert list((tmp_path / "scratch").iterdir()) == []


def test_two_runs_at_once_make_one_entry():
    shelf = Shelf(keeps=True)
    together = threading.Barrier(2)
    found = []

    def make(folder: Path) -> dict[str, Any]:
        together.wait()
        (folder / "rows.bin").write_bytes(b"rows")
        return {"made": 1}

    threads = [threading.Thread(target=lambda: found.append(shelf.entry("x", lambda: 1, make))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1]
    assert len(list((cache_root() / "prepared").iterdir())) == 1
    assert shelf.entry("x", lambda: 1, lambda _: {}).facts == {"made": 1}


def test_a_whole_entry_is_never_removed_by_a_run_that_saw_it_damaged(home: Path, monkeypatch: pytest.MonkeyPatch):
    shelf = Shelf(keeps=True)
    made = shelf.entry("x", lambda: 1, lambda folder: {"made": (folder / "rows.bin").write_bytes(b"rows")})
    looked = []

    def facts(folder: Path) -> dict[str, Any] | None:
        looked.append(folder)
        return None if len(looked) == 1 else whole_facts(folder)  # as if another run had just put a whole one there

    whole_facts = cache._facts
    monkeypatch.setattr(cache, "_facts", facts)
    assert shelf.entry("x", lambda: 1, lambda _: {"made": "anew"}) == made
    assert (made.folder / "rows.bin").read_bytes() == b"rows"
    assert len(list((home / "prepared").iterdir())) == 1


def test_a_damaged_entry_that_appears_while_another_is_made_gives_way_to_it(home: Path):
    place = home / "prepared" / cache.hashed(1)

    def make(folder: Path) -> dict[str, Any]:
        place.mkdir()
        (place / "half.bin").write_bytes(b"half")
        return {"made": (folder / "rows.bin").write_bytes(b"rows")}

    entry = Shelf(keeps=True).entry("x", lambda: 1, make)
    assert (entry.folder, entry.facts) == (place, {"made": 4})
    assert (place / "rows.bin").exists()
    assert list((home / "prepared").iterdir()) == [place]


@pytest.mark.parametrize("keeps", [True, False])
def test_a_full_disk_is_an_error_that_says_what_to_do_and_leaves_nothing(
    rows: Path, home: Path, tmp_path: Path, keeps: bool
):
    data = DataOptions(dataset=[str(rows)], load_from_cache_file=keeps)
    renderer = Renderer(tiny.tokenizer(), TemplateOptions())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # no file may be longer, as if nothing more were left
    try:
        with pytest.raises(RunError, match=r"no room for .*rows.*rows.jsonl.*(MODELSCOPE_CACHE|TMPDIR)"):
            load_samples(data, TemplateOptions(), renderer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((home / "prepared").iterdir() if keeps else (tmp_path / "scratch").iterdir()) == []


def test_a_cache_that_cannot_be_written_can_be_read(rows: Path, home: Path, monkeypatch: pytest.MonkeyPatch):
    whole = samples(load(rows, 41))
    monkeypatch.setattr(cache, "_SETTLED", -1.0)
    (home / "hashes").write_text("a file where a folder is wanted")
    assert samples(load(rows, 0)) == whole


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("argument", ["rows.jsonl", "rows.jsonl#30"])
@pytest.mark.parametrize("when", ["counted", "rendered"])
def test_rows_that_change_while_they_are_read_are_an_error_and_are_not_kept(
    rows: Path, home: Path, monkeypatch: pytest.MonkeyPatch, keeps: bool, argument: str, when: str
):
    class Meanwhile(Counting):
        def samples(self, conversations: list[Conversation]) -> list[Sample | DataError]:
            if when == "rendered" and not self.rendered:
                append()
            return super().samples(conversations)

    def append() -> None:
        with rows.open("a") as file:
            file.write(json.dumps(tiny.conversations(1)[0]) + "\n")

    def split_and_append(*given: Any) -> Any:
        if when == "counted":
            append()
        return split(*given)

    split = conversations.split
    monkeypatch.setattr(conversations, "split", split_and_append)
    if when == "counted" and "#" not in argument:
        return  # all is made before anything is split
    monkeypatch.chdir(rows.parent)
    data = DataOptions(dataset=[argument], load_from_cache_file=keeps)
    with pytest.raises(DataError, match=r"rows.jsonl was changed while it was read"):
        load_samples(data, TemplateOptions(), Meanwhile(TemplateOptions()))
    kept = {entry.name for entry in (home / "prepared").glob("*")}
    assert len(kept) == (keeps and "#" in argument)  # the count of the rows there were


def test_what_is_not_kept_is_removed_with_the_last_that_uses_it(rows: Path, tmp_path: Path):
    data = DataOptions(dataset=[f"{rows}#7"])
    loaded = load_samples(data, TemplateOptions(), Renderer(tiny.tokenizer(), TemplateOptions()))
    [folder] = (tmp_path / "scratch").iterdir()
    assert len(samples(loaded)) == 7
    del loaded
    gc.collect()
    assert not folder.exists()


def test_folders_of_processes_that_were_killed_are_removed_and_others_not(tmp_path: Path):
    import socket
    import subprocess
    import sys

    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    here = tmp_path / "scratch"
    dead, alive, elsewhere = (
        here / f"swiftlet-{machine()}-{process.pid}-a",
        here / f"swiftlet-{machine()}-{os.getppid()}-b",
        here / f"swiftlet-{socket.gethostname()}.1-{process.pid}-c",  # of another container, with numbers of its own
    )
    for folder in (dead, alive, elsewhere):
        folder.mkdir()
    entry = Shelf(keeps=False).entry("x", dict, lambda _: {})
    assert sorted(here.iterdir()) == sorted([alive, elsewhere, entry.folder])


def test_a_place_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "file"))
    with pytest.raises(RunError, match=r"cannot be written to .*file.*MODELSCOPE_CACHE"):
        Shelf(keeps=True).entry("x", lambda: 1, lambda _: {})


def test_facts_and_manifest_are_plain(rows: Path, home: Path):
    load(rows, 41)
    [entry] = (home / "prepared").iterdir()
    manifest = json.loads((entry / "manifest.json").read_text())
    assert manifest["facts"]["readable"] == [41]
    assert manifest["facts"]["met"]["columns"] == ["messages", "query"]
    assert time.time() - entry.stat().st_mtime < 60
