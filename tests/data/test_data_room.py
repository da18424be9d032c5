"""What is kept between runs goes when others need its room, the one unused for longest first, and never while used."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tiny
from swift.chat.render import Renderer
from swift.core.errors import UsageError
from swift.data import room
from swift.data.cache import Entry, Shelf, machine
from swift.data.encode import LoadedData, load_samples
from swift.data.room import hold, make_room
from swift.options.data import DataOptions
from swift.options.template import TemplateOptions

SIZE = 1_000_000
HOLDER = """
import sys
from pathlib import Path
from swift.data.room import hold
held = hold(Path(sys.argv[1]))
print("held" if held else "gone", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "home"))
    return tmp_path / "home" / "swiftlet" / "prepared"


def make(folder: Path) -> dict[str, Any]:
    """An entry of one megabyte."""
    (folder / "rows.bin").write_bytes(b"x" * SIZE)
    return {}


def entry(name: str, shelf: Shelf | None = None) -> Entry:
    """The entry of this name, taken or made by a shelf that is used no more."""
    own = shelf or Shelf(keeps=True)
    found = own.entry(name, lambda: name, make)
    if shelf is None:
        own.discard()
    return found


def set_back(found: Entry, hours: int) -> Entry:
    """As if it had been used so many hours ago."""
    manifest = found.folder / room.MANIFEST
    used = manifest.stat().st_mtime - 3600 * hours
    os.utime(manifest, (used, used))
    return found


def test_what_was_not_used_for_longest_goes_first(home: Path, monkeypatch: pytest.MonkeyPatch, logged: list[str]):
    a, b, c = (set_back(entry(name), hours) for name, hours in (("a", 3), ("b", 2), ("c", 1)))
    entry("a")  # used again
    monkeypatch.setenv("SWIFT_CACHE_LIMIT", str(3.5 * SIZE / 1e9))
    d = entry("d")
    assert sorted(home.iterdir()) == sorted(each.folder for each in (a, c, d))
    [words] = [message for message in logged if "removed" in message]
    assert str(b.folder) in words
    assert "SWIFT_CACHE_LIMIT" in words


def test_nothing_goes_below_the_bound_or_without_one(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SWIFT_CACHE_LIMIT", "0")
    for name in "abc":
        entry(name)
    monkeypatch.setenv("SWIFT_CACHE_LIMIT", str(5 * SIZE / 1e9))
    entry("d")
    assert len(list(home.iterdir())) == 4


def test_what_this_run_has_just_made_or_uses_stays_however_large_it_is(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SWIFT_CACHE_LIMIT", str(SIZE / 1e9 / 2))
    shelf = Shelf(keeps=True)
    found = [entry(name, shelf) for name in "ab"]
    assert sorted(home.iterdir()) == sorted(each.folder for each in found)
    shelf.discard()
    c = entry("c")
    assert list(home.iterdir()) == [c.folder]


def test_samples_in_use_stay_until_the_last_of_them_is_gone(home: Path, tmp_path: Path):
    def load() -> LoadedData:
        data = DataOptions(dataset=[str(rows)], load_from_cache_file=True)
        return load_samples(data, TemplateOptions(), Renderer(tiny.tokenizer(), TemplateOptions()))

    rows = tiny.jsonl(tmp_path / "rows.jsonl", tiny.conversations(5))
    first, second = load(), load()
    for used in (first, second):
        make_room(home, 0, lambda: home / ".aside")
        assert len(list(home.iterdir())) == 1
        assert used.train[0].input_ids
    del first
    gc.collect()
    make_room(home, 0, lambda: home / ".aside")
    assert len(list(home.iterdir())) == 1
    del second, used
    gc.collect()
    make_room(home, 0, lambda: home / ".aside")
    assert list(home.iterdir()) == []


def test_what_another_process_uses_stays_until_it_ends_however_it_ends(home: Path):
    found = entry("a")
    line = [sys.executable, "-c", HOLDER, str(found.folder)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        make_room(home, 0, lambda: home / ".aside")
        assert (found.folder / "rows.bin").exists()
        process.kill()
    make_room(home, 0, lambda: home / ".aside")
    assert list(home.iterdir()) == []
    assert hold(found.folder) is None


def test_an_entry_that_goes_between_looking_and_locking_is_not_there(home: Path, monkeypatch: pytest.MonkeyPatch):
    def late(descriptor: int, kind: int) -> None:
        found.folder.rename(home / ".aside")
        flock(descriptor, kind)

    found, flock = entry("a"), room.fcntl.flock
    monkeypatch.setattr(room.fcntl, "flock", late)
    assert hold(found.folder) is None


def test_without_locks_everything_can_be_used_and_nothing_goes(home: Path, monkeypatch: pytest.MonkeyPatch):
    def none(descriptor: int, kind: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(room.fcntl, "flock", none)
    monkeypatch.setenv("SWIFT_CACHE_LIMIT", str(SIZE / 1e9 / 2))
    entries = [entry(name) for name in "ab"]
    assert sorted(home.iterdir()) == sorted(each.folder for each in entries)


def test_what_is_half_removed_is_swept_and_is_no_entry(home: Path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    found = entry("a")
    half = found.folder.rename(home / f".making-{machine()}-{ended.pid}-00")
    make_room(home, 0, lambda: home / ".aside")
    assert half.exists()
    b = entry("b")
    assert list(home.iterdir()) == [b.folder]


def test_a_bound_that_is_no_number_is_an_error_before_anything_is_made(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SWIFT_CACHE_LIMIT", "much")
    with pytest.raises(UsageError, match="SWIFT_CACHE_LIMIT must be a number"):
        entry("a")
    assert not home.exists()
