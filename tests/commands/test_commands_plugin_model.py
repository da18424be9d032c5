"""The example of a model of one's own is trained, saved and talked to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

import tiny
from swift.commands import infer, sft
from swift.options.parse import parse

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugins" / "model.py"
pytestmark = [pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"), pytest.mark.slow]


@pytest.mark.parameter("external_plugins")
@pytest.mark.parameter("init_strategy")
@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_the_example_learns_its_matrix_and_its_checkpoints_are_read_again(tmp_path, tuner):
    folder = tiny.checkpoint(tmp_path / "model", chat_template=None)
    rows = tiny.jsonl(tmp_path / "rows.jsonl", tiny.conversations(4))
    line = ["--model", str(folder), "--dataset", str(rows), "--output_dir", str(tmp_path / "out"), "--max_steps", "2",
            "--split_dataset_ratio", "0", "--dataloader_num_workers", "0", "--report_to", "none", "--learning_rate",
            "1e-2", "--external_plugins", str(EXAMPLE), "--model_type", "tinted", "--init_strategy", "zero",
            "--tuner_type", tuner, *(["--modules_to_save", "tint"] if tuner == "lora" else [])]  # fmt: skip
    last = sft.run(parse("sft", line))
    assert isinstance(last, Path)
    name = "model.safetensors" if tuner == "full" else "adapter_model.safetensors"
    tints = [value for name, value in load_file(last / name).items() if "tint.weight" in name]
    assert len(tints) == 1
    assert bool(tints[0].any()), "the new matrix has learnt"

    asked = tiny.jsonl(tmp_path / "asked.jsonl", [{"messages": [{"role": "user", "content": "What is two?"}]}])
    result = tmp_path / "result.jsonl"
    named = ["--model", str(last)] if tuner == "full" else ["--adapters", str(last), "--init_strategy", "zero"]
    infer.run(parse("infer", [*named, "--val_dataset", str(asked), "--result_path", str(result), "--max_new_tokens", "3",
                              "--temperature", "0"]))  # fmt: skip
    assert "response" in json.loads(result.read_text().splitlines()[0])
