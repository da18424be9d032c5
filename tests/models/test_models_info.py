"""What a checkpoint says of itself, and what is said when it is not what it should be."""

from __future__ import annotations

import json
import os

import pytest

import tiny
from swift.core.errors import ModelError
from swift.models.info import adapter_folder, base_of_adapter, model_info, require_weights
from swift.options.model import ModelOptions


def config_folder(tmp_path, **config):
    folder = tmp_path / "model"
    folder.mkdir(exist_ok=True)
    whole = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 9, **config}
    (folder / "config.json").write_text(json.dumps(whole))
    return folder


def info_of(tmp_path, options=None, **config):
    return model_info(ModelOptions(model=str(config_folder(tmp_path, **config)), **(options or {})))


@pytest.mark.parameter("model")
def test_model_names_the_folder_that_is_read(tmp_path):
    folder = tiny.checkpoint(tmp_path / "qwen")
    info = model_info(ModelOptions(model=str(folder)))
    assert (info.path, info.name, info.model_type) == (folder, "qwen", "qwen3")
    assert (info.vocab_size, info.max_length, info.dtype) == (400, 512, "float32")
    assert info.ties_embeddings
    assert [path.name for path in require_weights(info)] == ["model.safetensors"]


def test_a_path_relative_to_here_becomes_absolute(tmp_path, monkeypatch):
    folder = config_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert model_info(ModelOptions(model="model")).path == folder


def test_the_longest_context_is_the_smallest_length_of_the_config_and_its_text_config(tmp_path):
    assert info_of(tmp_path, max_position_embeddings=4096, seq_length=2048).max_length == 2048
    nested = {"text_config": {"max_position_embeddings": 1024}, "max_position_embeddings": 4096}
    assert info_of(tmp_path, **nested).max_length == 1024
    assert info_of(tmp_path).max_length is None


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        ({"torch_dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": "float32"}, "float32"),
        ({"params_dtype": "torch.float16"}, "float16"),
        ({"text_config": {"dtype": "bfloat16"}}, "bfloat16"),
        ({"dtype": "bfloat16", "quantization_config": {"quant_method": "gptq"}}, "float16"),
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "bnb_4bit_compute_dtype": "torch.bfloat16"}},
            "bfloat16",
        ),
    ],
)
def test_the_type_of_the_weights_is_the_checkpoints(tmp_path, config, dtype):
    assert info_of(tmp_path, **config).dtype == dtype


@pytest.mark.parameter("torch_dtype")
def test_torch_dtype_stands_above_the_config(tmp_path):
    assert info_of(tmp_path, {"torch_dtype": "float16"}, dtype="bfloat16").dtype == "float16"


@pytest.mark.parametrize(
    ("config", "is_moe"),
    [
        ({}, False),
        ({"architectures": ["Qwen3MoeForCausalLM"]}, True),
        ({"num_experts_per_tok": 2}, True),
        ({"num_experts": None}, False),
        ({"text_config": {"moe_intermediate_size": 8}}, True),
    ],
)
def test_mixtures_of_experts_are_recognised(tmp_path, config, is_moe):
    assert info_of(tmp_path, **config).is_moe is is_moe


def test_models_with_other_senses_quantized_and_with_code_of_their_own_are_recognised(tmp_path):
    info = info_of(
        tmp_path, vision_config={"depth": 1}, quantization_config={"quant_method": "awq"}, auto_map={"A": "b"}
    )
    assert info.is_multimodal
    assert info.quantization == "awq"
    assert info.needs_remote_code


@pytest.mark.parameter("model_type")
def test_model_type_names_a_family_that_fits_the_architecture(tmp_path):
    assert info_of(tmp_path, {"model_type": "yi"}).family == "yi"
    assert info_of(tmp_path).family is None, "llama, yi and others share an architecture"
    assert info_of(tmp_path, architectures=["Qwen2MoeForCausalLM"]).family == "qwen2_moe"
    with pytest.raises(ModelError, match=r"--model_type qwen3 does not fit .*LlamaForCausalLM"):
        info_of(tmp_path, {"model_type": "qwen3"})
    with pytest.raises(ModelError, match="Did you mean qwen3"):
        info_of(tmp_path, {"model_type": "qwen33"})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Qwen/Qwen3-0.6B", "--model Qwen/Qwen3-0.6B: there is no such folder"),
        ("{tmp}/nothing", "holds: adapter, model, weightless"),
        ("{tmp}/model/config.json", "is a file; pass the folder it lies in: --model .*model$"),
        ("{tmp}/adapter", "is an adapter, not a model; pass it with --adapters"),
        ("{tmp}", "holds no config.json. Inside it there are models: model, weightless"),
    ],
)
def test_what_is_no_model_is_refused_with_what_to_do(tmp_path, name, words):
    config_folder(tmp_path)
    (tmp_path / "weightless").mkdir()
    (tmp_path / "weightless" / "config.json").write_text("{}")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=words):
        model_info(ModelOptions(model=name.format(tmp=tmp_path)))


def test_a_damaged_config_is_named_with_its_line(tmp_path):
    folder = config_folder(tmp_path)
    (folder / "config.json").write_text('{\n "model_type": ')
    with pytest.raises(ModelError, match=r"config.json is no valid JSON: .* in line 2"):
        model_info(ModelOptions(model=str(folder)))


def test_a_model_without_weights_is_refused_only_when_weights_are_needed(tmp_path):
    info = info_of(tmp_path)
    with pytest.raises(ModelError, match=r"holds no weights: .* It holds: config.json"):
        require_weights(info)


@pytest.mark.parameter("adapters")
def test_adapters_alone_name_the_model_they_were_trained_on(tmp_path):
    folder, adapter = config_folder(tmp_path), tmp_path / "run" / "checkpoint-1"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    info = model_info(ModelOptions(adapters=[str(adapter)]))
    assert (info.path, info.adapters) == (folder, (adapter,))

    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "elsewhere/model"}))
    with pytest.raises(ModelError, match=r"was trained on elsewhere/model, which is not on this machine"):
        model_info(ModelOptions(adapters=[str(adapter)]))

    (adapter / "args.json").write_text(json.dumps({"model": str(folder)}))
    assert base_of_adapter(adapter) == str(folder)
    assert model_info(ModelOptions(adapters=[str(adapter)])).path == folder


def test_what_is_no_adapter_is_refused_with_what_to_do(tmp_path):
    folder = config_folder(tmp_path)
    with pytest.raises(ModelError, match="is a whole model, not an adapter; pass it with --model"):
        adapter_folder(str(folder))
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"holds no adapter_config.json. Inside it there are adapters: checkpoint-3"):
        adapter_folder(str(tmp_path))


def test_neither_model_nor_adapters_is_refused():
    with pytest.raises(ModelError, match="--model is missing"):
        model_info(ModelOptions())


def test_reading_what_a_checkpoint_says_reads_no_weights(tmp_path):
    folder = tiny.checkpoint(tmp_path / "m")
    os.truncate(folder / "model.safetensors", 3)
    assert model_info(ModelOptions(model=str(folder))).vocab_size == 400
