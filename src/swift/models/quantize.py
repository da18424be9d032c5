"""This file knows how weights are quantized while they are loaded, and checkpoints that are quantized already."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import (
    BitsAndBytesConfig,
    EetqConfig,
    FineGrainedFP8Config,
    PreTrainedConfig,
    PreTrainedModel,
    QuantoConfig,
)
from transformers.quantizers.quantizers_utils import should_convert_module

from swift.catalog.parts import PARTS
from swift.core.errors import MissingPackage, ModelError
from swift.core.extras import need
from swift.core.logs import get_logger
from swift.models.info import ModelInfo
from swift.models.loader import row_of
from swift.models.precision import torch_dtype
from swift.options.model import QuantizationOptions

ROUTERS = r".*\.(gate|router|shared_expert_gate|wg)"
"""What decides which experts are asked, as a pattern of whole names: small, and wrong choices cost more than memory."""
HEADS = ("lm_head", "output_layer", "embed_out", "score")
"""Names of output layers, which are not quantized."""
HQQ_GROUP = 64
"""Weights that share a scale and a zero point."""
QUANTIZED = frozenset(
    {"Linear4bit", "Linear8bitLt", "QLinear", "HQQLinear", "EetqLinear", "FP8Linear", "BitLinear", "CompressedLinear"}
)
"""Classes of linear layers whose weights are quantized; those of gptqmodel are kinds of a class that ends in QuantLinear."""
PLAIN = (nn.Linear, nn.Embedding)


@dataclass(frozen=True)
class Method:
    """A way to quantize while loading.

    module: what must be importable; None when torch is enough.
    needs_gpu: whether its kernels exist for GPUs only.
    config: the options and the modules left as they are -> what `from_pretrained` is given; None for a method that
        works on the loaded model.
    """

    module: str | None
    needs_gpu: bool
    config: Callable[[QuantizationOptions, list[str] | None], Any] | None


def _bnb(options: QuantizationOptions, kept: list[str] | None) -> BitsAndBytesConfig:
    if options.quant_bits == 8:
        logging.getLogger("bitsandbytes.autograd._functions").addFilter(_is_no_echo)
        get_logger().info("8-bit layers of bitsandbytes compute in float16, whatever the type of the weights is.")
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=options.bnb_4bit_compute_dtype,
        bnb_4bit_quant_type=options.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=options.bnb_4bit_use_double_quant,
        bnb_4bit_quant_storage=options.bnb_4bit_quant_storage,
        llm_int8_skip_modules=kept,
    )


def _is_no_echo(record: logging.LogRecord) -> bool:
    """bitsandbytes says the same of every layer in every step."""
    return "inputs will be cast" not in record.getMessage()


def _eetq(_: QuantizationOptions, kept: list[str] | None) -> EetqConfig:
    return EetqConfig("int8", modules_to_not_convert=kept)


def _quanto(options: QuantizationOptions, kept: list[str] | None) -> QuantoConfig:
    weights = "float8" if options.quant_bits == "float8" else f"int{options.quant_bits}"
    return QuantoConfig(weights=weights, modules_to_not_convert=kept)


def _fp8(_: QuantizationOptions, kept: list[str] | None) -> FineGrainedFP8Config:
    return FineGrainedFP8Config(modules_to_not_convert=kept)


METHODS = {
    "bnb": Method("bitsandbytes", False, _bnb),
    "hqq": Method("hqq", False, None),
    "quanto": Method("optimum.quanto", False, _quanto),
    "eetq": Method("kernels", True, _eetq),
    "fp8": Method(None, True, _fp8),
}
"""--quant_method -> how it works."""
STORED = {
    "gptq": (("gptqmodel", "optimum"), "gptqmodel optimum"),
    "awq": (("gptqmodel",), "gptqmodel"),
    "aqlm": (("aqlm",), "aqlm"),
    "bitsandbytes": (("bitsandbytes",), "'swiftlet[quant]'"),
    "compressed-tensors": (("compressed_tensors",), "compressed-tensors"),
    "auto-round": (("auto_round",), "auto-round"),
    "hqq": (("hqq",), "'swiftlet[quant]'"),
}
"""quant_method of config.json -> the modules that reading such a checkpoint needs, and what installs them."""
ANY_KERNEL = (None, "auto", "autoawq")
"""Values of `backend` in a quantization_config that leave open which kernel computes."""


def loading_arguments(info: ModelInfo, options: QuantizationOptions) -> dict[str, Any]:
    """What `from_pretrained` is given to quantize; {} for a method that works on the loaded model, or for none.

    Raises ModelError when the checkpoint is quantized already or the method needs a GPU that is not there, and
    MissingPackage when a package is missing.
    """
    require_readable(info)
    name = options.quant_method
    if name is None:
        return {}
    if info.quantization is not None:
        raise ModelError(
            f"--quant_method {name}: {info.path} is quantized already, with {info.quantization}. Drop --quant_method "
            f"and --quant_bits: such a checkpoint is loaded and trained as it is."
        )
    method = METHODS[name]
    if method.needs_gpu and not torch.cuda.is_available():
        raise ModelError(
            f"--quant_method {name} needs a CUDA GPU, and there is none here. bnb, quanto and hqq also work on a CPU."
        )
    if method.module is not None:
        need(method.module, f"--quant_method {name}")
    if method.config is None:
        return {}
    if options.bnb_4bit_compute_dtype is None:
        options = options.model_copy(update={"bnb_4bit_compute_dtype": info.dtype})
    return {"quantization_config": method.config(options, kept_modules(info))}


def choose_trainable_kernels(config: PreTrainedConfig) -> None:
    """Let a GPTQ or AWQ checkpoint be read into layers that pass gradients on.

    The fastest ones (Marlin, ExLlama, those for AVX-512) only answer, and fail when training begins. A kernel that the
    checkpoint names stays.
    """
    stored = vars(config).get("quantization_config")
    if not isinstance(stored, dict) or stored.get("quant_method") not in ("gptq", "awq"):
        return
    if stored.get("backend") in ANY_KERNEL:
        config.quantization_config = {**stored, "backend": "auto_trainable"}


def require_readable(info: ModelInfo) -> None:
    """Raises MissingPackage when the checkpoint is quantized in a way that needs a package that is not installed."""
    modules, install = STORED.get(info.quantization or "", ((), ""))
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise MissingPackage(
            f"--model {info.path} is quantized with {info.quantization}, and reading it needs {', '.join(missing)}, "
            f"not installed here. Run: pip install {install}"
        )


def kept_modules(info: ModelInfo) -> list[str] | None:
    """The modules that are not quantized, as names, prefixes and patterns; None for the output layer alone.

    They are what is no language model, and the routers of a mixture of experts; with them the output layer, which
    must then be named as well.
    """
    row = row_of(info.family)
    senses = PARTS[row.parts].senses if row is not None and row.parts else ()
    routers = (ROUTERS,) if info.is_moe else ()
    return [*senses, *routers, *HEADS] if senses or routers else None


def converted(
    model: PreTrainedModel, info: ModelInfo, options: QuantizationOptions, *, training: bool
) -> PreTrainedModel:
    """The loaded model, quantized by the method that works on loaded models, and a line on what was quantized.

    Raises ModelError when not one layer was quantized although it was asked for.
    """
    if options.quant_method == "hqq":
        _with_hqq(model, info, options)
    if options.quant_method is None and info.quantization is None:
        return model
    if training:
        _keep_gradients(model)
    layers, kept = quantized_layers(model), _plain_layers(model)
    if options.quant_method is not None:
        if not layers:
            raise ModelError(
                f"--quant_method {options.quant_method} found no linear layer to quantize in {info.path}. Drop it."
            )
        bits = options.quant_bits if isinstance(options.quant_bits, str) else f"{options.quant_bits or 8} bits"
        get_logger().info(
            "quantized = %d linear layers (%s, %s); in %s remain: %s",
            len(layers), options.quant_method, bits, info.dtype, ", ".join(kept),
        )  # fmt: skip
        _tell_experts(model, options.quant_method)
    elif not layers:
        get_logger().info("The weights of %s (%s) are dequantized to %s.", info.name, info.quantization, model.dtype)
    return model


def _keep_gradients(model: nn.Module) -> None:
    """Keep the 4-bit layers of bitsandbytes from changing into a form without gradients on a CPU.

    On processors with AVX512-BF16 a layer repacks its weight in the first pass without gradients, such as an
    evaluation, and what is trained below it learns nothing from then on.
    """
    layers: list[Any] = [module for module in model.modules() if type(module).__name__ == "Linear4bit"]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False


def is_quantized(model: nn.Module) -> bool:
    """Whether a model computes with quantized weights, which take an adapter and no gradient."""
    return bool(quantized_layers(model))


def quantized_layers(model: nn.Module) -> list[str]:
    """The names of the linear layers with quantized weights."""
    return [name for name, module in model.named_modules() if is_quantized_layer(module)]


def is_quantized_layer(module: nn.Module) -> bool:
    """Whether a linear layer has quantized weights."""
    names = [kind.__name__ for kind in type(module).__mro__]
    named = any(name in QUANTIZED or name.endswith("QuantLinear") for name in names)
    return named and not list(module.children())  # peft calls what it wraps around one by the same name


def _plain_layers(model: nn.Module) -> list[str]:
    """The last parts of the names of what is not quantized, once each."""
    names = [name for name, module in model.named_modules() if type(module) in PLAIN]
    return list(dict.fromkeys(name.rpartition(".")[2] for name in names))


def _tell_experts(model: PreTrainedModel, method: str) -> None:
    """Say how much is left unquantized where experts are bare parameters of three axes, which the methods pass by."""
    stacks = [p for p in model.parameters() if p.dim() == 3 and p.is_floating_point()]
    if stacks:
        get_logger().warning(
            "--quant_method %s quantizes linear layers: the experts, %s weights in %d bare parameters, stay in %s.",
            method, f"{sum(p.numel() for p in stacks):,}", len(stacks), str(stacks[0].dtype).removeprefix("torch."),
        )  # fmt: skip


def _with_hqq(model: PreTrainedModel, info: ModelInfo, options: QuantizationOptions) -> None:
    """Put HQQ layers in place of the linear ones but the output layer (Badri and Shaji 2023, half-quadratic
    quantization).

    One layer is quantized after another, in the place of the plain one, which therefore must fit. Raises ModelError for
    a model on several devices, and for a layer that is not whole groups.
    """
    places = set((vars(model).get("hf_device_map") or {}).values())
    if len(places) > 1:
        raise ModelError(
            f"--quant_method hqq quantizes a model on one device, and this one is on {', '.join(map(str, places))}. Use "
            f"--device_map cuda:0, or --quant_method bnb."
        )
    hqq = need("hqq.core.quantize", "--quant_method hqq")
    axis = 1 if options.hqq_axis is None else options.hqq_axis
    config: Mapping[str, Any] = hqq.BaseQuantizeConfig(nbits=options.quant_bits, group_size=HQQ_GROUP, axis=axis)
    head, kept = model.get_output_embeddings(), kept_modules(info) or [*HEADS]
    layers = {
        name: module for name, module in model.named_modules()
        if type(module) is nn.Linear and module is not head and not _is_kept(name, kept)
    }  # fmt: skip
    for name, module in layers.items():
        _require_divisible(name, module, axis)
        quantized = hqq.HQQLinear(
            module, quant_config=dict(config), compute_dtype=torch_dtype(info.dtype), device=str(module.weight.device)
        )
        model.set_submodule(name, quantized)
    model.config.quantization_config = {"quant_method": "hqq", "quant_config": dict(config)}


def _require_divisible(name: str, module: nn.Linear, axis: int) -> None:
    if module.weight.numel() % HQQ_GROUP or (axis == 1 and module.in_features % HQQ_GROUP):
        raise ModelError(
            f"--quant_method hqq quantizes groups of {HQQ_GROUP} weights, and {name} has {module.out_features} x "
            f"{module.in_features} of them. Use --quant_method bnb or quanto."
        )


def _is_kept(name: str, kept: list[str]) -> bool:
    return not should_convert_module(name, kept)
