"""Rows are prepared by one process of a node, and used by all."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import tiny

pytestmark = pytest.mark.slow

SCRIPT = """
import os, sys
from pathlib import Path
import tiny
from swift.chat.render import Renderer
from swift.core.errors import SwiftError
from swift.data.encode import load_samples
from swift.options.data import DataOptions
from swift.options.general import GeneralOptions
from swift.options.template import TemplateOptions
from swift.trainers import processes

folder, rows = Path(sys.argv[1]), sys.argv[2]
processes.join(GeneralOptions(), "cpu")
template = TemplateOptions()

def make():
    (folder / f"made-{os.environ['RANK']}").touch()
    options = DataOptions(dataset=[rows], split_dataset_ratio=0.25)
    return load_samples(options, template, Renderer(tiny.tokenizer(), template))

try:
    data = processes.made_once(make, 60.0)
except SwiftError as error:
    print(error)
    sys.exit(1)
ids = [data.train[i].input_ids for i in range(len(data.train))]
(folder / f"used-{os.environ['RANK']}").write_text(f"{ids} {len(data.val)} {data.report.read}")
processes.leave()
"""


def launch(folder: Path, rows: Path) -> subprocess.CompletedProcess[str]:
    script = folder / "script.py"
    script.write_text(SCRIPT)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(tiny.__file__).parent)}
    return subprocess.run([*line, str(script), str(folder), str(rows)], capture_output=True, text=True,
                          env=environment, check=False)  # fmt: skip


def test_one_process_prepares_and_both_use_the_same_samples(tmp_path: Path):
    done = launch(tmp_path, tiny.jsonl(tmp_path / "rows.jsonl", tiny.conversations(20)))
    assert done.returncode == 0, done.stderr[-3000:]
    assert [path.name for path in tmp_path.glob("made-*")] == ["made-0"]
    used = [(tmp_path / f"used-{rank}").read_text() for rank in (0, 1)]
    assert used[0] == used[1]
    assert used[0].endswith(" 5 20")


def test_a_mistake_in_the_rows_is_said_once(tmp_path: Path):
    done = launch(tmp_path, tiny.jsonl(tmp_path / "rows.jsonl", [{"nothing": 1}]))
    assert done.returncode != 0
    assert done.stdout.count("none of its 1 rows can be used") == 1
