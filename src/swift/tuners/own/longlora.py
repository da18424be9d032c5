"""This file knows shifted sparse attention (LongLoRA, arXiv:2309.12307, section 3.2): long rows are learnt in groups.

Axes: B rows, H heads, T tokens of a row, D channels of a head.

The tokens of a row are cut into groups of a quarter of `--max_length`. Half of the heads attend within these groups;
the other half within groups that lie half a group further on, so that what one group knows reaches the next. A row that
is no longer than a group is attended to in full by the first half. In evaluation and inference attention is full.

The first half group of the shifted heads stands alone, instead of behind the last one as a cyclic shift would have it:
so no token sees one that comes after it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from swift.core.errors import ModelError, UsageError
from swift.core.logs import get_logger
from swift.tuners.peft_configs import lora_config
from swift.tuners.request import Request

GROUPS = 4
"""Groups in a row of the longest length, as the paper's experiments have it."""
WHOLE = ("all-embedding", "all-norm")
"""What is trained beside LoRA: embeddings and normalisations (section 3.3, LoRA+ of the paper)."""
STRANGE = ("softcap", "s_aux", "position_bias")
"""What some models tell their attention, and groups would lose: capped scores, sinks, biases of positions."""


class ShiftedAttention:
    """Attention as transformers calls it, in groups of `size` tokens while a model trains."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.calls = 0

    def __call__(self, module: nn.Module, query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor,
                 attention_mask: Tensor | None, **settings: Any) -> tuple[Tensor, None]:  # fmt: skip
        """Attention of a causal layer; returns [B, T, H, D]."""
        self.calls += 1
        strange = [name for name in STRANGE if settings.get(name) is not None]
        if strange:
            raise ModelError(
                f"--tuner_type longlora: {type(module).__name__} attends with {', '.join(strange)}, which shifted "
                f"attention does not know. Use --tuner_type lora."
            )
        if not module.training:
            return sdpa_attention_forward(module, query_BHTD, key_BHTD, value_BHTD, attention_mask, **settings)
        groups = query_BHTD.shape[1] // key_BHTD.shape[1]
        states = (query_BHTD, repeat_kv(key_BHTD, groups), repeat_kv(value_BHTD, groups))
        return shifted_attention(
            *states, attention_mask, size=self.size, scale=settings["scaling"], dropout=settings.get("dropout", 0.0)
        ), None


def shifted_attention(query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor, mask: Tensor | None, *, size: int,
                      scale: float, dropout: float = 0.0) -> Tensor:  # fmt: skip
    """Causal attention within groups, [B, T, H, D]: of the first half of the heads from the first token on, of the
    others from the middle of the first group on.

    mask: [B, 1, T, T], true where a token may be seen, for rows with padding; None is causal.
    """
    length, half = query_BHTD.shape[2], query_BHTD.shape[1] // 2
    outputs = []
    for heads, first in ((slice(None, half), size), (slice(half, None), size // 2)):
        pieces = []
        for begin, end in borders(length, size, first):
            query, key, value = (states[:, heads, begin:end] for states in (query_BHTD, key_BHTD, value_BHTD))
            visible = None if mask is None else mask[:, :, begin:end, begin:end]
            pieces.append(
                scaled_dot_product_attention(
                    query, key, value, attn_mask=visible, dropout_p=dropout, is_causal=visible is None, scale=scale
                )
            )
        outputs.append(torch.cat(pieces, dim=2))
    return torch.cat(outputs, dim=1).transpose(1, 2).contiguous()


def borders(length: int, size: int, first: int) -> list[tuple[int, int]]:
    """Where groups begin and end: the first of `first` tokens, the others of `size`, the last of what is left."""
    begins = [0, *range(first, length, size)]
    return list(zip(begins, [*begins[1:], length], strict=True))


def shift_attention(model: PreTrainedModel, max_length: int | None, attn_impl: str | None) -> None:
    """Let a model train with shifted sparse attention.

    Raises UsageError without a longest length, or for an attention that was asked for; ModelError for a model whose
    attention does not go through transformers' interface, or knows more than causality: it is tried.
    """
    if max_length is None or max_length < 2 * GROUPS:
        raise UsageError(
            f"--tuner_type longlora needs --max_length, of which a group is a quarter, of at least {2 * GROUPS} tokens "
            f"(got {max_length})."
        )
    if attn_impl not in (None, "sdpa"):
        raise UsageError(
            f"--tuner_type longlora brings an attention of its own, computed with sdpa (got --attn_impl {attn_impl}). "
            f"Drop --attn_impl."
        )
    given = model.config.get_text_config()._attn_implementation
    assert given is not None, "a model that is loaded has its attention"
    attention, name = ShiftedAttention(max_length // GROUPS), f"swift_shifted_{max_length // GROUPS}"
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, sdpa_mask)
    if model._supports_sdpa and model._can_set_attn_implementation():
        model.set_attn_implementation(name)
        if _is_called(model, attention):
            get_logger().info("longlora: attention in groups of %d tokens while it trains", attention.size)
            return
        model.set_attn_implementation(given)
    raise ModelError(
        f"--tuner_type longlora: the attention of {type(model).__name__} cannot be replaced through transformers' "
        f"interface, as that of Llama and its kin can. Use --tuner_type lora."
    )


def longlora_config(model: PreTrainedModel, request: Request) -> LoraConfig:
    """LoRA, with embeddings and normalisations trained along."""
    whole = [*request.options.modules_to_save, *WHOLE]
    return lora_config(model, replace(request, options=request.options.model_copy(update={"modules_to_save": whole})))


@torch.no_grad()
def _is_called(model: PreTrainedModel, attention: ShiftedAttention) -> bool:
    """Whether the model attends by it."""
    if model.device.type == "meta":
        return True
    before = attention.calls
    model(input_ids=torch.tensor([[0, 1, 2]], device=model.get_input_embeddings().weight.device), use_cache=False)  # type: ignore[union-attr]  # a language model has them
    return attention.calls > before
