"""Knobs of model families become environment variables, and those that nobody reads are told."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import tiny
from swift.core.logs import get_logger
from swift.launch import export_knobs
from swift.models.info import model_info
from swift.models.knobs import knobs_of
from swift.options.model import ModelOptions


@pytest.mark.parameter("model_kwargs")
def test_knobs_are_variables_in_capitals_and_go_before_those_of_the_shell(monkeypatch):
    for name in ("FPS", "CROP_MODE", "SIZES", "NOTE"):
        monkeypatch.setenv(name, "of the shell")
    export_knobs({"fps": 12, "Crop_Mode": True, "sizes": [1, 2], "note": "a b"})
    assert [os.environ[name] for name in ("FPS", "CROP_MODE", "SIZES", "NOTE")] == ["12", "true", "[1, 2]", "a b"]


@pytest.mark.parameter("model_kwargs")
def test_a_knob_that_the_family_lacks_is_warned_of_with_those_it_has(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(get_logger(), "propagate", True)
    caplog.set_level("INFO")
    folder = tiny.checkpoint(tmp_path / "m")
    model_info(ModelOptions(model=str(folder), model_kwargs={"max_pixls": 3, "swift_timeout": 9}))
    assert "model_kwargs: MAX_PIXLS = 3" in caplog.text
    assert "--model_kwargs max_pixls is no knob" in caplog.text
    assert "--model_kwargs swift_timeout is no knob" not in caplog.text
    assert knobs_of("ovis2") == {"MAX_PARTITION"}
    assert knobs_of(None) == knobs_of("qwen3") == frozenset()


@pytest.mark.slow
@pytest.mark.parameter("model_kwargs")
def test_code_that_a_command_imports_finds_its_knobs_set(tmp_path):
    plugin = tmp_path / "reads.py"
    plugin.write_text(
        "import os, pathlib\npathlib.Path(__file__).with_name('seen').write_text(os.environ['MY_KNOB'])\n"
    )
    folder = tiny.checkpoint(tmp_path / "m")
    rows = tiny.jsonl(tmp_path / "rows.jsonl", tiny.conversations(2))
    line = ["check", "sft", "--model", str(folder), "--dataset", str(rows), "--external_plugins", str(plugin),
            "--model_kwargs", '{"my_knob": 7}', "--output_dir", str(tmp_path / "out")]  # fmt: skip
    subprocess.run([sys.executable, "-m", "swift", *line], check=True, capture_output=True, timeout=300)
    assert (tmp_path / "seen").read_text() == "7"
