"""Optimizers and callbacks from a command line to checkpoints, and on from there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tiny
from swift.commands import sft
from swift.core.errors import UsageError
from swift.options.parse import parse

PLUGINS = Path(__file__).parents[2] / "examples" / "plugins"
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("optimizers")
    tiny.checkpoint(folder / "model")
    tiny.jsonl(folder / "rows.jsonl", tiny.conversations(16))
    return folder


def train(place: Path, output: Path, *words: str) -> Path:
    line = ["--model", str(place / "model"), "--dataset", str(place / "rows.jsonl"), "--output_dir", str(output),
            "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "1", "--logging_steps", "1",
            "--dataloader_num_workers", "0", "--report_to", "none", "--add_version", "false", *words]  # fmt: skip
    usual = {"--max_steps": "4", "--save_steps": "2", "--learning_rate": "1e-3"}
    line += [word for flag, value in usual.items() if flag not in words for word in (flag, value)]
    last = sft.run(parse("sft", line))
    assert isinstance(last, Path)
    return last


def state(checkpoint: Path) -> dict:
    return torch.load(checkpoint / "optimizer.pt", weights_only=True)


FULL = ("--tuner_type", "full")


@pytest.mark.parametrize(
    ("words", "made_by"),
    [
        (("--lorap_lr_ratio", "16"), "AdamW"),
        (("--optimizer", "muon", "--optim_args", "momentum=0.9"), "Muon"),
        ((*FULL, "--use_galore", "true", "--galore_rank", "4", "--galore_update_proj_gap", "2"), "GaLore"),
        ((*FULL, "--use_galore", "true", "--galore_rank", "4", "--galore_quantization", "true", "--galore_proj_quant",
          "true", "--galore_optim_per_parameter", "true"), "GaLore"),
        ((*FULL, "--optim", "adafactor"), "Adafactor"),
        (("--optimizer", "sign", "--external_plugins", str(PLUGINS / "optimizer.py")), "SignDescent"),
    ],
    ids=["lora plus", "muon", "galore", "q-galore", "adafactor", "plugin"],
)  # fmt: skip
def test_a_command_line_trains_and_resumes_to_the_same_weights(place, tmp_path, words, made_by):
    whole = train(place, tmp_path / "whole", *words)
    assert state(whole)["made_by"] == made_by
    resumed = train(place, tmp_path / "resumed", *words, "--resume_from_checkpoint", str(whole.parent / "checkpoint-2"))
    name = "model.safetensors" if "full" in words else "adapter_model.safetensors"
    first, second = (load_file(checkpoint / name) for checkpoint in (whole, resumed))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_an_option_that_is_an_optimizer_is_noted_with_the_checkpoint(place, tmp_path):
    last = train(place, tmp_path, "--lorap_lr_ratio", "16", "--max_steps", "2")
    assert json.loads((last / "args.json").read_text())["optimizer"] == "lorap"
    assert [group["initial_lr"] for group in state(last)["param_groups"]] == pytest.approx([1e-3, 16e-3])


def test_a_plugin_may_watch_a_run_and_end_it(place, tmp_path):
    last = train(place, tmp_path, "--callbacks", "enough", "--external_plugins", str(PLUGINS / "callback.py"))
    logged = [json.loads(line) for line in (last.parent / "logging.jsonl").read_text().splitlines()]
    assert all("perplexity" in entry for entry in logged if "loss" in entry)


def test_a_run_is_stopped_early(place, tmp_path):
    last = train(place, tmp_path, "--split_dataset_ratio", "0.25", "--save_steps", "1", "--early_stop_interval", "1",
                 "--learning_rate", "1e-30", "--max_steps", "9")  # fmt: skip
    assert last.name == "checkpoint-2"


def test_names_are_looked_up_before_the_model_is_loaded(place, tmp_path):
    with pytest.raises(UsageError, match=r"Unknown optimizer 'sing'\. Did you mean sign"):
        train(place, tmp_path, "--optimizer", "sing", "--external_plugins", str(PLUGINS / "optimizer.py"))
    with pytest.raises(UsageError, match="there is no such optimizer"):
        train(place, tmp_path, "--optimizer", "sing")
    with pytest.raises(UsageError, match=r"--optimizer muon has no such setting\. Did you mean momentum"):
        train(place, tmp_path, "--optimizer", "muon", "--optim_args", "momentun=1")
