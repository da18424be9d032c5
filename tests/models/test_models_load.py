"""Weights become a model: in the type, with the attention and on the devices that were asked for, or not at all."""

from __future__ import annotations

import importlib.util
import json
import os
import warnings

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import tiny
from swift.core.errors import MissingPackage, ModelError, UsageError
from swift.core.logs import get_logger
from swift.models.device import Devices, place, require_trainable
from swift.models.info import model_info
from swift.models.load import load_model
from swift.models.parameters import num_parameters, parameter_table
from swift.models.precision import dtype_of_this_machine, mixed_precision
from swift.models.processor import load_tokenizer
from swift.options.model import ModelOptions

IDS_BT = torch.arange(5, 17)[None]
SIZES = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
FAMILIES = {
    "Llama": {},
    "Qwen2": {"tie_word_embeddings": True},
    "Qwen3Moe": {"head_dim": 16, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2},
    "Gemma2": {"head_dim": 16},
    "Mixtral": {"num_local_experts": 4},
    "Phi3": {},
}


def family(name):
    """A random model of a family, saved nowhere."""
    config = getattr(transformers, f"{name}Config")(**SIZES, **FAMILIES[name])
    torch.manual_seed(1)
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


def load(folder, *, training=False, **options):
    chosen = ModelOptions(model=str(folder), **options)
    return load_model(model_info(chosen), chosen, training=training)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.checkpoint(tmp_path_factory.mktemp("load") / "model")


@pytest.fixture(scope="module")
def moe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moe") / "model"
    family("Qwen3Moe").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_a_loaded_model_is_the_one_that_was_saved(tmp_path, name):
    saved = family(name)
    saved.save_pretrained(tmp_path / "model")
    torch.testing.assert_close(load(tmp_path / "model")(IDS_BT).logits, saved(IDS_BT).logits)


@pytest.mark.parameter("torch_dtype")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_are_in_the_type_that_was_asked_for(checkpoint, dtype):
    assert {p.dtype for p in load(checkpoint, torch_dtype=dtype).parameters()} == {getattr(torch, dtype)}


@pytest.mark.parameter("attn_impl")
def test_attention_is_the_one_that_was_asked_for_and_changes_no_result(checkpoint):
    eager, sdpa = load(checkpoint, attn_impl="eager"), load(checkpoint, attn_impl="sdpa")
    assert (eager.config._attn_implementation, sdpa.config._attn_implementation) == ("eager", "sdpa")
    torch.testing.assert_close(eager(IDS_BT).logits, sdpa(IDS_BT).logits)
    assert eager(IDS_BT, output_attentions=True).attentions[0].shape == (1, 4, 12, 12)


@pytest.mark.slow  # it is compiled, which takes a minute
@pytest.mark.parameter("attn_impl")
@pytest.mark.skipif(torch.accelerator.is_available(), reason="an accelerator trains with it")
def test_flex_attention_answers_as_sdpa_does_and_does_not_learn_on_a_cpu(checkpoint):
    flex = load(checkpoint, attn_impl="flex_attention")
    assert flex.config._attn_implementation == "flex_attention"
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler
        torch.testing.assert_close(flex(IDS_BT).logits, load(checkpoint)(IDS_BT).logits)
    with pytest.raises(ModelError, match="flex_attention computes no gradients on a CPU"):
        load(checkpoint, attn_impl="flex_attention", training=True)


@pytest.mark.parameter("attn_impl")
@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("flash_attn", "flash_attn", "flash-attn"),
        ("flash_attention_2", "flash_attn", "flash-attn"),
        ("flash_attention_3", "flash_attn_interface", "flash-attn-3"),
    ],
)
def test_an_attention_without_its_package_names_the_package(checkpoint, name, module, package):
    if importlib.util.find_spec(module):
        pytest.skip("the package is installed here")
    with pytest.raises(MissingPackage, match=f"needs the package {package}, .* pip install {package}"):
        load(checkpoint, attn_impl=name)


