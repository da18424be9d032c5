"""Weights are quantized as asked while they are loaded, near what they were, or the reason is said why not."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

import architectures
import tiny
from swift.core.errors import MissingPackage, ModelError, UsageError
from swift.core.logs import get_logger
from swift.models.info import model_info
from swift.models.load import load_model
from swift.models.parameters import num_parameters, parameter_table
from swift.models.quantize import METHODS, choose_trainable_kernels, is_quantized, kept_modules, quantized_layers
from swift.options.model import QUANT_BITS, ModelOptions, QuantizationOptions
from swift.options.tuner import TunerChoice, TunerOptions
from swift.tuners.attach import attach, require_whole

IDS_BT = torch.arange(5, 17)[None]
ON_A_CPU = [(method, bits) for method in ("bnb", "hqq", "quanto") for bits in QUANT_BITS[method]]
NEAR = {1: 2.0, 2: 1.2, 3: 0.45, 4: 0.2, 8: 0.02, "float8": 0.06}
"""Bits -> the most that logits may differ by, as a share of their norm."""
LEVELS = {1: 2, 2: 4, 3: 8, 4: 16}


def load(folder, *, training=False, method=None, bits=None, model=None, **options):
    chosen = ModelOptions(model=str(folder), **(model or {}))
    quantization = QuantizationOptions(quant_method=method, quant_bits=bits, **options)
    return load_model(model_info(chosen), chosen, quantization, training=training)


def difference(first, second) -> float:
    with torch.no_grad():
        a, b = first(IDS_BT).logits.float(), second(IDS_BT).logits.float()
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.checkpoint(tmp_path_factory.mktemp("quantize") / "model")


@pytest.fixture(scope="module")
def moe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantize_moe") / "model"
    architectures.model("qwen2_moe", hidden_size=64, shared_expert_intermediate_size=64).save_pretrained(folder)
    return folder


@pytest.mark.extra
@pytest.mark.parameter("quant_method")
@pytest.mark.parameter("quant_bits")
@pytest.mark.parametrize(("method", "bits"), ON_A_CPU)
def test_a_quantized_model_is_near_the_one_it_was(checkpoint, method, bits):
    model, plain = load(checkpoint, method=method, bits=bits), load(checkpoint)
    assert 0 < difference(model, plain) < NEAR[bits]
    assert len(quantized_layers(model)) == 2 * 7
    assert num_parameters(model) == num_parameters(plain), "packed weights count as what they stand for"
    assert type(model.lm_head) is torch.nn.Linear
    assert model.lm_head.weight is model.model.embed_tokens.weight


def dequantized(layer):
    """The matrix that a quantized layer multiplies by."""
    if type(layer).__name__ == "Linear4bit":
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return layer.dequantize() if type(layer).__name__ == "HQQLinear" else layer.weight.dequantize()


@pytest.mark.extra
@pytest.mark.parameter("quant_bits")
@pytest.mark.parametrize(
    ("method", "bits"), [("bnb", 4), ("hqq", 1), ("hqq", 2), ("hqq", 3), ("hqq", 4), ("quanto", 2)]
)
def test_a_group_of_weights_takes_no_more_values_than_its_bits_can_tell(checkpoint, method, bits):
    weights = dequantized(load(checkpoint, method=method, bits=bits).model.layers[0].mlp.gate_proj)
    assert all(len(row.unique()) <= LEVELS[bits] for row in weights.reshape(-1, 64))


@pytest.mark.extra
@pytest.mark.parametrize("method", ["bnb", "hqq", "quanto"])
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_adapters_beside_packed_weights_are_counted_like_beside_plain_ones(checkpoint, method):
    tables = [
        parameter_table(attach(model, TunerChoice(), TunerOptions()))
        for model in (load(checkpoint), load(checkpoint, method=method, bits=4))
    ]
    assert (tables[0].trained, tables[0].total) == (tables[1].trained, tables[1].total)


@pytest.mark.extra
@pytest.mark.parameter("hqq_axis")
def test_hqq_groups_along_the_axis(checkpoint):
    along_rows = dequantized(load(checkpoint, method="hqq", bits=2, hqq_axis=1).model.layers[0].mlp.gate_proj)
    across = dequantized(load(checkpoint, method="hqq", bits=2, hqq_axis=0).model.layers[0].mlp.gate_proj)
    default = dequantized(load(checkpoint, method="hqq", bits=2).model.layers[0].mlp.gate_proj)
    assert torch.equal(default, along_rows)
    assert all(len(row.unique()) <= 4 for row in along_rows.reshape(-1, 64))
    assert all(len(column.unique()) <= 4 for column in across.reshape(64, -1).T)
    assert not all(len(row.unique()) <= 4 for row in across.reshape(-1, 64))


@pytest.mark.extra
@pytest.mark.parameter("hqq_axis")
def test_a_layer_that_hqq_cannot_divide_is_named(tmp_path):
    folder = tiny.checkpoint(tmp_path / "m", hidden_size=48, intermediate_size=96)
    with pytest.raises(ModelError, match=r"groups of 64 weights, and model.layers.0.* has .* x 48 of them"):
        load(folder, method="hqq", bits=4)


@pytest.mark.extra
@pytest.mark.parameter("bnb_4bit_quant_type")
@pytest.mark.parameter("bnb_4bit_use_double_quant")
@pytest.mark.parameter("bnb_4bit_compute_dtype")
@pytest.mark.parameter("bnb_4bit_quant_storage")
def test_the_options_of_bitsandbytes_are_those_of_its_layers(checkpoint):
    settings = {"bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False, "bnb_4bit_compute_dtype": "bfloat16",
                "bnb_4bit_quant_storage": "bfloat16"}  # fmt: skip
    layer = load(checkpoint, method="bnb", bits=4, **settings).model.layers[0].mlp.up_proj
    assert (layer.weight.quant_state.quant_type, layer.weight.quant_state.nested) == ("fp4", False)
    assert (layer.compute_dtype, layer.weight.dtype) == (torch.bfloat16, torch.bfloat16)
    layer = load(checkpoint, method="bnb", bits=4).model.layers[0].mlp.up_proj
    assert (layer.weight.quant_state.quant_type, layer.weight.quant_state.nested) == ("nf4", True)
    assert (layer.compute_dtype, layer.weight.dtype) == (torch.float32, torch.uint8)


@pytest.mark.extra
@pytest.mark.parameter("bnb_4bit_compute_dtype")
def test_layers_compute_in_the_type_of_the_weights_unless_told_otherwise(checkpoint):
    model = load(checkpoint, method="bnb", bits=4, model={"torch_dtype": "bfloat16"})
    assert model.model.layers[0].mlp.up_proj.compute_dtype == torch.bfloat16


@pytest.mark.extra
@pytest.mark.parameter("quant_method")
@pytest.mark.parametrize("method", ["bnb", "hqq", "quanto"])
def test_routers_and_the_output_layer_keep_their_weights_and_unquantized_experts_are_told(
    moe, method, caplog, monkeypatch
):
    monkeypatch.setattr(get_logger(), "propagate", True)
    layers = quantized_layers(load(moe, method=method, bits=4))
    assert "model.layers.0.self_attn.q_proj" in layers
    assert "model.layers.0.mlp.shared_expert.up_proj" in layers
    assert not [name for name in layers if name.endswith(("gate", "lm_head"))]
    assert "the experts, 98,304 weights in 8 bare parameters, stay in float32" in caplog.text


@pytest.mark.parameter("quant_method")
def test_senses_and_routers_are_named_with_the_output_layer_and_nothing_where_there_are_none(checkpoint, moe):
    assert kept_modules(model_info(ModelOptions(model=str(checkpoint)))) is None
    kept = kept_modules(model_info(ModelOptions(model=str(moe))))
    assert kept is not None
    assert "lm_head" in kept


@pytest.mark.parameter("quant_method")
@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.needs_gpu])
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_method_that_needs_a_gpu_says_so(checkpoint, method):
    with pytest.raises(ModelError, match=f"--quant_method {method} needs a CUDA GPU.* bnb, quanto and hqq also work"):
        load(checkpoint, method=method, bits=8)


@pytest.mark.gpu
@pytest.mark.parameter("quant_method")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="its kernels run on a GPU")
@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.needs_gpu])
def test_a_model_is_quantized_on_a_gpu(tmp_path, method):
    folder = tiny.checkpoint(tmp_path / "m", hidden_size=256, intermediate_size=512, head_dim=64)
    plain = load(folder, model={"torch_dtype": "bfloat16"})
    model = load(folder, method=method, bits=8, model={"torch_dtype": "bfloat16"})
    with torch.no_grad():
        a, b = (each(IDS_BT.cuda()).logits.float() for each in (model, plain))
    assert float((a - b).norm() / b.norm()) < 0.1


@pytest.mark.parameter("quant_method")
@pytest.mark.parametrize(("method", "package"), [("bnb", "bitsandbytes"), ("hqq", "hqq"), ("quanto", "optimum")])
def test_a_method_without_its_package_says_what_to_install(checkpoint, method, package):
    if importlib.util.find_spec(package):
        pytest.skip("the package is installed here")
    with pytest.raises(MissingPackage, match=rf"needs the package {package}, .* pip install 'swiftlet\[quant\]'"):
        load(checkpoint, method=method, bits=4)


def quantized_config(folder, **config):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": config}))
    return folder


@pytest.mark.parametrize(("stored", "install"), [("gptq", "gptqmodel optimum"), ("awq", "gptqmodel")])
def test_a_quantized_checkpoint_says_what_reading_it_needs(tmp_path, stored, install):
    folder = quantized_config(tiny.checkpoint(tmp_path / "m"), quant_method=stored, bits=4)
    with pytest.raises(MissingPackage, match=rf"is quantized with {stored}, .* pip install {install}"):
        load(folder)


@pytest.mark.parametrize(
    ("stored", "kernel"),
    [({"quant_method": "gptq"}, "auto_trainable"), ({"quant_method": "awq", "backend": "autoawq"}, "auto_trainable"),
     ({"quant_method": "awq", "backend": "llm-awq"}, "llm-awq"), ({"quant_method": "fp8"}, None)],
)  # fmt: skip
def test_training_wants_kernels_that_pass_gradients_on_unless_the_checkpoint_names_one(tmp_path, stored, kernel):
    config = AutoConfig.from_pretrained(quantized_config(tiny.checkpoint(tmp_path / "m"), bits=4, **stored))
    choose_trainable_kernels(config)
    assert config.quantization_config.get("backend") == kernel
    plain = AutoConfig.from_pretrained(tiny.checkpoint(tmp_path / "plain"))
    choose_trainable_kernels(plain)
    assert not hasattr(plain, "quantization_config")


def test_a_layer_is_known_as_quantized_by_what_its_class_is_a_kind_of():
    class BaseQuantLinear(torch.nn.Module):
        pass

    class TorchKernel(BaseQuantLinear):
        pass

    assert quantized_layers(torch.nn.Sequential(TorchKernel(), torch.nn.Linear(2, 2))) == ["0"]


@pytest.mark.parameter("quant_method")
def test_what_is_quantized_is_not_quantized_again(tmp_path):
    folder = quantized_config(tiny.checkpoint(tmp_path / "m"), quant_method="fp8", weight_block_size=[32, 32])
    with pytest.raises(ModelError, match=r"is quantized already, with fp8\. Drop --quant_method"):
        load(folder, method="bnb", bits=4)


def to_fp8(folder, block=32):
    """Store the matrices of the layers as blocks of float8 with a scale each, as DeepSeek-V3 does."""
    tensors = {}
    for name, value in load_file(folder / "model.safetensors").items():
        if ".layers." not in name or value.dim() != 2:
            tensors[name] = value
            continue
        rows, columns = value.shape
        blocks = value.reshape(rows // block, block, columns // block, block)
        scale = blocks.abs().amax(dim=(1, 3)) / 448
        coded = (blocks / scale[:, None, :, None]).reshape(rows, columns)
        tensors |= {name: coded.to(torch.float8_e4m3fn), f"{name.removesuffix('.weight')}.weight_scale_inv": scale}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return quantized_config(folder, quant_method="fp8", weight_block_size=[block, block], activation_scheme="dynamic")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU computes with the float8 weights")
def test_an_fp8_checkpoint_is_dequantized_on_a_cpu_and_takes_an_adapter(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(get_logger(), "propagate", True)
    plain = load(tiny.checkpoint(tmp_path / "m"))
    caplog.set_level("INFO")
    model = load(to_fp8(tmp_path / "m"))
    assert difference(model, plain) < 0.05
    assert not is_quantized(model)
    assert "(fp8) are dequantized to" in caplog.text
    adapted = attach(load(tmp_path / "m", training=True), TunerChoice(), TunerOptions())
    adapted(IDS_BT, labels=IDS_BT).loss.backward()
    learnt = {name for name, parameter in adapted.named_parameters() if parameter.grad is not None}
    assert learnt
    assert all(".lora_" in name for name in learnt)


@pytest.mark.extra
@pytest.mark.parametrize("bits", [4, 8])
def test_a_checkpoint_that_bitsandbytes_quantized_loads_as_it_was_saved(tmp_path, checkpoint, bits):
    saved = load(checkpoint, training=True, method="bnb", bits=bits)
    saved.save_pretrained(tmp_path / "m")
    model = load(tmp_path / "m", training=True)
    assert len(quantized_layers(model)) == 14
    assert difference(model, saved) < 1e-6
    with pytest.raises(UsageError, match="--tuner_type full cannot train quantized weights"):
        require_whole(model)
