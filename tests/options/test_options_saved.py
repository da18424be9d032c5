"""args.json: what is written beside a checkpoint and what comes back."""

from __future__ import annotations

import json

import pytest

from swift.core.errors import UsageError
from swift.options.declare import Origin
from swift.options.parse import parse
from swift.options.saved import write_args


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A folder with the args.json of a training run on m and d.jsonl."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    (tmp_path / "d.jsonl").write_text('{"text": "hello"}\n')
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    argv = ["--model", "m", "--dataset", "d.jsonl#5", "--system", "Be brief.", "--torch_dtype", "float32"]
    command = parse("sft", [*argv, "--split_dataset_ratio", "0.5"])
    write_args(command.replace({"hub_token": "abc"}, {}), folder)
    return folder


def test_values_and_sources_are_kept_and_secrets_are_not(trained):
    stored = json.loads((trained / "args.json").read_text())
    assert stored["system"] == "Be brief."
    assert stored["hub_token"] is None
    assert stored["model"] == str((trained.parent / "m").resolve())
    assert stored["dataset"] == [str((trained.parent / "d.jsonl").resolve()) + "#5"]
    assert stored["swiftlet"]["sources"]["system"] == "command line"
    assert stored["swiftlet"]["sources"]["learning_rate"].startswith("rule: ")


@pytest.mark.parameter("load_args")
def test_inference_reads_back_what_training_used_unless_told_otherwise(trained):
    command = parse("infer", ["--adapters", str(trained)])
    assert command.template.system == "Be brief."
    assert command.model.torch_dtype == "float32"
    assert command.sources["system"].origin is Origin.CHECKPOINT
    assert parse("infer", ["--adapters", str(trained), "--system", "Sing."]).template.system == "Sing."
    fresh = parse("infer", ["--adapters", str(trained), "--model", "m", "--load_args", "false"])
    assert fresh.template.system is None


@pytest.mark.parametrize("text", ["[1]", "{", ""])
def test_a_file_that_holds_no_options_is_named(trained, text):
    (trained / "args.json").write_text(text)
    with pytest.raises(UsageError, match=f"{trained / 'args.json'} cannot be read"):
        parse("infer", ["--adapters", str(trained)])


@pytest.mark.parameter("load_data_args")
def test_the_data_of_training_come_back_only_when_asked(trained):
    assert parse("infer", ["--adapters", str(trained)]).data.dataset == []
    command = parse("infer", ["--adapters", str(trained), "--load_data_args", "true"])
    assert command.data.dataset == [str((trained.parent / "d.jsonl").resolve()) + "#5"]
    assert command.data.split_dataset_ratio == 0.5


def test_training_does_not_read_back_by_itself(trained):
    (trained / "config.json").write_text("{}")
    argv = ["--model", str(trained), "--dataset", "d.jsonl"]
    assert parse("sft", argv).template.system is None
    assert parse("sft", [*argv, "--load_args", "true"]).template.system == "Be brief."
