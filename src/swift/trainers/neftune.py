"""This file knows the noise on input embeddings (`--neftune_noise_alpha`).

Axes: B rows, T tokens, D channels of an embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from swift.models.inner import inner_model
from swift.parallel.mesh import Mesh


@contextmanager
def noise_on_embeddings(model: nn.Module, inputs: Mapping[str, Any], alpha: float,
                        mesh: Mesh | None = None) -> Iterator[None]:  # fmt: skip
    """Meanwhile the embeddings of this batch are disturbed by `alpha / sqrt(L D)` times noise between -1 and 1.

    L is the length of the sequence that a token belongs to (NEFTune, arXiv 2310.05914, algorithm 1), and not that of a
    padded or packed row: how rows become batches does not change how strong the noise is.
    mesh: the processes that share a row, of which each disturbs the tokens it holds.
    """
    lengths_BT = lengths_of(inputs)
    if mesh is not None:
        lengths_BT = mesh.own_part({"lengths": lengths_BT})["lengths"]

    def disturb(_layer: nn.Module, _inputs: Any, embedded_BTD: Tensor) -> Tensor:
        strength_BT = alpha / (lengths_BT.to(embedded_BTD.device) * embedded_BTD.shape[-1]).sqrt()
        noise_BTD = torch.empty_like(embedded_BTD).uniform_(-1, 1)
        return embedded_BTD + noise_BTD * strength_BT[..., None].to(embedded_BTD.dtype)

    handle = inner_model(model).get_input_embeddings().register_forward_hook(disturb)
    try:
        yield
    finally:
        handle.remove()


def lengths_of(inputs: Mapping[str, Any]) -> Tensor:
    """For each position the number of tokens of its sequence, float32 [B, T], or [B, 1] where all of a row are of one."""
    if "cu_seq_lens_q" in inputs:
        lengths_S = inputs["cu_seq_lens_q"].diff()
        return torch.repeat_interleave(lengths_S, lengths_S)[None].float()
    return inputs["attention_mask"].sum(1, keepdim=True).float()
