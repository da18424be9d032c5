"""This file knows LoRA that begins with what quantization has lost (LoftQ).

A quantized weight Q is not the weight W it was made of. LoftQ lets A0 and B0 hold the best approximation of W - Q, so
that Q + s B0 A0 is nearer to W than Q is (Li et al. 2023, arXiv:2310.08659, algorithm 1). The algorithm may go on and
quantize W - s B0 A0 in place of W; here it takes its first turn alone (T = 1), because then Q is what everybody gets who
quantizes W, and the adapter needs no weights of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from swift.core.errors import ModelError
from swift.models.quantize import is_quantized
from swift.tuners.beginnings import Factors, pissa

OPTION = "--init_weights loftq"
_WRAPPED = "base_model.model."
"""What peft puts in front of the names of a model."""
_OF_COMPUTING = ("bnb_4bit_compute_dtype", "bnb_4bit_quant_storage")
"""Keys of a quantization_config that say how is computed with the weights or how they lie in memory, not what they are."""


def quantization_of(model: nn.Module) -> str | None:
    """How the weights of a model are quantized, in a form that can be compared; None for one that is not quantized."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if not is_quantized(base):
        return None
    config = base.config.to_dict()["quantization_config"]  # type: ignore[operator]  # a model of transformers
    told = config if isinstance(config, dict) else config.to_dict()
    kept = {key: value for key, value in told.items() if key not in _OF_COMPUTING and not key.startswith("_")}
    return json.dumps(kept, sort_keys=True, default=str)


def quantized_weight(layer: nn.Module, dtype: torch.dtype) -> Tensor:
    """What a quantized linear layer multiplies with, [O, I] in float32: its outputs for all unit vectors."""
    device = next(iter(layer.parameters())).device
    units_II = torch.eye(int(layer.in_features), dtype=dtype, device=device)  # type: ignore[arg-type]  # a linear layer
    with torch.no_grad():
        weight_IO = layer(units_II).float()
        if layer.bias is not None:
            weight_IO = weight_IO - layer.bias.float()  # type: ignore[operator]  # a linear layer
    return weight_IO.T.contiguous()


def lost(adapted: PeftModel, stored: Callable[[str], Tensor] | None) -> Callable[[str, LoraLayer], Factors]:
    """How A0 and B0 of a layer follow from its name: scale B0 A0 is the best approximation of what it has lost.

    stored: reads an original weight by its name. Raises ModelError without it, and when it is none of the layer.
    """
    if stored is None:
        raise ModelError(
            f"{OPTION} makes up for what quantization loses, and so needs the weights as they were before. A checkpoint "
            f"that is quantized already has them no more. Begin with --init_weights true."
        )

    def factors(name: str, layer: LoraLayer) -> Factors:
        quantized_OI = quantized_weight(layer.get_base_layer(), adapted.dtype)
        own_name = name.removeprefix(_WRAPPED)
        whole_OI = stored(f"{own_name}.weight").to(quantized_OI)
        lost_OI = _nearest(whole_OI, quantized_OI) - quantized_OI
        if not float(lost_OI.norm()) < float(whole_OI.norm()):
            raise ModelError(
                f"{OPTION}: the weight of {own_name} in the checkpoint is not the one that the model computes with. Begin "
                f"with --init_weights true."
            )
        return pissa(lost_OI, layer.r["default"], layer.scaling["default"])

    return factors


def _nearest(whole: Tensor, quantized: Tensor) -> Tensor:
    """A stored weight the way round that the layer has it: GPT-2 stores [I, O]."""
    ways = [each for each in (whole, whole.T) if each.shape == quantized.shape]
    if not ways:
        raise ModelError(
            f"{OPTION}: a weight of the checkpoint is {tuple(whole.shape)} where the model computes with "
            f"{tuple(quantized.shape)}. Begin with --init_weights true."
        )
    return min(ways, key=lambda each: float((each - quantized).norm()))
