"""This file knows a linear layer with a LoRA that costs little more than the layer alone.

Axes: N tokens, K inputs, O outputs, R ranks.

peft multiplies with the matrices of an adapter in their own type, float32, and casts the inputs of every layer to it. In
a bfloat16 model that makes two narrow products as slow as half of the wide one beside them. Here all products are in the
type of the model, as they are in mixed precision, while the adapter's matrices and their gradients keep theirs.

The adapter comes first and the wide product is added to it. So autograd has all that it keeps before that product, and
where activations are recomputed, the last layer of a block is not run again.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from peft import LoraConfig, PeftConfig
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn


class LowRankLinear(Linear):
    """peft's linear layer, with the same parameters, files and merging; plain LoRA on a frozen layer takes a short way.

    All else goes peft's way: DoRA, several adapters, merged or disabled ones, a layer that is quantized, divided over
    processes or listened to, and types that are not those of the model.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """W x + b + scale B A dropout(x), [..., O] for inputs [..., K]."""
        if args or kwargs or not self._is_plain(x):
            return super().forward(x, *args, **kwargs)
        [adapter] = self.active_adapters
        base = cast("nn.Linear", self.base_layer)
        a_RK, b_OR = self.lora_A[adapter].weight, self.lora_B[adapter].weight
        inputs_NK = x.reshape(-1, x.shape[-1])
        ranks_NR = self.lora_dropout[adapter](inputs_NK) @ a_RK.to(x.dtype).T
        scaled_RO = (b_OR * self.scaling[adapter]).to(x.dtype).T
        added_NO = ranks_NR @ scaled_RO if base.bias is None else torch.addmm(base.bias, ranks_NR, scaled_RO)
        return torch.addmm(added_NO, inputs_NK, base.weight.T).view(*x.shape[:-1], -1)

    def _is_plain(self, x: Tensor) -> bool:
        """Whether the short way says what peft's says, up to the rounding of the model's type."""
        adapters = self.active_adapters
        if self.disable_adapters or self.merged or len(adapters) != 1 or adapters[0] not in self.lora_A:
            return False
        [adapter] = adapters
        if adapter in self.lora_variant or self.lora_bias[adapter]:
            return False
        layers = (self.base_layer, self.lora_A[adapter], self.lora_B[adapter])
        if any(type(layer) is not nn.Linear or is_listened_to(layer) for layer in layers):
            return False
        weight, *matrices = (layer.get_parameter("weight") for layer in layers)
        return type(weight) is nn.Parameter and _fits(x, weight, *matrices)


def shorten(config: PeftConfig) -> None:
    """Let the adapter that is made of a config take the short way on plain linear layers, where it is LoRA."""
    if type(config) is LoraConfig and not config.fan_in_fan_out:
        config._register_custom_module({nn.Linear: cast("type[nn.Module]", _low_rank)})


def _low_rank(target: nn.Module, adapter_name: str, config: LoraConfig, **kwargs: Any) -> LowRankLinear | None:
    """The layer for a target that peft asks for; None leaves it to peft, as all that only derives from a linear layer."""
    if type(target) is not nn.Linear or kwargs.pop("parameter_name") is not None:
        return None
    return LowRankLinear(target, adapter_name, config=config, **kwargs)


def is_listened_to(layer: nn.Module) -> bool:
    """Whether something happens when this layer is called: its weights are gathered or moved, or its inputs are noted."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return any(hooks) or "forward" in vars(layer)


def _fits(x: Tensor, weight: Tensor, *adapter: Tensor) -> bool:
    """Whether products are in the type of the model: inputs have it, and the adapter has it or float32 for bfloat16."""
    if x.dtype != weight.dtype:
        return False
    device = x.device.type
    if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) != x.dtype:
        return False
    allowed = {x.dtype, torch.float32} if x.dtype == torch.bfloat16 else {x.dtype}
    return all(matrix.dtype in allowed for matrix in adapter)
