"""`swift check` and `--dry_run true` as commands: exit codes, what is printed, the page for a browser."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import tiny
from swift import cli
from swift.commands import check
from swift.options.parse import parse


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("check")
    tiny.checkpoint(folder / "model")
    rows = tiny.conversations(12)
    tiny.jsonl(folder / "rows.jsonl", rows)
    tiny.jsonl(folder / "twice.jsonl", [*rows, rows[0]])
    return folder


def line(place: Path, rows: str = "rows.jsonl") -> list[str]:
    return ["--model", str(place / "model"), "--dataset", str(place / rows), "--output_dir", str(place / "out"),
            "--report_to", "none"]  # fmt: skip


def test_a_good_run_is_checked_with_exit_code_0_and_leaves_nothing_behind(place, capsys):
    assert cli.main(["check", "sft", *line(place)]) == 0
    page = capsys.readouterr().out
    assert re.search(r"All \d+ proofs hold", page)
    assert "⟦It is 0.<|im_end|>⟧" in page
    assert f"{place}/rows.jsonl:1" in page
    assert "\033[" not in page
    assert sorted(child.name for child in place.iterdir()) == ["model", "rows.jsonl", "twice.jsonl"]


def test_a_failed_proof_is_exit_code_1_and_stands_at_the_end_with_what_to_do(place, capsys):
    assert cli.main(["check", "sft", *line(place, "twice.jsonl")]) == 1
    page = capsys.readouterr().out
    verdict = page[page.index("1 of ") :]
    assert "training rows differ from each other" in verdict
    assert "Remove the repetitions" in verdict


def test_a_wrong_command_line_is_exit_code_2(place, capsys):
    assert cli.main(["check", "sft", *line(place), "--lora_rnk", "3"]) == 2
    assert "did you mean --lora_rank?" in capsys.readouterr().err
    assert cli.main(["check", "infer"]) == 2
    assert "pt, sft, rlhf" in capsys.readouterr().err
    assert cli.main(["check", "sft", *line(place), "--dry_run", "false"]) == 2
    assert cli.main(["sft", *line(place), "--html", "page.html"]) == 2
    assert "--html page.html has no effect here" in capsys.readouterr().err


@pytest.mark.parameter("dry_run")
def test_a_dry_run_is_the_same_check_and_trains_nothing(place, capsys):
    cli.main(["check", "sft", *line(place)])
    checked = capsys.readouterr().out
    assert cli.main(["sft", *line(place), "--dry_run", "true"]) == 0
    assert capsys.readouterr().out == checked
    assert not (place / "out").exists()


def test_a_dry_run_is_told_in_python_by_its_exit_code(place):
    from swift import sft_main

    assert sft_main([*line(place, "twice.jsonl"), "--dry_run", "true"]) == 1


def test_a_method_that_cannot_be_run_yet_is_looked_at(place, tmp_path, capsys):
    rows = [{**row, "rejected_response": "I do not know."} for row in tiny.conversations(4)]
    tiny.jsonl(tmp_path / "rows.jsonl", rows)
    words = ["--model", str(place / "model"), "--dataset", str(tmp_path / "rows.jsonl"), "--report_to", "none"]
    assert cli.main(["check", "rlhf", "--rlhf_type", "dpo", *words]) == 1
    page = capsys.readouterr().out
    assert "not available yet: swift rlhf" in page
    assert "⟦I do not know.<|im_end|>⟧" in page


class _Page(HTMLParser):
    """The texts of a page: all of it, and what is marked."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.marked: list[str] = []
        self.outside: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        if tag not in {"meta", "br"}:
            self.open.append(tag)
        self.outside += [value for name, value in attrs if name in {"src", "href"}]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, "every element is closed where it belongs"

    def handle_data(self, data):
        self.text += data
        if "mark" in self.open:
            self.marked.append(data)


@pytest.mark.parameter("html")
def test_the_page_for_a_browser_says_the_same_and_needs_nothing_from_outside(place, tmp_path, capsys):
    file = tmp_path / "pages" / "check.html"
    assert cli.main(["check", "sft", *line(place, "twice.jsonl"), "--html", str(file)]) == 1
    printed = capsys.readouterr().out
    text = file.read_text(encoding="utf-8")
    page = _Page()
    page.feed(text)
    assert page.open == []
    assert page.outside == []
    assert "url(" not in text
    assert "@import" not in text
    assert "It is 0.<|im_end|>" in page.marked  # escaped in the source, so a browser shows it as it is
    assert "prefers-color-scheme: dark" in text
    for title in re.findall(r"^(?!Check of)([A-Z][a-z]+(?: [a-z]+){0,3})$", printed, re.MULTILINE):
        assert title in page.text
    for claim in re.findall(r"^  (?:holds |FAILED)  ([^:]+):", printed, re.MULTILINE):
        assert claim in page.text


def test_learnt_text_is_green_on_a_terminal(place, capsys, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    check.run(parse("sft", [*line(place), "--dry_run", "true"]))
    page = capsys.readouterr().out
    assert "\033[32mIt is 0.<|im_end|>\033[0m" in page
    assert "⟦" not in page


def test_a_secret_is_not_shown(place, capsys):
    assert cli.main(["check", "sft", *line(place), "--hub_token", "hush-hush"]) == 0
    page = capsys.readouterr().out
    assert "hub_token" in page
    assert "hush-hush" not in page
