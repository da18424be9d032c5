"""Templates, families, loss weights and new tokens from a command line to checkpoints and replies, in this process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from swift.commands import export, infer, sft
from swift.core.errors import ModelError
from swift.options.parse import parse

PLUGINS = Path(__file__).parents[2] / "examples" / "plugins"
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("templates")
    tiny.checkpoint(folder / "Qwen3-0.6B-Base", chat_template=None)
    tiny.checkpoint(folder / "renamed", chat_template=None)
    tiny.checkpoint(folder / "model")
    tiny.jsonl(folder / "rows.jsonl", tiny.conversations(4))
    asked = [{"messages": [{"role": "user", "content": "What is two?"}]}]
    tiny.jsonl(folder / "asked.jsonl", asked)
    return folder


def train(place: Path, output: Path, *words: str, model: str = "model", data: Path | None = None) -> Path:
    line = ["--model", str(place / model), "--dataset", str(data or place / "rows.jsonl"), "--output_dir", str(output),
            "--max_steps", "1", "--split_dataset_ratio", "0", "--dataloader_num_workers", "0", "--report_to", "none",
            "--learning_rate", "1e-2", *words]  # fmt: skip
    last = sft.run(parse("sft", line))
    assert isinstance(last, Path)
    return last


def answer(place: Path, *words: str) -> dict:
    result = place / "result.jsonl"
    result.unlink(missing_ok=True)
    line = ["--val_dataset", str(place / "asked.jsonl"), "--result_path", str(result), "--max_new_tokens", "4",
            "--temperature", "0", *words]  # fmt: skip
    infer.run(parse("infer", line))
    return json.loads(result.read_text(encoding="utf-8").splitlines()[0])


@pytest.mark.parameter("model_type")
@pytest.mark.parameter("template")
def test_a_checkpoint_without_template_takes_the_layout_of_its_name_and_saves_it(place, tmp_path):
    last = train(place, tmp_path, model="Qwen3-0.6B-Base")
    saved = AutoTokenizer.from_pretrained(last)
    text = saved.apply_chat_template([{"role": "user", "content": "Q"}], tokenize=False, enable_thinking=False,
                                     add_generation_prompt=True)  # fmt: skip
    assert text == "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert "response" in answer(place, "--adapters", str(last))


@pytest.mark.parameter("model_type")
def test_a_renamed_one_asks_for_the_template_and_names_those_of_its_family(place, tmp_path):
    with pytest.raises(ModelError, match=r"speak several: qwen3, deepseek_r1, qwen3_thinking.*--template"):
        train(place, tmp_path, model="renamed")
    train(place, tmp_path, "--template", "qwen3_nothinking", model="renamed")


@pytest.mark.parameter("external_plugins")
@pytest.mark.parameter("template")
@pytest.mark.parameter("loss_scale")
def test_plugins_are_used_in_training_and_again_at_inference(place, tmp_path):
    plugins = [str(PLUGINS / "template.py"), str(PLUGINS / "loss_scale.py")]
    last = train(place, tmp_path, "--external_plugins", *plugins, "--template", "tale", "--loss_scale", "sums+short")
    weighed = _losses(last)
    plain = _losses(train(place, tmp_path, "--external_plugins", plugins[0], "--template", "tale"))
    assert weighed != plain
    assert "Narrator: " in AutoTokenizer.from_pretrained(last).chat_template
    assert "response" in answer(place, "--adapters", str(last))


def _losses(checkpoint: Path) -> list[float]:
    lines = [json.loads(line) for line in (checkpoint.parent / "logging.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parameter("new_special_tokens")
@pytest.mark.parametrize("tuner", ["lora", "full"])
def test_new_tokens_are_learnt_saved_used_at_inference_and_merged(place, tmp_path, tuner):
    rows = [{"messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "<|look|> <|leap|>"}]}]
    data = tiny.jsonl(tmp_path / "rows.jsonl", rows)
    last = train(place, tmp_path, "--new_special_tokens", "<|look|>", "<|leap|>", "--tuner_type", tuner,
                 data=data)  # fmt: skip
    assert len(AutoTokenizer.from_pretrained(last)) == 402
    reply = answer(place, "--adapters" if tuner == "lora" else "--model", str(last))
    assert isinstance(reply["response"], str)
    folder = last
    if tuner == "lora":
        folder = export.run(parse("export", ["--adapters", str(last), "--merge_lora", "true",
                                             "--output_dir", str(tmp_path / "merged")]))  # fmt: skip
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert tokenizer.convert_tokens_to_ids("<|leap|>") == 401
    rows_VH = model.get_input_embeddings().weight
    assert rows_VH.shape[0] == 512
    assert not torch.equal(rows_VH[400], rows_VH[401])
    assert answer(place, "--model", str(folder))["response"] == reply["response"]
