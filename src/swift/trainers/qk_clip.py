"""This file knows QK-clip: how attention logits that grow too large are brought down at their weights.

Axes: B rows, H query heads, G key heads (each serves H / G query heads), T tokens, K keys, D channels of a head.

Logits are watched where attention is computed, and the projections of queries and keys are scaled after each step, as
in Kimi K2 (arXiv 2507.20534, section 2.1 and algorithm 1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from swift.core.errors import ModelError, UsageError
from swift.models.varlen import VARLEN, attend_by_sequence, mask_unless_by_sequence

WATCHED = "swift_watched"
"""Begins the names under which transformers finds attention whose logits are watched."""
MOST = 1 << 24
"""Logits that are held at a time."""
NORMS = ("q_norm", "k_norm", "q_layernorm", "k_layernorm")
MASKS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "sdpa": (sdpa_attention_forward, sdpa_mask),
    VARLEN: (attend_by_sequence, mask_unless_by_sequence),
}
"""Attention that can be watched -> how it is computed, and its mask."""


@dataclass(frozen=True)
class Projections:
    """What makes the queries and keys of one attention layer, in heads of `width` channels."""

    queries: nn.Linear
    keys: nn.Linear
    width: int


class QkClip:
    """Watches the attention of a model, and clips it at `tau` when `clip` is called, once after every step."""

    def __init__(self, model: nn.Module, tau: float) -> None:
        inner = _inner(model)
        self.tau = tau
        self.layers = _attentions(inner)
        self._largest: dict[nn.Module, Tensor] = {}
        self._attend, mask = _watchable(inner)
        name = f"{WATCHED}_{inner.config.get_text_config()._attn_implementation}"
        AttentionInterface.register(name, self.attend)
        AttentionMaskInterface.register(name, mask)
        inner.set_attn_implementation(name)

    def attend(self, module: nn.Module, query_BHTD: Tensor, key_BGKD: Tensor, value_BGKD: Tensor,
               attention_mask: Tensor | None, **settings: Any) -> Any:  # fmt: skip
        """Attention as it was, and in training a look at its logits."""
        if module.training:
            seen_H = largest_logits(query_BHTD.detach(), key_BGKD.detach(), attention_mask, settings.get("scaling"),
                                    settings.get("cu_seq_lens_q"))  # fmt: skip
            before_H = self._largest.get(module)
            self._largest[module] = seen_H if before_H is None else torch.maximum(before_H, seen_H)
        return self._attend(module, query_BHTD, key_BGKD, value_BGKD, attention_mask, **settings)

    @torch.no_grad()
    def clip(self) -> Tensor | None:
        """Bring every head whose largest logit since the last call is above `tau` down to it, on all processes alike.

        Returns the largest logit of all heads, [], None when nothing was computed since the last call.
        """
        if not self._largest:
            return None
        seen_LH = torch.stack([self._largest[layer] for layer in self.layers])
        self._largest.clear()
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(seen_LH, dist.ReduceOp.MAX)
        if bool((seen_LH > self.tau).any()):
            for parts, seen_H in zip(self.layers.values(), seen_LH, strict=True):
                scale_heads(parts, self.tau / seen_H.clamp(min=self.tau))
        return seen_LH.amax()


def largest_logits(query_BHTD: Tensor, key_BGKD: Tensor, mask: Tensor | None, scaling: float | None,
                   borders_S: Tensor | None = None) -> Tensor:  # fmt: skip
    """The largest `scaling q k` of each head among the pairs that may see each other, [H] in float32.

    mask: additive or boolean, [B, 1 or H, T, K]; without one attention is causal.
    borders_S: where the sequences of a packed row begin and where the last one ends.
    """
    if borders_S is not None:
        lengths = borders_S.diff().tolist()
        pieces = zip(query_BHTD.split(lengths, 2), key_BGKD.split(lengths, 2), strict=True)
        return torch.stack([largest_logits(query, key, None, scaling) for query, key in pieces]).amax(0)
    rows, heads, tokens, width = query_BHTD.shape
    keys = key_BGKD.shape[2]
    key_BHKD = key_BGKD.repeat_interleave(heads // key_BGKD.shape[1], 1)
    scale = width**-0.5 if scaling is None else scaling
    largest_H = torch.full((heads,), -torch.inf, device=query_BHTD.device)
    size = max(1, MOST // (rows * heads * keys))
    for start in range(0, tokens, size):
        logits = (query_BHTD[:, :, start : start + size] @ key_BHKD.mT).float() * scale
        if mask is None:
            places = torch.arange(start, start + logits.shape[2], device=logits.device)[:, None] + keys - tokens
            visible = torch.arange(keys, device=logits.device) <= places
        else:
            part = mask[:, :, start : start + size, :keys]
            visible = part if part.dtype == torch.bool else part > torch.finfo(part.dtype).min / 2
        largest_H = torch.maximum(largest_H, logits.masked_fill(~visible, -torch.inf).amax((0, 2, 3)))
    return largest_H


@torch.no_grad()
def scale_heads(parts: Projections, factor_H: Tensor) -> None:
    """Scale the logits of each head by its factor, through the projections of queries and keys.

    A head that has its keys alone shares the factor between both: `sqrt(f)` each. Where query heads share keys, the
    keys get the square root of the least factor among them, and each query head what is then missing to its own: a head
    that need not be clipped keeps its logits.
    """
    groups = parts.keys.out_features // parts.width
    key_factor_G = factor_H.view(groups, -1).amin(1).sqrt()
    query_factor_H = factor_H / key_factor_G.repeat_interleave(len(factor_H) // groups)
    for projection, factors in ((parts.queries, query_factor_H), (parts.keys, key_factor_G)):
        rows = factors.repeat_interleave(parts.width)
        projection.weight.mul_(rows[:, None].to(projection.weight.dtype))
        if projection.bias is not None:
            projection.bias.mul_(rows.to(projection.bias.dtype))


def _inner(model: nn.Module) -> PreTrainedModel:
    if not isinstance(model, PreTrainedModel):
        raise UsageError(
            "--optimizer muonclip scales the model's own weights. Use --tuner_type full, or --optimizer muon."
        )
    return model


def _watchable(model: PreTrainedModel) -> tuple[Callable[..., Any], Callable[..., Any]]:
    given = str(model.config.get_text_config()._attn_implementation).removeprefix(f"{WATCHED}_")
    if given not in MASKS:
        raise UsageError(
            f"--optimizer muonclip cannot watch the logits of {given} attention. Use --attn_impl sdpa, or --optimizer muon."
        )
    return MASKS[given]


def _attentions(model: PreTrainedModel) -> dict[nn.Module, Projections]:
    """The attention layers of a model, if all of them can be clipped."""
    kind = model.config.model_type
    layers = [module for module in model.modules() if {"q_proj", "k_proj"} <= dict(module.named_children()).keys()]
    if not layers:
        raise ModelError(f"--optimizer muonclip: {kind} has no attention with q_proj and k_proj. Use --optimizer muon.")
    return {layer: _projections(layer, kind) for layer in layers}


def _projections(layer: nn.Module, kind: str) -> Projections:
    parts = dict(layer.named_children())
    queries, keys, width = parts["q_proj"], parts["k_proj"], vars(layer).get("head_dim")
    if set(NORMS) & parts.keys():
        raise ModelError(
            f"--optimizer muonclip: {kind} normalizes queries and keys after their projections, so its attention logits "
            "are bounded already, and scaling the projections would change nothing. Use --optimizer muon."
        )
    if not isinstance(queries, nn.Linear) or not isinstance(keys, nn.Linear) or not isinstance(width, int):
        raise ModelError(f"--optimizer muonclip: the heads of {kind} cannot be told apart. Use --optimizer muon.")
    if queries.out_features % keys.out_features or keys.out_features % width:
        raise ModelError(f"--optimizer muonclip: the heads of {kind} cannot be told apart. Use --optimizer muon.")
    if not queries.weight.requires_grad or not keys.weight.requires_grad:
        raise UsageError("--optimizer muonclip: q_proj and k_proj are frozen. Train them, or use --optimizer muon.")
    return Projections(queries, keys, width)
