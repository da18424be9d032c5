"""What a user is told who does something wrong: the whole text, kept in tests/commands/misuse/.

Each case runs `swift` in this process. Paths of the temporary folder are shown as `.`; set SWIFT_UPDATE_SNAPSHOTS=1
to write the texts anew after a change of wording, and read the difference.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import tiny
from swift import cli

TEXTS = Path(__file__).parent / "misuse"
QUICK = [
    "--max_steps",
    "1",
    "--gradient_accumulation_steps",
    "1",
    "--dataloader_num_workers",
    "0",
    "--report_to",
    "none",
]


def good_rows(folder: Path) -> None:
    tiny.checkpoint(folder / "model")
    tiny.jsonl(folder / "rows.jsonl", tiny.conversations(6))


def sft(*more: str) -> list[str]:
    return ["sft", "--model", "model", "--dataset", "rows.jsonl", *QUICK, *more]


def nothing(_: Path) -> None:
    """The good folder is misused by its command line alone."""


def malformed_line(folder: Path) -> None:
    lines = (folder / "rows.jsonl").read_text().splitlines()
    (folder / "rows.jsonl").write_text(
        "\n".join([*lines[:3], '{"messages": [{"role": "user", "content": "cut', *lines[3:]])
    )


def wrong_role(folder: Path) -> None:
    rows = tiny.conversations(4)
    rows[1]["messages"][0]["role"] = "usr"
    tiny.jsonl(folder / "rows.jsonl", rows)


def wrong_order(folder: Path) -> None:
    rows = tiny.conversations(4)
    rows[2]["messages"] = [
        {"role": "assistant", "content": "Four."},
        {"role": "user", "content": "What is two and two?"},
        {"role": "assistant", "content": "Four."},
    ]
    tiny.jsonl(folder / "rows.jsonl", rows)


def no_weights(folder: Path) -> None:
    (folder / "model" / "model.safetensors").unlink()


def truncated_weights(folder: Path) -> None:
    file = folder / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def no_checkpoint(folder: Path) -> None:
    (folder / "empty").mkdir()


def adapter_as_model(folder: Path) -> None:
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "model"}))


def a_file_in_the_way(folder: Path) -> None:
    (folder / "taken").write_text("a file")


def competing_columns(folder: Path) -> None:
    tiny.jsonl(folder / "rows.jsonl", [{"query": "What?", "answer": "This.", "output": "That."}])


CASES: dict[str, tuple[Callable[[Path], None], list[str], int]] = {
    "misspelt flag": (nothing, sft("--lerning_rate", "1e-3"), 2),
    "misspelt value": (nothing, sft("--tuner_type", "lorra"), 2),
    "flag without effect": (nothing, sft("--tuner_type", "full", "--lora_rank", "16"), 2),
    "feature not there yet": (nothing, ["export", "--model", "model", "--to_mcore", "true"], 2),
    "renamed flag": (nothing, sft("--train_type", "full"), 2),
    "no model": (nothing, ["sft", "--dataset", "rows.jsonl"], 2),
    "no dataset": (nothing, ["sft", "--model", "model"], 2),
    "missing file": (nothing, ["sft", "--model", "model", "--dataset", "nowhere.jsonl", *QUICK], 2),
    "malformed line with strict": (malformed_line, sft("--strict", "true"), 1),
    "wrong role with strict": (wrong_role, sft("--strict", "true"), 1),
    "wrong role order with strict": (wrong_order, sft("--strict", "true"), 1),
    "only over-long rows": (nothing, sft("--max_length", "4"), 1),
    "competing columns": (competing_columns, sft(), 1),
    "folder without weights": (no_weights, sft(), 1),
    "truncated safetensors": (truncated_weights, sft(), 1),
    "truncated safetensors unchecked": (truncated_weights, sft("--check_model", "false"), 1),
    "adapter as model": (adapter_as_model, ["sft", "--model", "adapter", "--dataset", "rows.jsonl", *QUICK], 1),
    "unknown template": (nothing, sft("--template", "qwen3x"), 2),
    "output folder is a file": (a_file_in_the_way, sft("--output_dir", "taken"), 2),
    "resume from a folder that is none": (no_checkpoint, sft("--resume_from_checkpoint", "empty"), 1),
    "resume from nowhere": (nothing, sft("--resume_from_checkpoint", "nowhere/checkpoint-5"), 2),
    "export of nothing": (nothing, ["export", "--model", "model"], 2),
    "merge without adapter": (nothing, ["merge-lora", "--model", "model"], 2),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_answered_with_one_clear_text(case, tmp_path, monkeypatch, capsys):
    make, argv, code = CASES[case]
    good_rows(tmp_path)
    make(tmp_path)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert cli.main(argv) == code
    said = "\n".join(
        line
        for line in capsys.readouterr().err.replace(str(tmp_path), ".").splitlines()
        if not line.startswith("[swift]")
    )
    assert "Traceback" not in said
    said = re.sub(r"There are: .*", "There are: ...", said)  # plugins of other tests may have added names
    snapshot = TEXTS / f"{case.replace(' ', '_')}.txt"
    if os.environ.get("SWIFT_UPDATE_SNAPSHOTS"):
        TEXTS.mkdir(exist_ok=True)
        snapshot.write_text(said + "\n", encoding="utf-8")
    assert said + "\n" == snapshot.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("make", "reason"), [(malformed_line, "rows.jsonl:4"), (wrong_role, "usr"), (wrong_order, "assistant")]
)
def test_bad_rows_are_reported_and_counted_and_the_rest_is_trained_on(make, reason, tmp_path, monkeypatch, capsys):
    good_rows(tmp_path)
    make(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert cli.main(sft()) == 0
    said = capsys.readouterr().err
    assert reason in said
    assert list(tmp_path.glob("output/model/v0-*/checkpoint-1/adapter_model.safetensors"))
