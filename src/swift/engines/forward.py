"""This file knows what a forward pass of an inference costs least: the logits of the last token only, no gradients.

Axes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from swift.engines.adapters import Adapters

if TYPE_CHECKING:
    from peft import PeftModel  # seconds to import, and needed for its name only

NEEDED = ("input_ids", "attention_mask", "position_ids", "past_key_values")


class Forward:
    """A model with its adapters, asked for the next token.

    model: what is called; base: the same without the wrapper of adapters.
    adds_mask: whether masks of single tokens are given as numbers that are added to scores, [B, 1, 1, T]. torch's
        attention on a CPU turns flags into such numbers in every layer, which costs as much as the attention itself;
        not every model takes them.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, adapters: Adapters, *, adds_mask: bool = False) -> None:
        self.adds_mask = adds_mask
        self.adapters = adapters
        self.model: Any = model
        self.base: Any = _base_of(model)
        accepted = inspect.signature(self.base.forward).parameters
        self._last = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self._accepts = frozenset(accepted)

    @property
    def may_add_mask(self) -> bool:
        """Whether it would be faster to give masks as numbers."""
        described = self.base.config.get_text_config()
        return self.device.type == "cpu" and described._attn_implementation == "sdpa"

    def rebind(self, model: PreTrainedModel | PeftModel) -> None:
        """The same model, which has one more adapter or other weights."""
        self.model, self.base = model, _base_of(model)

    def release(self) -> None:
        """Let go of the model."""
        self.model = self.base = None
        self.adapters.release()

    @property
    def device(self) -> torch.device:
        """Where the inputs belong."""
        return self.model.device

    @property
    def may_be_plain(self) -> bool:
        """Whether the model looks like one whose memory is keys and values of single tokens, row by row, and that takes
        positions and a mask; that it is one is to be tried."""
        described = self.base.config
        if described.is_encoder_decoder or self.base._is_stateful or not self._accepts.issuperset(NEEDED):
            return False
        if self.model is not self.base and any(c.is_prompt_learning for c in self.model.peft_config.values()):
            return False
        return all(type(layer) is DynamicLayer for layer in self.new_cache().layers)

    def new_cache(self) -> DynamicCache:
        """An empty memory."""
        return DynamicCache(config=self.base.config)

    def __call__(self, ids_BT: Tensor, positions_BT: Tensor, mask: Tensor, cache: Cache, names: Sequence[str | None]) -> Tensor:  # fmt: skip
        """[B, V] the logits of each row's next token, float32; the cache takes up what was read. The rest as in `every`."""
        return self._logits(ids_BT, positions_BT, mask, cache, names, self._last)[:, -1].float()

    def every(self, ids_BT: Tensor, positions_BT: Tensor, mask: Tensor, cache: Cache, names: Sequence[str | None]) -> Tensor:  # fmt: skip
        """[B, T, V] the logits at every token, float32.

        mask: [B, places of the cache and T], True where a token may be looked at.
        names: the adapter of each row.
        """
        return self._logits(ids_BT, positions_BT, mask, cache, names, {}).float()

    def _logits(
        self, ids_BT: Tensor, positions_BT: Tensor, mask: Tensor, cache: Cache, names: Sequence[str | None],
        more: Mapping[str, Any],
    ) -> Tensor:  # fmt: skip
        if self.adds_mask and ids_BT.shape[1] == 1:
            hidden = torch.zeros(mask.shape, dtype=self.base.dtype, device=mask.device)
            mask = hidden.masked_fill_(~mask, torch.finfo(self.base.dtype).min)[:, None, None]
        return self.model(
            input_ids=ids_BT, position_ids=positions_BT, attention_mask=mask, past_key_values=cache, use_cache=True,
            return_dict=True, **more, **self.adapters.use(names),
        ).logits  # fmt: skip


def _base_of(model: PreTrainedModel | PeftModel) -> Any:
    return model if isinstance(model, PreTrainedModel) else model.get_base_model()
