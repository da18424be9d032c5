"""What is written beside the code is true: examples parse, marks name parameters, links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from swift.cli import COMMANDS as ENTRIES
from swift.commands import manual
from swift.core import environment
from swift.options.declare import flags
from swift.options.parse import COMMANDS, parse

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
FOLDERS, FILES = ("model", "adapters"), ("dataset", "val_dataset")


def first_line_command(path: Path) -> tuple[str, str]:
    """The command and the file that the first line of an example names: `# swift sft --config examples/x.yaml`."""
    words = path.read_text(encoding="utf-8").splitlines()[0].split()
    assert words[:2] == ["#", "swift"], f"{path.name} does not begin with the command that runs it"
    assert words[3] == "--config"
    return words[2], words[4]


def make_what_it_names(example: dict, folder: Path) -> None:
    """Empty folders and files where an example expects models and rows."""
    for flag in FOLDERS + FILES:
        value = example.get(flag, [])
        for text in [value] if isinstance(value, str) else value:
            path = folder / text.partition("#")[0]
            if flag in FOLDERS:
                path.mkdir(parents=True)
            else:
                path.touch()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_parses(path, tmp_path, monkeypatch):
    command, named = first_line_command(path)
    example = yaml.safe_load(path.read_text(encoding="utf-8"))
    make_what_it_names(example, tmp_path)
    monkeypatch.chdir(tmp_path)
    values = parse(command, ["--config", str(path)]).values()
    assert (ROOT / named) == path
    assert set(example) <= {name for name in values if values[name] not in (None, [])}


def test_there_are_examples():
    assert {first_line_command(path)[0] for path in EXAMPLES} >= {"pt", "sft", "infer", "export"}


def test_every_mark_names_a_parameter(capsys):
    known = {name for command in COMMANDS.values() for name in flags(command)}
    known |= {variable.name for variable in environment.MANUAL}
    shown = manual.tested(ROOT / "tests")
    with capsys.disabled():
        print(f"\n{len(known & set(shown))} of {len(known)} parameters have a test that shows their effect")
    assert set(shown) - known == set()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    targets = [target for target in LINK.findall(path.read_text(encoding="utf-8")) if "://" not in target]
    assert [target for target in targets if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("name", ENTRIES)
def test_every_command_has_a_page_that_tells_its_state(name):
    page = (ROOT / "docs" / "commands" / f"{name}.md").read_text(encoding="utf-8")
    assert ("not available yet" in page.split("\n\n", 2)[1].lower()) == (ENTRIES[name].run is None)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_flags_in_the_words_exist(path):
    known = {name for command in COMMANDS.values() for name in flags(command)}
    known |= {"help", "version", "lang", "why"} | {"tiny", "steps", "json"}  # the last three of swift prove
    text = path.read_text(encoding="utf-8")
    assert set(re.findall(r"(?<![\w-])--([a-z][a-z0-9_]+)(?![\w-])", text)) - known == set()
