"""The pages of help, the schema, and `swift args`."""

from __future__ import annotations

import json

import pytest

from swift import cli
from swift.options.declare import flags
from swift.options.parse import COMMANDS
from swift.options.schema import schema


def output(capsys, *argv: str) -> str:
    assert cli.main(list(argv)) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_the_overview_names_every_command(capsys, argv):
    text = output(capsys, *argv)
    assert all(f"  {name} " in text for name in cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_help_of_a_command_shows_every_option_with_its_default(capsys, name):
    text = output(capsys, name, "--help")
    assert all(f"--{flag}  " in text for flag in flags(COMMANDS[name]))
    assert text.count("[default") == len(flags(COMMANDS[name]))


def test_important_options_come_first_in_their_group(capsys):
    text = output(capsys, "sft", "--help")
    group = text[text.index("\nTuner\n") :].split("\n\n")[0]
    stars = [line.startswith("*") for line in group.splitlines() if line.startswith(("*", "  --"))]
    assert stars == sorted(stars, reverse=True)
    assert stars[0]


def test_the_help_can_be_searched(capsys):
    text = output(capsys, "sft", "--help", "dora")
    assert "--use_dora" in text
    assert "--learning_rate" not in text
    assert "did you mean --lora_rank?" in output(capsys, "sft", "--help", "lora_rnk")


def test_headings_come_in_chinese(capsys):
    assert "命令" in output(capsys, "--help", "--lang", "zh")
    assert "训练方式" in output(capsys, "sft", "--help", "--lang", "zh")


def test_the_language_follows_the_environment(capsys, monkeypatch):
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")
    assert "命令" in output(capsys, "--help")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_schema_describes_every_option(name):
    made = schema(COMMANDS[name])
    assert set(flags(COMMANDS[name])) <= set(made["properties"])
    assert all(entry["description"] for entry in made["properties"].values())
    json.dumps(made)


def test_the_schema_knows_types_and_choices(capsys):
    made = json.loads(output(capsys, "schema", "sft"))["properties"]
    assert "lora" in made["tuner_type"]["anyOf"][0]["enum"]
    assert "peft" in made["tuner_backend"]["enum"]
    assert made["lora_rank"]["type"] == "integer"
    assert made["dataset"]["anyOf"][0]["type"] == "array"


def test_args_prints_each_value_with_its_source(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    (tmp_path / "d.jsonl").write_text('{"text": "hello"}\n')
    argv = ["args", "sft", "--model", "m", "--dataset", "d.jsonl", "--lora_rank", "4"]
    text = output(capsys, *argv)
    line = next(line for line in text.splitlines() if line.split()[:1] == ["lora_rank"])
    assert line.split() == ["lora_rank", "=", "4", "<-", "command", "line"]
    why = output(capsys, *argv, "--why", "learning_rate")
    assert why.startswith("learning_rate = 0.0001\n  rule: ")
    assert cli.main([*argv, "--why", "learning_rat"]) == 2


def test_the_version_is_told(capsys):
    assert output(capsys, "--version").startswith("swiftlet 0.")
