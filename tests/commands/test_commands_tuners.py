"""Every kind of adapter from a command line: trained, resumed, asked, merged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

import tiny
from swift.commands import export, infer, sft
from swift.core.errors import RunError
from swift.options.parse import parse
from trainers import runs

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
KINDS = {
    "adalora": ["--tuner_type", "adalora", "--adalora_init_r", "4", "--adalora_target_r", "2", "--adalora_tfinal", "1"],
    "vera": ["--tuner_type", "vera", "--vera_rank", "8"],
    "boft": ["--tuner_type", "boft", "--boft_block_num", "4"],
    "fourierft": ["--tuner_type", "fourierft", "--fourier_n_frequency", "100"],
    "bone": ["--tuner_type", "bone", "--init_weights", "bat", "--lora_rank", "16"],
    "lora-ga": ["--init_weights", "lora-ga", "--lora_rank", "2", "--lora_ga_max_length", "64"],
    "pissa": ["--init_weights", "pissa_niter_4", "--modules_to_save", "all-norm"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tuners")
    tiny.checkpoint(folder / "model")
    tiny.jsonl(folder / "rows.jsonl", tiny.conversations(16))
    return folder


def train(place: Path, output: Path, *words: str, rows: str = "rows.jsonl") -> Path:
    line = ["--model", str(place / "model"), "--dataset", str(place / rows), "--output_dir", str(output),
            "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2", "--max_steps", "4",
            "--save_steps", "2", "--learning_rate", "1e-2", "--dataloader_num_workers", "0", "--report_to", "none",
            "--add_version", "false", *words]  # fmt: skip
    last = sft.run(parse("sft", line))
    assert isinstance(last, Path)
    return last


@pytest.mark.slow
@pytest.mark.parameter("tuner_type")
@pytest.mark.parameter("resume_from_checkpoint")
@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_goes_its_whole_way(place, tmp_path, kind):
    whole = train(place, tmp_path / "whole", *KINDS[kind])
    halfway = whole.with_name("checkpoint-2")
    resumed = train(place, tmp_path / "resumed", *KINDS[kind], "--resume_from_checkpoint", str(halfway))
    name = "adapter_model.safetensors"
    assert runs.equal(load_file(resumed / name), load_file(whole / name))
    merged = export.run(parse("merge-lora", ["--adapters", str(whole), "--output_dir", str(tmp_path / "merged")]))
    replies = []
    for model in (["--adapters", str(whole)], ["--model", str(merged)]):
        file = tmp_path / f"{len(replies)}.jsonl"
        words = [*model, "--val_dataset", str(place / "rows.jsonl"), "--result_path", str(file), "--max_new_tokens", "8",
                 "--temperature", "0"]  # fmt: skip
        infer.run(parse("infer", words))
        replies.append([json.loads(line)["response"] for line in file.read_text().splitlines()])
    assert replies[0] == replies[1]


@pytest.mark.parameter("resume_from_checkpoint")
def test_adalora_is_not_resumed_without_its_state(place, tmp_path):
    last = train(place, tmp_path / "whole", *KINDS["adalora"])
    (last.with_name("checkpoint-2") / "adalora_state.safetensors").unlink()
    with pytest.raises(RunError, match=r"adalora_state\.safetensors"):
        train(
            place,
            tmp_path / "again",
            *KINDS["adalora"],
            "--resume_from_checkpoint",
            str(last.with_name("checkpoint-2")),
        )


@pytest.mark.slow
@pytest.mark.parameter("streaming")
def test_lora_ga_looks_at_the_first_rows_of_a_stream(place, tmp_path):
    train(place, tmp_path, *KINDS["lora-ga"], "--streaming", "true")


@pytest.mark.slow
@pytest.mark.parameter("adalora_orth_reg_weight")
def test_a_classifier_has_the_penalty_of_adalora_in_its_loss(place, tmp_path):
    rows = [{"messages": [{"role": "user", "content": f"How much is {i}?"}], "label": i % 3} for i in range(16)]
    tiny.jsonl(place / "classes.jsonl", rows)

    def first_loss(weight):
        words = ["--task_type", "seq_cls", "--num_labels", "3",
                 "--adalora_orth_reg_weight", weight, "--logging_steps", "1"]  # fmt: skip
        last = train(place, tmp_path / weight, *KINDS["adalora"], *words, rows="classes.jsonl")
        return json.loads((last.parent / "logging.jsonl").read_text().splitlines()[0])["loss"]

    assert first_loss("0.5") > first_loss("0") + 0.5
