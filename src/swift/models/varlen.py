"""This file knows attention within the sequences of one row, computed sequence by sequence, without any mask.

Axes: B rows, H heads, T tokens of a row, D channels of a head, L tokens of a sequence, W tokens of a window.

A mask over a long pack grows with the square of the pack, and the work is done for every pair of tokens although most
may not see each other. Here the row is cut at the borders of its sequences, and each piece is a causal attention of its
own: what is computed and what is kept grow with the squares of the sequences alone. It is what FlashAttention does with
`cu_seq_lens`, for every device that has torch's scaled dot product attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

VARLEN = "swift_varlen"
"""The name under which transformers finds this attention, for `model.set_attn_implementation`."""


@dataclass(frozen=True)
class Windows:
    """The widths of sliding windows that a model names in a forward pass: to its masks, and to its attention."""

    of_masks: set[int] = field(default_factory=set)
    of_attention: set[int] = field(default_factory=set)

    @property
    def agree(self) -> bool:
        """Whether attention is told of every window; else the model leaves some of them, or chunks, to its masks."""
        return self.of_masks == self.of_attention


_watched: ContextVar[Windows | None] = ContextVar("_watched", default=None)


@contextmanager
def watch_windows() -> Iterator[Windows]:
    """Notes what windows the models that run meanwhile name, as long as they attend by sequence."""
    windows = Windows()
    token = _watched.set(windows)
    try:
        yield windows
    finally:
        _watched.reset(token)


def can_attend_by_sequence(model: PreTrainedModel) -> bool:
    """Whether this attention may say what the model means: its authors say that FlashAttention does, and like it, this
    attention knows causality and windows, and no mask. That it does is to be tried (`Windows.agree`)."""
    given = model.config.get_text_config()._attn_implementation
    return given in ("sdpa", "eager") and model._can_set_attn_implementation() and model._supports_flash_attn


def attend_by_sequence(module: nn.Module, query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor,
                       attention_mask: Tensor | None, *, sliding_window: int | None = None,
                       cu_seq_lens_q: Tensor | None = None, **settings: Any) -> tuple[Tensor, None]:  # fmt: skip
    """Attention as transformers calls it; returns [B, T, H, D].

    `cu_seq_lens_q`, int32 [S + 1], says where each of the S sequences of the row begins and where the last one ends;
    without it the row is one sequence. A mask means that there is none of this: padding, or a cache.
    """
    windows = _watched.get()
    if windows is not None and sliding_window is not None:
        windows.of_attention.add(sliding_window)
    length = query_BHTD.shape[2]
    if attention_mask is not None or key_BHTD.shape[2] != length or len(query_BHTD) > 1:
        return _attend(module, query_BHTD, key_BHTD, value_BHTD, attention_mask, **settings), None
    lengths = [length] if cu_seq_lens_q is None else cu_seq_lens_q.diff().tolist()
    # split, and not slices: the gradient of a slice is as large as the whole row
    pieces = zip(*(states.split(lengths, dim=2) for states in (query_BHTD, key_BHTD, value_BHTD)), strict=True)
    outputs = []
    for query, key, value in pieces:
        if sliding_window is None or query.shape[2] <= sliding_window:
            outputs.append(_attend(module, query, key, value, None, **settings))
        else:
            outputs += _attend_in_window(module, query, key, value, sliding_window, settings)
    return torch.cat(outputs, dim=1), None


def mask_unless_by_sequence(batch_size: int, q_length: int, kv_length: int, q_offset: int = 0, kv_offset: int = 0,
                            attention_mask: Tensor | None = None, **more: Any) -> Tensor | None:  # fmt: skip
    """No mask for one row without padding and without cache, which `attend_by_sequence` cuts; else that of sdpa.

    A mask of the model's own making (`use_vmap`) is more than causal or sliding, and is made.
    """
    windows = _watched.get()
    if windows is not None and more.get("local_size") is not None:
        windows.of_masks.add(more["local_size"])
    is_one_row = batch_size == 1 and q_length == kv_length and not q_offset and not kv_offset
    is_its_own = more.get("use_vmap") or more.get("allow_is_bidirectional_skip")
    if is_one_row and attention_mask is None and not is_its_own:
        return None
    return sdpa_mask(batch_size, q_length, kv_length, q_offset, kv_offset, attention_mask=attention_mask, **more)


def _attend_in_window(module: nn.Module, query_BHLD: Tensor, key_BHLD: Tensor, value_BHLD: Tensor, window: int,
                      settings: dict[str, Any]) -> list[Tensor]:  # fmt: skip
    """Attention of each token to itself and the `window - 1` before it, in blocks of W queries, [B, W, H, D] each.

    A block of queries sees no further back than the block before its own: two blocks of keys, whatever the length.
    """
    queries = query_BHLD.split(window, dim=2)
    keys, values = key_BHLD.split(window, dim=2), value_BHLD.split(window, dim=2)
    outputs = [_attend(module, queries[0], keys[0], values[0], None, **settings)]
    for block in range(1, len(queries)):
        size = queries[block].shape[2]
        age_WK = _places(size, query_BHLD)[:, None] + window - _places(window + size, query_BHLD)
        visible_WK = (age_WK >= 0) & (age_WK < window)
        two_keys, two_values = (torch.cat(states[block - 1 : block + 1], dim=2) for states in (keys, values))
        outputs.append(_attend(module, queries[block], two_keys, two_values, visible_WK[None, None], **settings))
    return outputs


def _attend(module: nn.Module, query_BHLD: Tensor, key_BHKD: Tensor, value_BHKD: Tensor, mask: Tensor | None, *,
            softcap: float | None = None, s_aux: Tensor | None = None, **settings: Any) -> Tensor:  # fmt: skip
    """Attention under a mask, or causal without one: that of torch, or by hand where scores are capped or have sinks."""
    if softcap is None and s_aux is None:
        return sdpa_attention_forward(module, query_BHLD, key_BHKD, value_BHKD, mask, **settings)[0]
    if mask is None:
        size = query_BHLD.shape[2]
        mask = _places(size, query_BHLD)[:, None] >= _places(size, query_BHLD)
    scaling, dropout = settings["scaling"], settings.get("dropout", 0.0)
    return _attend_by_scores(query_BHLD, key_BHKD, value_BHKD, mask, softcap, s_aux, (scaling, dropout))


def _attend_by_scores(query_BHLD: Tensor, key_BHKD: Tensor, value_BHKD: Tensor, visible: Tensor, softcap: float | None,
                      sinks_H: Tensor | None, scaling_and_dropout: tuple[float, float]) -> Tensor:  # fmt: skip
    """Attention whose scores are softcap * tanh(score / softcap) (Gemma 2, arXiv 2408.00118, section 2), and whose
    softmax has one more place per head that takes weight and gives nothing (sinks, arXiv 2508.10925, section 2)."""
    scaling, dropout = scaling_and_dropout
    groups = query_BHLD.shape[1] // key_BHKD.shape[1]
    scores_BHLK = query_BHLD @ repeat_kv(key_BHKD, groups).transpose(2, 3) * scaling
    if softcap is not None:
        scores_BHLK = softcap * torch.tanh(scores_BHLK / softcap)
    # not -inf, because a token of the padding sees nothing, and the softmax of nothing is nan
    scores_BHLK = scores_BHLK.float().masked_fill(~visible, torch.finfo(torch.float32).min)
    if sinks_H is not None:
        sinks = sinks_H.float()[None, :, None, None].expand(*scores_BHLK.shape[:3], 1)
        scores_BHLK = torch.cat([scores_BHLK, sinks], dim=-1)
    weights_BHLK = scores_BHLK.softmax(-1)[..., : key_BHKD.shape[2]].to(value_BHKD.dtype)
    weights_BHLK = nn.functional.dropout(weights_BHLK, dropout)
    return (weights_BHLK @ repeat_kv(value_BHKD, groups)).transpose(1, 2).contiguous()


def _places(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, device=like.device)


AttentionInterface.register(VARLEN, attend_by_sequence)
AttentionMaskInterface.register(VARLEN, mask_unless_by_sequence)
