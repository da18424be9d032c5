"""This file knows how the matrices of a model lie in memory so that a processor multiplies few rows with them fast.

Axes: M rows, K inputs, N outputs.

A product of few rows is as slow as the matrix is read, and torch lays every matrix out anew for its kernels each time. A
model that only answers can keep them laid out: with 4 to 32 rows a product then takes about half the time, with many
rows a little less than before. The numbers are the same up to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from swift.core.logs import get_logger


class PackedLinear(nn.Module):
    """A linear layer whose matrix is laid out for oneDNN; it cannot learn."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)

    @property
    def weight(self) -> Tensor:
        """[N, K] a copy of the matrix, for who asks what it is."""
        return self._packed.to_dense()

    def plain(self) -> nn.Linear:
        """The layer it was made of."""
        made = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        made.weight = nn.Parameter(self.weight, requires_grad=False)
        made.bias = self.bias
        return made.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., N] for inputs [..., K]."""
        return torch.ops.mkldnn._linear_pointwise(inputs, self._packed, self.bias, "none", [], "")

    def extra_repr(self) -> str:
        """Its shape."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def can_pack() -> bool:
    """Whether torch was built with the kernels."""
    return torch.backends.mkldnn.is_available()


@torch.no_grad()
def unpack(model: nn.Module) -> None:
    """The plain matrices again, in place: what is put on a model, such as an adapter, knows no others."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, PackedLinear):
                setattr(parent, name, child.plain())


CALL_THEIR_LAYERS = ("transformers.", "peft.tuners.lora.")
"""Where modules come from that call their linear layers, and do not reckon with the matrices themselves."""


@torch.no_grad()
def pack(model: nn.Module) -> int:
    """Lay out the plain matrices of a model that are on a CPU, in place; returns how many they are.

    The model can answer from then on, and neither learn nor be saved.
    """
    if not can_pack():
        return 0
    types = {torch.float32}
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        types.add(torch.bfloat16)
    places = [
        (parent, name, child)
        for parent in model.modules()
        if type(parent).__module__.startswith(CALL_THEIR_LAYERS)
        for name, child in parent.named_children()
        if type(child) is nn.Linear and child.weight.device.type == "cpu" and child.weight.dtype in types
    ]
    for parent, name, child in places:
        setattr(parent, name, PackedLinear(child))
    if places:
        get_logger().info("%d matrices are laid out for this processor (oneDNN)", len(places))
    return len(places)