@pytest.mark.parameter("experts_impl")
@pytest.mark.parametrize("name", ["eager", "batched_mm", "grouped_mm"])
def test_experts_run_as_asked_and_change_no_result(moe, name):
    model = load(moe, experts_impl=name)
    assert model.config._experts_implementation == name
    torch.testing.assert_close(model(IDS_BT).logits, load(moe)(IDS_BT).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parameter("experts_impl")
def test_experts_of_a_model_without_experts_are_refused(checkpoint):
    with pytest.raises(ModelError, match="it is no mixture of experts"):
        load(checkpoint, experts_impl="eager")


def devices(model):
    return {parameter.device.type for parameter in model.parameters()}


@pytest.mark.parameter("device_map")
def test_weights_lie_where_the_device_map_says(checkpoint, tmp_path):
    assert devices(load(checkpoint)) == devices(load(checkpoint, device_map="cpu")) == {"cpu"}
    assert devices(load(checkpoint, device_map="meta")) == {"meta"}

    split = {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    file = tmp_path / "map.json"
    file.write_text(json.dumps({**split, "lm_head": "cpu"}))
    model = load(checkpoint, device_map=str(file))
    assert model.hf_device_map["model.layers"] == "disk"
    torch.testing.assert_close(model(IDS_BT).logits, load(checkpoint)(IDS_BT).logits)

    for nonsense in ("nonsense", "nonsense" * 1000):
        with pytest.raises(UsageError, match=f"--device_map {nonsense} is neither a strategy"):
            load(checkpoint, device_map=nonsense)


THREE_OF_SIX = Devices("cuda", 6, num_processes=3, rank=2)


@pytest.mark.parameter("device_map")
@pytest.mark.parameter("max_memory")
def test_gpu_numbers_count_from_the_process_of_their_rank():
    placed = place({"model": 0, "lm_head": "3", "norm": "cpu"}, None, THREE_OF_SIX, training=True)
    assert placed.device_map == {"model": 2, "lm_head": 5, "norm": "cpu"}
    placed = place("auto", {"0": "20GB", "cpu": "1GB"}, THREE_OF_SIX, training=True)
    assert placed.max_memory == {2: "20GB", "cpu": "1GB"}


@pytest.mark.parameter("device_map")
def test_a_gpu_of_another_process_and_one_that_is_not_there_are_refused():
    with pytest.raises(UsageError, match=r"names device 1, which another process .* counts its devices 0, 3, 6"):
        place({"model": 0, "lm_head": 1}, None, THREE_OF_SIX, training=True)
    with pytest.raises(UsageError, match=r"names device 6, .* put it on device 8: there are 6 of kind cuda"):
        place({"model": 6}, None, THREE_OF_SIX, training=True)


@pytest.mark.parameter("device_map")
@pytest.mark.parametrize(
    ("devices", "training", "chosen"),
    [
        (Devices("cpu", 0), True, None),
        (Devices("cuda", 1), True, "cuda:0"),
        (Devices("cuda", 4), True, "auto"),
        (Devices("cuda", 2, 2, 1), True, "cuda:1"),
        (Devices("cuda", 4, 2, 1), True, "auto"),
        (Devices("cuda", 1, 2, 1), True, "cuda:0"),
        (Devices("npu", 8, 8, 3), True, "npu:3"),
        (Devices("mps", 1), False, "mps"),
        (Devices("mps", 1), True, None),  # the trainer moves it there
    ],
)
def test_without_a_device_map_a_process_takes_what_it_has(devices, training, chosen, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda index: (100 + index, 200))
    placed = place(None, None, devices, training=training)
    assert placed.device_map == chosen
    assert placed.max_memory == ({1: 101, 3: 103} if devices == Devices("cuda", 4, 2, 1) else None)
    assert place(None, None, devices, training=training, sharded=True).device_map is None


@pytest.mark.parameter("device_map")
def test_what_is_offloaded_does_not_learn(checkpoint):
    require_trainable({"model.layers.0": "cpu", "model.layers.1": "cpu"})
    require_trainable({"model.layers.0": 0, "model.layers.1": 1})
    with pytest.raises(ModelError, match=r"leaves model.layers.1 on cpu, which only inference can do"):
        require_trainable({"model.layers.0": 0, "model.layers.1": "cpu"})
    size = 4 * num_parameters(load(checkpoint))
    with pytest.raises(ModelError, match=r"on disk, which only inference can do"):
        load(checkpoint, training=True, device_map="auto", max_memory={"cpu": size // 2})


@pytest.mark.parameter("max_memory")
def test_max_memory_bounds_what_a_device_is_given(checkpoint):
    size = 4 * num_parameters(load(checkpoint))
    assert devices(load(checkpoint, device_map="auto", max_memory={"cpu": 10 * size})) == {"cpu"}
    assert "disk" in load(checkpoint, device_map="auto", max_memory={"cpu": size // 2}).hf_device_map.values()


@pytest.mark.parameter("max_memory")
def test_max_memory_with_nothing_to_distribute_is_refused(checkpoint):
    with pytest.raises(UsageError, match=r"Add --device_map auto"):
        load(checkpoint, max_memory={"cpu": "1GB"})


def test_damaged_weights_are_named_when_they_are_loaded(tmp_path):
    folder = tiny.checkpoint(tmp_path / "m")
    file = folder / "model.safetensors"
    os.truncate(file, file.stat().st_size - 10)
    with pytest.raises(ModelError, match=r"model.safetensors is damaged .* bytes are expected"):
        load(folder)


def rewritten(folder, change):
    """Change the tensors of a checkpoint."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_weights_that_would_be_random_are_refused(tmp_path):
    folder = rewritten(tiny.checkpoint(tmp_path / "m"), lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ModelError, match=r"lacks 1 of the weights .*model.layers.1.mlp.up_proj.weight"):
        load(folder)


def test_a_config_that_contradicts_itself_is_named(tmp_path):
    folder = tiny.checkpoint(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ModelError, match=r"config.json is not understood: .*num_hidden_layers"):
        load(folder)


def test_a_tied_output_layer_is_not_missing(tmp_path):
    folder = tiny.checkpoint(tmp_path / "m")
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    model = load(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_weights_without_a_place_are_named(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(get_logger(), "propagate", True)
    folder = rewritten(tiny.checkpoint(tmp_path / "m"), lambda t: t.update({"model.stray": torch.zeros(2)}))
    load(folder)
    assert "1 weights of" in caplog.text
    assert "model.stray" in caplog.text


def test_weights_of_another_shape_are_refused(tmp_path):
    folder = rewritten(tiny.checkpoint(tmp_path / "m"), lambda t: t.update({"model.norm.weight": torch.zeros(3)}))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(folder)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"vision_config": {"depth": 1}}, "not available yet: models with images"),
        ({"model_type": "mine", "auto_map": {"AutoModel": "mine.Mine"}}, "register the model with loader=RemoteCode"),
        ({"model_type": "mine"}, "does not know the model_type 'mine'"),
        ({"model_type": "clip"}, "is no causal language model"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_reason(tmp_path, config, words):
    folder = tiny.checkpoint(tmp_path / "m")
    whole = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**whole, **config}))
    with pytest.raises(ModelError, match=words):
        load(folder)


def test_parameters_are_counted_once_and_grouped_over_layers():
    model = tiny.model()
    model.requires_grad_(False)
    model.model.layers[1].mlp.up_proj.requires_grad_(True)
    table = parameter_table(model)
    assert table.total == num_parameters(model) == sum(p.numel() for p in set(model.parameters()))
    assert table.trained == 64 * 128
    group = next(group for group in table.groups if group.trained)
    assert (group.name, group.total) == ("model.layers.*.mlp.up_proj.weight", 2 * 64 * 128)
    assert table.percent == pytest.approx(100 * table.trained / table.total)
    assert "8,192" in str(table)


def test_precision_follows_the_weights_and_the_machine():
    assert mixed_precision("bfloat16") == "bf16"
    on_gpu = torch.cuda.is_available()
    assert mixed_precision("float32") == ("fp16" if on_gpu else "no")
    if not torch.accelerator.is_available():
        assert dtype_of_this_machine() == "float32"


def tokenizer_of(folder):
    info = model_info(ModelOptions(model=str(folder)))
    return info, load_tokenizer(info)


def test_a_missing_special_token_becomes_the_other(tmp_path):
    for lacking, there in (("pad_token", "eos_token"), ("eos_token", "pad_token")):
        folder = tiny.checkpoint(tmp_path / lacking)
        config = json.loads((folder / "tokenizer_config.json").read_text())
        expected = config[there]
        config.pop(lacking)
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        tokenizer = tokenizer_of(folder)[1]
        assert (tokenizer.pad_token, tokenizer.eos_token) == (expected, expected)


def test_a_tokenizer_without_both_tokens_is_refused(tmp_path):
    folder = tiny.checkpoint(tmp_path / "m")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("pad_token"), config.pop("eos_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="names neither a padding nor an end-of-sequence token"):
        tokenizer_of(folder)


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    tiny.model().save_pretrained(tmp_path / "m")
    with pytest.raises(ModelError, match="holds no tokenizer"):
        tokenizer_of(tmp_path / "m")
