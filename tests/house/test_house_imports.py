"""Which package stands on which, and what may be imported before there is anything to compute."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from swift.catalog import components
from swift.core.registry import Registry

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "datasets", "numpy", "peft", "accelerate", "yaml", "pyarrow", "matplotlib")


def loaded_after(code: str) -> set[str]:
    """The top-level modules a fresh interpreter holds after running `code`."""
    report = f"{code}\nimport json, sys\nprint(json.dumps(sorted({{n.partition('.')[0] for n in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_every_floor_stands_on_the_ones_below_it():
    lint = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([lint], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "code",
    [
        "import swift",
        "import swift.cli",
        "import swift.catalog.components, swift.catalog.layouts",
        "import swift.cli; swift.cli.main(['--help'])",
        "import swift.cli; swift.cli.main(['sft', '--help'])",
        "import swift.cli; swift.cli.main(['sft', '--lerning_rate', '1'])",
    ],
)
def test_help_and_mistakes_cost_no_heavy_import(code):
    assert loaded_after(code) & set(HEAVY) == set()


def test_the_probe_sees_what_is_imported():
    assert "numpy" in loaded_after("import numpy")


@pytest.mark.parametrize(
    ("table", "name"),
    [
        (table, name)
        for table, registry in vars(components).items()
        if isinstance(registry, Registry)
        for name in registry
    ],
)
def test_every_name_of_the_catalog_stands_for_something(table, name):
    assert callable(vars(components)[table][name])
