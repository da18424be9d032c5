"""What a command reads is there and what it writes has room, before anything heavy is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from swift.core.errors import UsageError
from swift.options.parse import parse

LONG = "a" * 5000
SFT = ["--model", "owner/name"]
INFER = ["--model", "owner/name", "--val_dataset", "rows.jsonl"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"text": "hello"}\n')
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "empty").mkdir()
    return tmp_path


def refused(name: str, argv: list[str], language: str = "en") -> list[str]:
    """What is refused of a command that is about to run, and is fine as long as it is not."""
    parse(name, argv, language)
    with pytest.raises(UsageError) as caught:
        parse(name, argv, language, runs=True)
    return list(caught.value.problems)


@pytest.mark.parameter("dataset")
@pytest.mark.parametrize(
    "name", ["./rows", "rows.json", "no/such/rows.jsonl", "/rows", "rows.csv#5", "./rows:main#5", LONG]
)
def test_a_data_set_that_can_only_be_a_path_must_be_there(name):
    (text,) = refused("sft", [*SFT, "--dataset", "rows.jsonl", name])
    assert text.startswith(f"--dataset {name[:100]}")
    assert len(text) < 300


@pytest.mark.parametrize(
    "name", ["rows.jsonl", "rows.jsonl#1", "./rows.jsonl", "full", "owner/rows", "rows", "hf::./rows"]
)
def test_what_is_there_or_may_be_on_a_hub_is_left_alone(name):
    parse("sft", [*SFT, "--dataset", name], runs=True)


def test_a_name_that_a_plugin_or_a_file_may_register_is_left_alone(folder):
    (folder / "plugin.py").touch()
    (folder / "info.json").write_text("[]")
    parse("sft", [*SFT, "--dataset", "my.jsonl", "--external_plugins", "plugin.py"], runs=True)
    parse("sft", [*SFT, "--dataset", "my.jsonl", "--custom_dataset_info", "info.json"], runs=True)


def test_a_check_reports_on_rows_by_itself():
    parse("sft", [*SFT, "--dataset", "./rows", "--dry_run", "true"], runs=True)


def test_all_mistakes_are_told_at_once_and_in_chinese(folder):
    (text, other) = refused("sft", [*SFT, "--dataset", "./gone", "--output_dir", "rows.jsonl"], "zh")
    assert text == "--dataset ./gone：文件或目录不存在。"
    assert other == "--output_dir rows.jsonl 无法写入：它是一个文件。请换一个路径。"


@pytest.mark.parameter("output_dir")
@pytest.mark.parameter("exist_ok")
def test_an_export_is_not_mixed_with_what_is_in_a_folder(folder):
    words = ["--model", "owner/name", "--to_cached_dataset", "true", "--dataset", "rows.jsonl", "--output_dir"]
    (text,) = refused("export", [*words, "full"])
    assert text.startswith("--output_dir full exists and is not empty.")
    for more in (["empty"], ["new"], ["full", "--exist_ok", "true"]):
        parse("export", [*words, *more], runs=True)


@pytest.mark.parameter("result_path")
@pytest.mark.parametrize(("path", "why"), [
    (LONG, "File name too long"), ("full", "it is a folder"), ("rows.jsonl/replies.jsonl", "rows.jsonl is a file"),
])  # fmt: skip
def test_results_that_cannot_be_written_are_refused_before_there_are_any(folder, path, why):
    (text,) = refused("infer", [*INFER, "--result_path", path])
    assert text.startswith(f"--result_path {path[:100]}")
    assert why in text
    assert len(text) < 300
    assert {child.name for child in folder.iterdir()} == {"rows.jsonl", "full", "empty"}


def test_results_are_added_to_a_file_or_make_their_folders():
    for path in ("rows.jsonl", "new.jsonl", "a/b/new.jsonl", "/dev/null"):
        parse("infer", [*INFER, "--result_path", path], runs=True)


def test_a_folder_that_may_not_be_written_is_refused(folder, monkeypatch):
    monkeypatch.setattr("swift.options.rules_paths.os.access", lambda path, _: path != folder / "empty")
    (text,) = refused("infer", [*INFER, "--result_path", "empty/new/replies.jsonl"])
    assert f"{folder / 'empty'} may not be written" in text


@pytest.mark.parametrize(("name", "words"), [
    ("sft", [*SFT, "--dataset", "rows.jsonl", "--output_dir"]), ("sft", [*SFT, "--dataset", "rows.jsonl", "--logging_dir"]),
    ("sft", ["--dataset", "rows.jsonl", "--model"]), ("sft", [*SFT, "--dataset"]), ("infer", [*INFER, "--adapters"]),
    ("infer", [*INFER, "--result_path"]), ("sft", [*SFT, "--dataset", "rows.jsonl", "--resume_from_checkpoint"]),
])  # fmt: skip
def test_the_home_of_nobody_is_an_error_of_its_own(folder, name, words):
    for runs in (False, True):
        with pytest.raises(UsageError) as caught:
            parse(name, [*words, "~nobody-of-this-name/x"], runs=runs)
        (text,) = caught.value.problems
        assert text.startswith(f"{words[-1]} ~nobody-of-this-name/x: ~nobody-of-this-name is no home folder")
    assert {child.name for child in folder.iterdir()} == {"rows.jsonl", "full", "empty"}


def test_missing_rows_are_refused_without_torch():
    words = ["sft", *SFT, "--dataset", "./gone.jsonl"]
    code = f"import sys; from swift.cli import main; code = main({words!r}); print(code, 'torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "--dataset ./gone.jsonl: there is no such file or folder." in ran.stderr
    assert ran.stdout.split() == ["2", "False"]
