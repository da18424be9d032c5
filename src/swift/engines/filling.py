"""This file knows how prompts are read: several at once, in chunks, and only what is not known of them already.

Axes: B prompts, P tokens known before, T tokens to read, H heads, D channels of a head, V vocabulary.

All prompts end together: what is known of each stands to the right of P places, what is to be read to the right of T.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from swift.engines.forward import Forward
from swift.engines.prefixes import BLOCK, Block, joined
from swift.engines.slots import State


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt to read, and the blocks of its beginning that are known; at least its last token is not."""

    token_ids: list[int]
    known: list[Block]
    adapter: str | None = None

    @property
    def begin(self) -> int:
        """The first token to be read."""
        return BLOCK * len(self.known)

    @property
    def rest(self) -> int:
        """How many tokens are to be read."""
        return len(self.token_ids) - self.begin


class Filling:
    """Prompts that are being read."""

    def __init__(self, forward: Forward, texts: Sequence[Text], pad_id: int) -> None:
        self.texts = texts
        self.cursor = 0
        self.width = max(text.rest for text in texts)
        self._forward = forward
        self._before = max(text.begin for text in texts)
        self._cache = forward.new_cache()
        self._layers = [layer for layer in self._cache.layers if isinstance(layer, DynamicLayer)]
        device = forward.device
        ids = [[pad_id] * (self.width - text.rest) + text.token_ids[text.begin :] for text in texts]
        self._ids_BT = torch.tensor(ids, device=device)
        rests_B1 = torch.tensor([[text.rest] for text in texts], device=device)
        begins_B1 = torch.tensor([[text.begin] for text in texts], device=device)
        place_T = torch.arange(self.width, device=device)
        self._positions_BT = (begins_B1 + place_T - (self.width - rests_B1)).clamp_(min=0)
        known_BP = torch.arange(self._before, device=device) >= self._before - begins_B1
        self._mask = torch.cat([known_BP, place_T >= self.width - rests_B1], dim=1)
        if self._before:
            self._recall()

    @property
    def area(self) -> int:
        """Tokens still to be read, padding included."""
        return len(self.texts) * (self.width - self.cursor)

    def advance(self, tokens: int) -> Tensor | None:
        """Read on, about this many tokens of all prompts together; [B, V] the logits of their ends when they are reached."""
        logits_BV = self._forward(*self._next(tokens))
        return logits_BV if self.cursor == self.width else None

    def advance_telling(self, tokens: int) -> list[Tensor]:
        """The same; [T, V] for each prompt the logits at those of its tokens that were read now."""
        begin = self.cursor
        logits_BTV = self._forward.every(*self._next(tokens))
        padding = [max(self.width - text.rest - begin, 0) for text in self.texts]
        return [logits_TV[skipped:] for logits_TV, skipped in zip(logits_BTV, padding, strict=True)]

    def _next(self, tokens: int) -> tuple[Tensor, Tensor, Tensor, Cache, list[str | None]]:
        begin = self.cursor
        end = self.cursor = min(self.width, begin + max(1, tokens // len(self.texts)))
        return (
            self._ids_BT[:, begin:end],
            self._positions_BT[:, begin:end],
            self._mask[:, : self._before + end],
            self._cache,
            [text.adapter for text in self.texts],
        )

    def states(self, number: int, begin: int = 0, end: int | None = None) -> list[State]:
        """What the layers remember of a prompt that was read, from one of its tokens to another."""
        text = self.texts[number]
        stop = len(text.token_ids) if end is None else end
        known = slice(self._before - text.begin + begin, self._before - text.begin + min(stop, text.begin))
        # A token's place counts from the right end, where its prompt ends too.
        shift = self._before + self.width - len(text.token_ids)
        read = slice(max(begin, text.begin) + shift, stop + shift)
        pieces = [piece for piece in (known, read) if piece.start < piece.stop]
        found = []
        for layer in self._layers:
            keys_BHTD, values_BHTD = _memory(layer)
            found.append((_piece(keys_BHTD[number], pieces), _piece(values_BHTD[number], pieces)))
        return found

    def _recall(self) -> None:
        """Begin the memory with what is known, each prompt's to the right of P places."""
        known = [joined(text.known) if text.known else None for text in self.texts]
        like = next(states for states in known if states is not None)
        for index, layer in enumerate(self._layers):
            both = []
            for part in (0, 1):
                sample = like[index][part]
                memory = sample.new_zeros(len(known), sample.shape[0], self._before, sample.shape[2])
                for row, states in zip(memory, known, strict=True):
                    if states is not None:
                        row[:, self._before - states[index][part].shape[1] :] = states[index][part]
                both.append(memory)
            layer.update(both[0], both[1])


def _memory(layer: DynamicLayer) -> State:
    assert layer.keys is not None and layer.values is not None, "a layer that has read remembers"  # noqa: PT018 (both narrow types)
    return layer.keys, layer.values


def _piece(memory_HTD: Tensor, pieces: Sequence[slice]) -> Tensor:
    """[H, T, D] of these tokens."""
    taken = [memory_HTD[:, piece] for piece in pieces]
    return taken[0] if len(taken) == 1 else torch.cat(taken, dim=1)
