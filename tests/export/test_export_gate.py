"""What is exported is read back from disk and held against its source, or there is no export."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import tiny
from made_adapters import trained
from swift.commands import export
from swift.core.errors import ModelError
from swift.core.logs import get_logger
from swift.export.weights import write_weights
from swift.models.info import model_info
from swift.models.load import load_model
from swift.models.weights import weight_files
from swift.options.model import ModelOptions
from swift.options.parse import parse
from swift.options.tuner import TunerChoice, TunerOptions
from swift.tuners.attach import attach, load_adapters

IDS_BT = torch.arange(5, 17)[None]
MERGEABLE = {
    "lora": {},
    "lora on embedding and head": {"target_modules": ["all-linear", "all-embedding"]},
    "lora on the head alone": {"target_modules": ["lm_head"]},
    "dora": {"use_dora": True},
    "adalora": {},
    "vera": {},
    "boft": {},
    "bone": {},
    "fourierft": {},
    "longlora": {},
    "llamapro": {},
}


@pytest.fixture
def heard(caplog, monkeypatch):
    monkeypatch.setattr(get_logger(), "propagate", True)
    return caplog


@pytest.fixture
def base(tmp_path):
    return tiny.checkpoint(tmp_path / "base")


def run(*words):
    return export.run(parse("merge-lora", [str(word) for word in words]))


@pytest.mark.parameter("merge_lora", "adapters")
@pytest.mark.parametrize("name", MERGEABLE)
def test_every_tuner_that_can_be_merged_is_the_same_model_for_plain_transformers(base, tmp_path, name, caplog):
    method = name.split()[0].replace("dora", "lora")
    adapter = trained(base, tmp_path / "run" / "last", method, **MERGEABLE[name])
    output = run("--adapters", adapter, "--model", base)
    options = ModelOptions(model=str(base))
    expected = load_adapters(load_model(model_info(options), options, training=False), [adapter])(IDS_BT).logits
    found = AutoModelForCausalLM.from_pretrained(output).eval()(IDS_BT).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, AutoModelForCausalLM.from_pretrained(base)(IDS_BT).logits, atol=1e-3)


def test_weights_that_change_on_their_way_to_the_disk_are_refused_and_leave_nothing(base, tmp_path, monkeypatch):
    def spoilt(model, folder, **how):
        write_weights(model, folder, **how)
        [file] = weight_files(folder)
        tensors = load_file(file)
        tensors["model.layers.1.mlp.down_proj.weight"] *= 1.01
        save_file(tensors, file, metadata={"format": "pt"})

    adapter = trained(base, tmp_path / "run" / "last")
    monkeypatch.setattr(export, "write_weights", spoilt)
    with pytest.raises(
        ModelError, match=r"read from its folder, .*differ by \d.*1e-05 is what rounding .*Nothing was kept"
    ):
        run("--adapters", adapter, "--model", base)
    assert [path.name for path in adapter.parent.iterdir()] == ["last"]


def test_a_tokenizer_that_reads_otherwise_than_the_models_is_refused(base, tmp_path):
    adapter = trained(base, tmp_path / "run" / "last")
    tiny.tokenizer(vocab_size=330).save_pretrained(adapter)
    with pytest.raises(ModelError, match=r"tokenizer of the exported model reads .* look at the tokenizer files"):
        run("--adapters", adapter, "--model", base)


def test_an_adapter_without_effect_is_merged_with_a_warning(base, tmp_path, heard):
    options = ModelOptions(model=str(base))
    model = attach(load_model(model_info(options), options, training=True), TunerChoice(), TunerOptions())
    model.save_pretrained(tmp_path / "last", save_embedding_layers=False)
    run("--adapters", tmp_path / "last", "--model", base)
    assert "The adapter changes nothing" in heard.text


def test_an_effect_that_rounding_swallows_is_said(base, tmp_path, heard):
    adapter = trained(base, tmp_path / "last")
    tensors = load_file(adapter / "adapter_model.safetensors")
    small = {name: value * 0.1 for name, value in tensors.items()}
    save_file(small, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    run("--adapters", adapter, "--model", base, "--torch_dtype", "bfloat16")
    assert "Rounding to bfloat16 loses much of this adapter" in heard.text


def test_a_stretched_context_is_written_once(base, tmp_path):
    adapter = trained(base, tmp_path / "last")
    output = run("--adapters", adapter, "--model", base, "--rope_scaling", "linear", "--max_model_len", "1024")
    config = json.loads((output / "config.json").read_text())
    assert config["max_position_embeddings"] == 1024
    assert config["rope_parameters"]["factor"] == 2
