"""This file knows attention of a model whose rows are shared by several processes, as transformers calls it.

Axes: B rows, H heads, T tokens of a row on this process, D channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from swift.core.errors import ModelError
from swift.parallel.exchange import heads_for_tokens, tokens_for_heads
from swift.parallel.mesh import Mesh
from swift.parallel.ring import Sight, ring_attention

Attention = Callable[..., tuple[Tensor, Any]]


@dataclass(frozen=True)
class SharedAttention:
    """Attention over a row that is shared by the processes of a mesh.

    inner: attention of a whole row with `cu_seq_lens_q`, which computes a share of the heads where there is no ring.
    """

    mesh: Mesh
    inner: Attention

    def __call__(self, module: nn.Module, query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor,
                 attention_mask: Tensor | None, *, scaling: float, cu_seq_lens_q: Tensor | None = None,
                 **settings: Any) -> tuple[Tensor, None]:  # fmt: skip
        """Returns [1, T, H, D]. `cu_seq_lens_q` are the borders of the sequences of the whole row.

        A row without borders is not shared: this process computes all of it, as the trials of a model do.
        """
        assert attention_mask is None, "rows that are shared have no padding between their sequences"
        if cu_seq_lens_q is None:
            return self.inner(module, query_BHTD, key_BHTD, value_BHTD, None, scaling=scaling, **settings)
        states = (query_BHTD, key_BHTD, value_BHTD)
        query, key, value = (heads_for_tokens(each, self.mesh.ulysses) for each in states)
        if self.mesh.shape.ring == 1:
            if settings.get("s_aux") is not None:  # a value per head: those of the heads that are computed here
                settings["s_aux"] = settings["s_aux"].chunk(self.mesh.shape.ulysses)[self.mesh.place_in_ulysses]
            output, _ = self.inner(
                module, query, key, value, None, cu_seq_lens_q=cu_seq_lens_q, scaling=scaling, **settings
            )
        else:
            _require_plain(settings)
            sight = Sight(cu_seq_lens_q, settings.get("sliding_window"))
            output = ring_attention(query, key, value, self.mesh, sight, scaling)
        return tokens_for_heads(output, self.mesh.ulysses), None


def _require_plain(settings: dict[str, Any]) -> None:
    for name in ("dropout", "softcap", "s_aux"):
        if settings.get(name) is not None and settings[name] != 0:
            raise ModelError(
                f"--sequence_parallel_size: this model's attention has {name}, which a ring of processes does not "
                "compute. Use a size that divides its key-value heads."
            )
