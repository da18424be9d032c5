"""This file knows FlashAttention to a row of sequences, called by name and not by the model's configuration.

Axes: B rows, H heads, T tokens of a row, D channels of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.modeling_flash_attention_utils import _flash_attention_forward

FLASH = ("flash_attention_2", "flash_attention_3")
"""The names under which transformers knows the kernels that take the borders of sequences."""
CARRIED = (
    "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "sliding_window", "softcap", "s_aux",
    "dropout",
)  # fmt: skip
"""What of the settings of an attention these kernels are told."""


@dataclass(frozen=True)
class FlashAttention:
    """Causal attention within the sequences of a row; `name` is one of `FLASH`."""

    name: str

    def __call__(self, _module: nn.Module, query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor,
                 attention_mask: Tensor | None, *, scaling: float, **settings: Any) -> tuple[Tensor, None]:  # fmt: skip
        """Attention as transformers calls it; returns [B, T, H, D of the values]."""
        channels, of_values = query_BHTD.shape[-1], value_BHTD.shape[-1]
        value_BHTD = pad(value_BHTD, (0, channels - of_values))  # the kernels want as many channels everywhere
        query, key, value = (states.transpose(1, 2) for states in (query_BHTD, key_BHTD, value_BHTD))
        output_BTHD = _flash_attention_forward(
            query, key, value, attention_mask, query_length=query.shape[1], is_causal=True, softmax_scale=scaling,
            attn_implementation=self.name,
            **{setting: settings[setting] for setting in CARRIED if setting in settings},
        )  # fmt: skip
        return output_BTHD[..., :of_values], None
