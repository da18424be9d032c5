"""A path that somebody typed may be any text, and asking for it never fails."""

from __future__ import annotations

import pytest

from swift.core.paths import exists, is_dir, is_file, unknown_home, why_unusable

NO_PATHS = ["a" * 5000, "a/" * 5000, "nul\0", "~nobody-of-this-name/x"]


@pytest.mark.parametrize("text", NO_PATHS, ids=["long", "deep", "NUL", "unknown user"])
def test_a_text_that_can_be_no_path_names_nothing_and_says_why(text):
    assert not exists(text)
    assert not is_file(text)
    assert not is_dir(text)
    assert why_unusable(text)


def test_files_and_folders_are_found_from_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").touch()
    assert (is_file("~/file"), is_dir("~/file"), exists("~/file")) == (True, False, True)
    assert (is_file("~"), is_dir("~"), exists("~")) == (False, True, True)
    assert not exists("")


def test_what_is_not_there_yet_is_no_fault_of_its_name(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "new", tmp_path / "new" / "newer", tmp_path / "file" / "below", tmp_path):
        assert why_unusable(str(path)) is None


def test_only_the_home_of_a_user_who_is_not_there_is_unknown():
    assert unknown_home("~nobody-of-this-name/x") == "~nobody-of-this-name"
    assert [unknown_home(text) for text in ("~", "~/x", "~root/x", "a~nobody/x", "x")] == [None] * 5
