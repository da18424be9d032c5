"""QLoRA on checkpoints that GPTQ and AWQ have quantized: made here, trained, resumed, asked; never merged into."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny
from swift.commands import export, infer, sft
from swift.core.errors import ModelError, UsageError
from swift.models.info import model_info
from swift.models.load import load_model
from swift.models.quantize import quantized_layers
from swift.options.model import ModelOptions
from swift.options.parse import parse

pytestmark = [
    pytest.mark.slow,
    pytest.mark.extra,
    pytest.mark.skipif(find_spec("gptqmodel") is None, reason="gptqmodel is not installed here"),
    pytest.mark.filterwarnings("ignore"),  # gptqmodel and what it imports warn of much, and not us
]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A model of layers as wide as the kernels want them, the same quantized, and rows."""
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # it wants two, however few cores there are
    folder = tmp_path_factory.mktemp("gptq")
    tiny.checkpoint(folder / "model", hidden_size=128, intermediate_size=256, head_dim=32)
    tiny.jsonl(folder / "rows.jsonl", tiny.conversations(8))
    tiny.jsonl(folder / "asked.jsonl", [{"messages": [{"role": "user", "content": "What is two?"}]}])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # where gptqmodel writes its logs
        for method in ("gptq", "awq"):
            quantize(folder, method)
    return folder


def quantize(folder: Path, method: str) -> None:
    import gptqmodel
    from gptqmodel.quantization import FORMAT, METHOD

    kind: dict[str, Any] = {"quant_method": METHOD.AWQ, "format": FORMAT.GEMM} if method == "awq" else {}
    config = gptqmodel.QuantizeConfig(bits=4, group_size=32, **kind)
    model = gptqmodel.GPTQModel.load(str(folder / "model"), config, device="cpu")
    model.quantize(["What is two and two? It is four. " * 20] * 16, batch_size=2)
    model.save(str(folder / method))
    tiny.tokenizer().save_pretrained(folder / method)


def train(place: Path, model: str, output: Path, *words: str) -> Path:
    line = ["--model", str(place / model), "--dataset", str(place / "rows.jsonl"), "--output_dir", str(output),
            "--max_steps", "6", "--save_steps", "3", "--split_dataset_ratio", "0", "--dataloader_num_workers", "0",
            "--report_to", "none", "--learning_rate", "1e-2", "--logging_steps", "1", "--per_device_train_batch_size", "4",
            "--gradient_accumulation_steps", "1", *words]  # fmt: skip
    last = sft.run(parse("sft", line))
    assert isinstance(last, Path)
    return last


@pytest.mark.parameter("model")
@pytest.mark.parameter("resume_from_checkpoint")
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_an_adapter_learns_on_such_weights_resumes_and_answers(place, tmp_path, method):
    whole = train(place, method, tmp_path / "whole")
    lines = (whole.parent / "logging.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]
    assert min(losses[-2:]) < 0.9 * losses[0]
    learnt = load_file(whole / "adapter_model.safetensors")
    assert all(bool(value.any()) for name, value in learnt.items() if ".lora_B" in name), "gradients reach every layer"
    again = train(place, method, tmp_path / "again", "--resume_from_checkpoint", str(whole.parent / "checkpoint-3"))
    resumed = load_file(again / "adapter_model.safetensors")
    assert all(torch.equal(learnt[name], resumed[name]) for name in learnt)
    infer.run(parse("infer", ["--adapters", str(whole), "--val_dataset", str(place / "asked.jsonl"), "--result_path",
                              str(tmp_path / "said.jsonl"), "--max_new_tokens", "4", "--temperature", "0"]))  # fmt: skip
    assert isinstance(json.loads((tmp_path / "said.jsonl").read_text())["response"], str)
    with pytest.raises(
        ModelError, match=r"is quantized, and an adapter cannot be added .* Merge into the model it was"
    ):
        export.run(parse("merge-lora", ["--adapters", str(whole), "--output_dir", str(tmp_path / "merged")]))
    merged = export.run(parse("merge-lora", [
        "--adapters", str(whole), "--model", str(place / "model"), "--output_dir", str(tmp_path / "plain")
    ]))  # fmt: skip
    assert (merged / "model.safetensors").is_file()


@pytest.mark.parameter("quant_method")
@pytest.mark.parameter("tuner_type")
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_what_such_weights_cannot_be_used_for_is_refused(place, tmp_path, method):
    with pytest.raises(ModelError, match=f"is quantized already, with {method}. Drop --quant_method"):
        train(place, method, tmp_path / "a", "--quant_method", "bnb", "--quant_bits", "4")
    with pytest.raises(UsageError, match=r"--tuner_type full cannot train quantized weights"):
        train(place, method, tmp_path / "b", "--tuner_type", "full")
    with pytest.raises(ModelError, match=r"--init_weights pissa takes a part out of the weights, and .* is quantized"):
        train(place, method, tmp_path / "c", "--init_weights", "pissa")


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_its_layers_count_as_quantized_and_compute_nearly_what_they_were(place, method):
    def load(name: str):
        options = ModelOptions(model=str(place / name), torch_dtype="float32")
        return load_model(model_info(options), options, training=True)

    ids = torch.arange(5, 17)[None]
    model = load(method)
    assert len(quantized_layers(model)) == 14
    with torch.no_grad():
        found, expected = model(ids).logits, load("model")(ids).logits
    assert float((found - expected).norm()) < 0.5 * float(expected.norm())
