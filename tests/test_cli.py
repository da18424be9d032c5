"""The command as a process: exit codes, speed of mistakes, nothing heavy imported."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from swift import cli
from swift.core.errors import DataError


def swift(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "swift", *argv], capture_output=True, text=True, check=False)


def test_a_misspelt_flag_is_answered_with_exit_code_2_and_without_a_traceback():
    result = swift("sft", "--lerning_rate", "1e-3")
    assert result.returncode == 2
    assert "unknown option --lerning_rate; did you mean --learning_rate?" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unknown_command_is_answered_with_the_nearest(capsys):
    assert cli.main(["stf"]) == 2
    assert "did you mean swift sft?" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name, entry in cli.COMMANDS.items() if entry.run is None])
def test_a_command_that_is_not_there_yet_says_so(capsys, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    (tmp_path / "d.jsonl").write_text('{"text": "hello"}\n')
    extra = {"rlhf": ["--dataset", "d.jsonl"], "eval": ["--eval_dataset", "x"], "sample": ["--dataset", "d.jsonl"]}
    assert cli.main([name, "--model", "m", *extra.get(name, [])]) == 2
    assert f"not available yet: swift {name}" in capsys.readouterr().err


def test_a_failed_run_says_one_thing_and_exits_1(capsys, monkeypatch):
    def fail(*_):
        raise DataError("rows.jsonl, line 3: no JSON")

    monkeypatch.setattr(cli, "_dispatch", fail)
    assert cli.main(["sft"]) == 1
    assert capsys.readouterr().err == "swift sft: rows.jsonl, line 3: no JSON\n"


def test_an_unexpected_error_leaves_its_traceback_in_a_file(capsys, monkeypatch):
    def fail(*_):
        raise KeyError("weights")

    monkeypatch.setattr(cli, "_dispatch", fail)
    assert cli.main(["sft"]) == 1
    message = capsys.readouterr().err
    file = message.strip().rsplit(" ", 1)[-1]
    assert "unexpected KeyError" in message
    assert "Traceback" not in message
    assert "Traceback" in Path(file).read_text(encoding="utf-8")


def test_an_interruption_exits_130(capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_dispatch", interrupt)
    assert cli.main(["sft"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_help_and_mistakes_import_nothing_heavy():
    code = (
        "import sys; from swift import cli; cli.main(['sft', '--help']); cli.main(['sft', '--lora_rnk', '3']);"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'peft', 'accelerate'} & set(sys.modules);"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_first_answers_come_before_one_could_import_torch():
    """A loose bound on a busy machine; the figures are in benchmarks/."""
    start = time.perf_counter()
    swift("sft", "--lora_rnk", "3")
    assert time.perf_counter() - start < 3
