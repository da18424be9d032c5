"""This file knows LoRA whose beginning is taken out of the weights: how it is begun, saved for everybody, and resumed.

PiSSA, OLoRA and LoRA-GA begin with matrices A0 and B0 whose product is not zero. So that the model is the same at first,
it is taken out of the weight: W = R + s B0 A0, and R is what stays fixed. R is of no use to anybody who has W. What is
saved is therefore the change of W, which is LoRA again, of twice the rank:

    R + s B A - W = s (B A - B0 A0) = s [B - B0, B0] [A; A - A0]

LoftQ begins with quantized weights, which have lost about s B0 A0 already; there nothing is taken out.

The change is used with W like every other adapter. Both halves are small as long as the change is, so that rounding to half
precision rounds the change and not the principal part of the weight. The header of the file says what it is; A, B, A0
and B0 stand beside it, because sums of rounded differences are not what they were to the last bit.

Axes: O outputs and I inputs of a layer, R the rank.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftConfig, PeftModel, set_peft_model_state_dict
from peft.tuners.lora.layer import Linear, LoraLayer, ParamWrapper
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from swift.core.errors import ModelError, RunError, UsageError
from swift.core.logs import get_logger
from swift.models.quantize import is_quantized_layer
from swift.tuners import loftq
from swift.tuners.beginnings import Factors, lora_ga, olora, pissa
from swift.tuners.request import Request

FILE = "adapter_model.safetensors"
STATE = "residual_state.safetensors"
"""A and B to go on with, and A0 and B0, from which R follows: what a checkpoint has beside the adapter."""
ENTRY = "residual"
"""Key of the header of the file: what the adapter is while it is trained, as JSON of `Residual`."""
ADAPTER = "default"
SIDES = {"lora_A": 0, "lora_B": 1, "lora_embedding_A": 0, "lora_embedding_B": 1}
"""Matrix of an adapter -> its axis of the rank."""


@dataclass(frozen=True)
class Residual:
    """What an adapter is while it is trained: how it began, and the rank and alpha that become others when it is saved.

    quantization: of the weights below it, where they are quantized; see `loftq.quantization_of`.
    """

    init_weights: str
    r: int
    lora_alpha: float
    quantization: str | None = None


def begins_outside(init_weights: str) -> bool:
    """Whether `--init_weights` begins with what is taken out of the weights, or has been lost from them."""
    return init_weights.startswith("pissa") or init_weights in {"olora", "lora-ga", "loftq"}


def begin(adapted: PeftModel, request: Request) -> None:
    """Give a new adapter the beginning of `--init_weights`, and take it out of the weights.

    Embeddings and convolutions begin as with `true`. Raises ModelError for weights that are quantized, and for LoRA-GA
    when there are no rows to compute gradients on. With `loftq` it is the quantized weights that begin so; there must be
    some, and nothing is taken out of them.
    """
    if request.options.target_parameters:
        raise UsageError(
            f"--target_parameters cannot begin with --init_weights {request.options.init_weights}. Use true."
        )
    layers = _beginning_layers(adapted, request.options.init_weights)
    compute = _computed(adapted, layers, request)
    get_logger().info("%d adapters begin as --init_weights %s says", len(layers), request.options.init_weights)
    with torch.no_grad():
        for name, layer in layers.items():
            matrices = [matrix_of(layer, side) for side in ("lora_A", "lora_B")]
            for matrix, value in zip(matrices, compute(name, layer), strict=True):
                matrix.copy_(value)
            set_aside(layer, *(matrix.clone() for matrix in matrices))
    adapted.peft_config[ADAPTER].init_lora_weights = request.options.init_weights  # type: ignore[attr-defined]  # it is the config of LoRA


def linear_layers(adapted: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """The adapted linear layers, with their names."""
    for name, module in adapted.named_modules():
        if not isinstance(module, LoraLayer) or isinstance(module, ParamWrapper):
            continue
        if isinstance(module, Linear) or is_quantized_layer(module.get_base_layer()):
            yield name, module


def _beginning_layers(adapted: PeftModel, init_weights: str) -> dict[str, LoraLayer]:
    """The layers that get the beginning of `--init_weights`, by name. Raises ModelError for those that cannot."""
    layers = dict(linear_layers(adapted))
    quantized = {name: layer for name, layer in layers.items() if is_quantized_layer(layer.get_base_layer())}
    if init_weights == "loftq":
        if not quantized:
            raise ModelError(
                "--init_weights loftq makes up for what quantization loses, and no adapted layer is quantized. Add "
                "--quant_method bnb --quant_bits 4, or use --init_weights true."
            )
        return quantized
    if quantized:
        raise ModelError(
            f"--init_weights {init_weights} takes a part out of the weights, and {next(iter(quantized))} is quantized. Use "
            f"--init_weights true or loftq, or load the model without quantization."
        )
    return layers


def weight_of(layer: LoraLayer) -> Tensor:
    """The weight below an adapter as [O, I]; a view, so that writing to it changes the weight."""
    base = base_of(layer)
    return base.weight.data.T if isinstance(base, Conv1D) else base.weight.data


def base_of(layer: LoraLayer) -> nn.Linear | Conv1D:
    """The layer below an adapter."""
    return cast("Any", layer).get_base_layer()


def matrix_of(layer: LoraLayer, side: str) -> Tensor:
    """A or B of an adapter, to be written to."""
    return cast("nn.Module", layer).get_submodule(f"{side}.{ADAPTER}").get_parameter("weight").data


def set_aside(layer: LoraLayer, a_RI: Tensor, b_OR: Tensor) -> None:
    """Take scale B0 A0 out of the weight of a layer, in float32, and keep A0 and B0 for what is saved.

    Quantized weights stay as they are: what they have lost has been taken out already.
    """
    module = cast("nn.Module", layer)
    if not is_quantized_layer(layer.get_base_layer()):
        weight_OI = weight_of(layer)
        taken_OI = layer.scaling[ADAPTER] * (b_OR.float() @ a_RI.float())
        weight_OI.copy_((weight_OI.float() - taken_OI).to(weight_OI.dtype))
    module.register_buffer("initial_A", a_RI, persistent=False)
    module.register_buffer("initial_B", b_OR, persistent=False)


def is_residual(model: nn.Module) -> bool:
    """Whether the adapter of a model has its beginning taken out of the weights."""
    return isinstance(model, PeftModel) and any(_has_initial(layer) for _, layer in linear_layers(model))


def _has_initial(layer: LoraLayer) -> bool:
    return any(name == "initial_A" for name, _ in cast("nn.Module", layer).named_buffers(recurse=False))


def _initial_of(layer: LoraLayer) -> Factors:
    module = cast("nn.Module", layer)
    return module.get_buffer("initial_A"), module.get_buffer("initial_B")


# ------------------------------------------------------------------------------------------------------ the beginning


def _computed(
    adapted: PeftModel, layers: Mapping[str, LoraLayer], request: Request
) -> Callable[[str, LoraLayer], Factors]:
    """How A0 and B0 follow from the name of a layer and the layer."""
    name, rank = request.options.init_weights, request.options.lora_rank
    scale = next(iter(layers.values())).scaling[ADAPTER] if layers else 1.0
    if name == "lora-ga":
        gradients = estimated_gradients(adapted, layers, request.run.backward)
        return lambda name, layer: lora_ga(weight_of(layer).float(), gradients[name], rank, scale, request.variants)
    _require_rank(layers, rank, name)
    if name == "loftq":
        return loftq.lost(adapted, request.run.stored)
    if name == "olora":
        return lambda _, layer: olora(weight_of(layer).float(), rank, scale)
    niter = int(name.rpartition("_")[2]) if "_niter_" in name else None
    return lambda _, layer: pissa(weight_of(layer).float(), rank, scale, niter)


def _require_rank(layers: Mapping[str, LoraLayer], rank: int, init_weights: str) -> None:
    for name, layer in layers.items():
        assert layer.out_features is not None, "a linear layer has outputs"
        assert layer.in_features is not None, "a linear layer has inputs"
        shape = (layer.out_features, layer.in_features)
        if min(shape) < rank:
            raise ModelError(
                f"--lora_rank {rank} is more than the weight of {name}, of shape {shape}, has: --init_weights "
                f"{init_weights} takes the adapter out of it. Lower --lora_rank to {min(shape)} or less."
            )


def estimated_gradients(
    adapted: PeftModel, layers: Mapping[str, LoraLayer], backward: Callable[[nn.Module], None] | None
) -> dict[str, Tensor]:
    """The gradient of the training loss by the weight of each layer, [O, I] in float32, summed over all batches.

    The gradient of a layer is taken away as soon as it is there, so that never all of them stand beside the weights in
    the memory of the device.
    """
    if backward is None:
        raise ModelError("--init_weights lora-ga computes gradients on rows of the training data, and there are none.")
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    weights = {name: base_of(layer).weight for name, layer in layers.items()}
    sums: dict[str, Tensor] = {}
    hooks = []

    def collect(name: str) -> Callable[[Tensor], None]:
        def add(parameter: Tensor) -> None:
            assert parameter.grad is not None, "the hook runs when the gradient is there"
            gradient = parameter.grad.detach().float().cpu()
            sums[name] = sums[name] + gradient if name in sums else gradient
            parameter.grad = None

        return add

    for parameter in trained:
        parameter.requires_grad_(False)
    for name, weight in weights.items():
        hooks.append(weight.requires_grad_(True).register_post_accumulate_grad_hook(collect(name)))
    try:
        backward(adapted)
    finally:
        for hook in hooks:
            hook.remove()
        for weight in weights.values():
            weight.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)
    absent = next((name for name in weights if name not in sums), None)
    if absent is not None:
        raise ModelError(
            f"--init_weights lora-ga: the loss of the first rows does not depend on {absent}, so there is no gradient to "
            f"begin with. Leave it out of --target_modules, or raise --lora_ga_iters."
        )
    return {name: _oriented(layers[name], gradient.to(weights[name].device)) for name, gradient in sums.items()}


def _oriented(layer: LoraLayer, gradient: Tensor) -> Tensor:
    return gradient.T if isinstance(base_of(layer), Conv1D) else gradient


# ------------------------------------------------------------------------------------------------- saved and resumed


def write_as_change(model: PeftModel, folder: Path) -> None:
    """Turn the adapter that was just saved in a folder into the change of the original weights, of twice the rank."""
    config = model.peft_config[ADAPTER]
    assert isinstance(config, LoraConfig), "only LoRA has a beginning of its own"
    about = Residual(str(config.init_lora_weights), config.r, config.lora_alpha, loftq.quantization_of(model))
    initial = _initial_factors(model)
    learnt = load_file(folder / FILE)
    change = {name: _change(name, tensor, initial.get(name)) for name, tensor in learnt.items()}
    save_file(change, folder / FILE, metadata={"format": "pt", ENTRY: json.dumps(asdict(about))})
    state = {f"learnt/{name}": tensor for name, tensor in learnt.items() if _rank_axis(name) is not None}
    save_file(state | {f"initial/{name}": tensor for name, tensor in initial.items()}, folder / STATE)
    file = folder / "adapter_config.json"
    stored = json.loads(file.read_text(encoding="utf-8"))
    stored |= _of_twice_the_rank(about, use_rslora=config.use_rslora)
    file.write_text(json.dumps(stored, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_residual(folder: Path) -> Residual | None:
    """What the adapter in a folder is while it is trained; None when it is trained as it is saved."""
    if not (folder / FILE).is_file():
        return None
    with safe_open(folder / FILE, framework="pt") as opened:
        about = (opened.metadata() or {}).get(ENTRY)
    return None if about is None else Residual(**json.loads(about))


def restore(model: PeftModel, folder: Path) -> None:
    """Bring a model with a fresh adapter, or one trained on, to where a saved one was: its matrices, its beginning.

    Exactly, where its state was saved with it. Raises ModelError when the adapter of the model began with other
    matrices than the saved one, and when the weights are quantized otherwise than those it was trained on.
    """
    about = read_residual(folder)
    assert about is not None, "the caller has looked"
    here = loftq.quantization_of(model)
    if here not in (None, about.quantization):
        raise ModelError(
            f"The adapter {folder} was trained on weights {_told(about.quantization)}, and these are {_told(here)}. "
            f"Quantize as it was trained, or not at all."
        )
    learnt, initial = _parts(folder, about.r)
    with torch.no_grad():
        for name, layer in linear_layers(model):
            device = matrix_of(layer, "lora_A").device
            factors = [initial[f"{name}.{side}.weight"].to(device) for side in ("lora_A", "lora_B")]
            if not _has_initial(layer):
                set_aside(layer, *factors)
            elif not all(map(torch.equal, _initial_of(layer), factors)):
                raise ModelError(
                    f"{folder} holds an adapter that began otherwise than the one of this model, at {name}."
                )
    left = set_peft_model_state_dict(model, learnt, ADAPTER)
    assert not left.unexpected_keys, f"{folder} has what the model has not: {left.unexpected_keys[:3]}"
    model.peft_config[ADAPTER].init_lora_weights = about.init_weights  # type: ignore[attr-defined]  # it is the config of LoRA


def resume(model: PeftModel, folder: Path) -> None:
    """Bring a model to where its training was when it was saved. Raises RunError when the state of it is missing."""
    if not (folder / STATE).is_file():
        raise RunError(f"{folder} cannot be continued: it lacks {STATE}. Start a new run from it with --adapters.")
    restore(model, folder)


def fits(model: nn.Module, folder: Path) -> bool:
    """Whether an adapter can be put on a model as it was trained: on weights quantized as those it began with."""
    about = read_residual(folder)
    return about is not None and about.quantization is not None and about.quantization == loftq.quantization_of(model)


def _told(quantization: str | None) -> str:
    return "that are not quantized" if quantization is None else f"quantized as {quantization}"


def training_config(config: PeftConfig, about: Residual) -> LoraConfig:
    """The config of a saved adapter as it is while the adapter is trained."""
    assert isinstance(config, LoraConfig), "only LoRA has a beginning of its own"
    return dataclasses.replace(config, r=about.r, lora_alpha=about.lora_alpha)  # type: ignore[arg-type]  # alpha may be no whole number


def _initial_factors(model: PeftModel) -> dict[str, Tensor]:
    """A0 and B0 by the names that A and B are saved under."""
    found = {}
    for name, layer in linear_layers(model):
        if _has_initial(layer):
            found[f"{name}.lora_A.weight"], found[f"{name}.lora_B.weight"] = _initial_of(layer)
    return found


def _of_twice_the_rank(about: Residual, *, use_rslora: bool) -> dict[str, Any]:
    """What a saved config says instead: with twice the rank, alpha grows so that the scale stays as it is."""
    growth = math.sqrt(2) if use_rslora else 2
    return {"r": 2 * about.r, "lora_alpha": about.lora_alpha * growth, "init_lora_weights": True}


def _rank_axis(name: str) -> int | None:
    """Along which axis of a saved tensor its ranks lie; None for what is no matrix of LoRA."""
    return next((axis for side, axis in SIDES.items() if side in name.split(".")), None)


def _change(name: str, learnt: Tensor, initial: Tensor | None) -> Tensor:
    """[A; A - A0] or [B - B0, B0] of a matrix; what has no beginning of its own has A0 = A and B0 = 0."""
    axis = _rank_axis(name)
    if axis is None:
        return learnt
    if axis == 0:
        halves = [learnt, torch.zeros_like(learnt) if initial is None else learnt - initial.to(learnt.device)]
    else:
        zero = torch.zeros_like(learnt) if initial is None else initial.to(learnt.device)
        halves = [learnt - zero, zero]
    return torch.cat(halves, dim=axis).contiguous()


def _parts(folder: Path, rank: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What a saved adapter has learnt and what it began with, by the names they are saved under."""
    learnt, initial = {}, {}
    for name, tensor in load_file(folder / FILE).items():
        axis = _rank_axis(name)
        if axis is None:
            learnt[name] = tensor
            continue
        first, second = tensor.narrow(axis, 0, rank), tensor.narrow(axis, rank, rank)
        learnt[name], initial[name] = (first, first - second) if axis == 0 else (first + second, second)
    if (folder / STATE).is_file():
        for entry, tensor in load_file(folder / STATE).items():
            kind, _, name = entry.partition("/")
            (learnt if kind == "learnt" else initial)[name] = tensor
    return learnt, initial
