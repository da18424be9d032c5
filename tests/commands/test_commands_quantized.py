"""QLoRA from a command line to replies: the loss falls, the adapter alone is trained, and it serves both models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import tiny
from swift.commands import export, infer, sft
from swift.core.errors import ModelError, UsageError
from swift.models.info import model_info
from swift.models.load import load_model
from swift.models.quantize import is_quantized
from swift.options.model import ModelOptions, QuantizationOptions
from swift.options.parse import parse

IDS_BT = torch.arange(5, 17)[None]
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.slow,
    pytest.mark.extra,
]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("quantized")
    tiny.checkpoint(folder / "model")
    tiny.jsonl(folder / "rows.jsonl", tiny.conversations(8))
    tiny.jsonl(folder / "asked.jsonl", [{"messages": [{"role": "user", "content": "What is two?"}]}])
    return folder


def train(place: Path, output: Path, *words: str, model: Path | None = None) -> Path:
    line = ["--model", str(model or place / "model"), "--dataset", str(place / "rows.jsonl"), "--output_dir",
            str(output), "--max_steps", "6", "--split_dataset_ratio", "0", "--dataloader_num_workers", "0", "--report_to",
            "none", "--learning_rate", "1e-2", "--logging_steps", "1", "--per_device_train_batch_size", "4",
            "--gradient_accumulation_steps", "1", *words]  # fmt: skip
    last = sft.run(parse("sft", line))
    assert isinstance(last, Path)
    return last


def losses(last: Path) -> list[float]:
    lines = (last.parent / "logging.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]


def reply(place: Path, *words: str) -> str:
    result = place / "result.jsonl"
    result.unlink(missing_ok=True)
    infer.run(parse("infer", ["--val_dataset", str(place / "asked.jsonl"), "--result_path", str(result),
                              "--max_new_tokens", "4", "--temperature", "0", *words]))  # fmt: skip
    return json.loads(result.read_text(encoding="utf-8").splitlines()[0])["response"]


@pytest.mark.parameter("quant_method")
@pytest.mark.parameter("quant_bits")
@pytest.mark.parametrize(
    ("method", "bits"), [("bnb", "4"), ("bnb", "8"), ("hqq", "4"), ("quanto", "8"), ("quanto", "float8")]
)
def test_an_adapter_learns_on_quantized_weights_and_serves_them_and_the_plain_ones(place, tmp_path, method, bits):
    before = load_file(place / "model" / "model.safetensors")
    last = train(place, tmp_path, "--quant_method", method, "--quant_bits", bits)
    course = losses(last)
    assert course[-1] < 0.95 * course[0]
    saved = load_file(last / "adapter_model.safetensors")
    assert saved
    assert all(".lora_" in name for name in saved)
    assert any(bool(value.any()) for name, value in saved.items() if ".lora_B" in name)
    after = load_file(place / "model" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)

    noted = json.loads((last / "args.json").read_text())
    assert (noted["quant_method"], str(noted["quant_bits"])) == (method, bits)
    assert isinstance(reply(place, "--adapters", str(last)), str)

    options = ModelOptions(model=str(place / "model"))
    quantization = QuantizationOptions(quant_method=method, quant_bits=noted["quant_bits"])
    quantized = PeftModel.from_pretrained(load_model(model_info(options), options, quantization, training=False), last)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(place / "model"), last)
    with torch.no_grad():
        a, b = quantized(IDS_BT).logits.float(), plain(IDS_BT).logits
        with plain.disable_adapter():
            bare = plain(IDS_BT).logits
    assert float((a - b).norm()) < 0.3 * float((b - bare).norm()), "the adapter does the same on both"


@pytest.mark.parameter("quant_method")
def test_training_goes_on_to_the_same_weights_after_a_stop(place, tmp_path):
    words = ("--quant_method", "bnb", "--quant_bits", "4", "--save_steps", "3")
    whole = train(place, tmp_path / "whole", *words)
    stopped = whole.parent / "checkpoint-3"
    again = train(place, tmp_path / "again", *words, "--resume_from_checkpoint", str(stopped))
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (whole, again))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_checkpoint_that_is_quantized_already_is_trained_with_an_adapter_and_with_nothing_else(place, tmp_path):
    options = ModelOptions(model=str(place / "model"))
    quantization = QuantizationOptions(quant_method="bnb", quant_bits=4)
    model = load_model(model_info(options), options, quantization, training=False)
    model.save_pretrained(tmp_path / "stored")
    tiny.tokenizer().save_pretrained(tmp_path / "stored")

    last = train(place, tmp_path / "out", model=tmp_path / "stored")
    course = losses(last)
    assert course[-1] < 0.95 * course[0]
    assert isinstance(reply(place, "--adapters", str(last)), str)
    with pytest.raises(UsageError, match="--tuner_type full cannot train quantized weights"):
        train(place, tmp_path / "full", "--tuner_type", "full", model=tmp_path / "stored")
    with pytest.raises(ModelError, match="is quantized, and an adapter cannot be added"):
        export.run(parse("merge-lora", ["--adapters", str(last)]))


def test_an_adapter_of_quantized_weights_merges_into_the_plain_ones(place, tmp_path):
    last = train(place, tmp_path, "--quant_method", "bnb", "--quant_bits", "4")
    folder = export.run(parse("merge-lora", ["--adapters", str(last), "--output_dir", str(tmp_path / "merged")]))
    merged = AutoModelForCausalLM.from_pretrained(folder)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(place / "model"), last)
    with torch.no_grad():
        torch.testing.assert_close(merged(IDS_BT).logits, plain(IDS_BT).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parameter("init_weights")
def test_loftq_goes_its_whole_way(place, tmp_path):
    words = ("--quant_method", "bnb", "--quant_bits", "4", "--init_weights", "loftq", "--save_steps", "3")
    whole = train(place, tmp_path / "whole", *words)
    again = train(place, tmp_path / "again", *words, "--resume_from_checkpoint", str(whole.parent / "checkpoint-3"))
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (whole, again))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert losses(whole)[-1] < 0.95 * losses(whole)[0]
    assert isinstance(reply(place, "--adapters", str(whole)), str)
    export.run(parse("merge-lora", ["--adapters", str(whole), "--output_dir", str(tmp_path / "merged")]))


@pytest.mark.parameter("quant_method")
def test_replies_come_from_quantized_weights_without_any_adapter(place):
    plain = reply(place, "--model", str(place / "model"))
    quantized = reply(place, "--model", str(place / "model"), "--quant_method", "bnb", "--quant_bits", "8")
    assert quantized == plain


@pytest.mark.parameter("quant_method")
def test_an_evaluation_in_between_does_not_change_what_is_learnt(place, tmp_path):
    words = ("--quant_method", "bnb", "--quant_bits", "4")
    alone = train(place, tmp_path / "alone", *words)
    watched = train(
        place, tmp_path / "watched", *words, "--val_dataset", str(place / "rows.jsonl"), "--eval_steps", "1"
    )
    assert losses(watched) == losses(alone)
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (alone, watched))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parameter("quant_method")
def test_packing_keeps_sequences_apart_on_quantized_weights(place, tmp_path):
    last = train(
        place, tmp_path, "--quant_method", "bnb", "--quant_bits", "4", "--packing", "true", "--packing_length", "256"
    )
    course = losses(last)
    assert course[-1] < course[0]
    assert not is_quantized(AutoModelForCausalLM.from_pretrained(place / "model"))
