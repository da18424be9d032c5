"""This file knows how to find out whether rows of a model may grow side by side: it is tried, on a few tokens.

Axes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import torch

from swift.engines.filling import Filling, Text
from swift.engines.forward import Forward
from swift.engines.prefixes import BLOCK, Block
from swift.engines.slots import Slots

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Largest difference of logits, in standard deviations of them, that rounding explains, by the type of the weights."""
TOLERANCE_ELSEWHERE = 0.1
LENGTHS = (BLOCK + 9, 5)
"""Tokens of the two rows that are tried: one longer than a block, and one much shorter."""


def agrees(forward: Forward, pad_id: int) -> bool:
    """Whether a model gives two rows of different lengths side by side, one with a beginning that was computed before,
    what it gives each alone in one pass."""
    try:
        return _differences(forward, pad_id) <= TOLERANCE.get(forward.model.dtype, TOLERANCE_ELSEWHERE)
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, AssertionError):
        return False  # it cannot take its memory from us, in one way or another


def _differences(forward: Forward, pad_id: int) -> float:
    """The largest difference of logits, in standard deviations, over the two ways and the two rows."""
    vocabulary = forward.base.get_input_embeddings().weight.shape[0]
    texts = [[(7 * place + length) % vocabulary for place in range(length)] for length in LENGTHS]
    begun = Filling(forward, [Text(texts[0][:BLOCK], [])], pad_id)
    begun.advance(BLOCK)
    filling = Filling(forward, [Text(texts[0], [Block(begun.states(0))]), Text(texts[1], [])], pad_id)
    first_BV = filling.advance(6)
    while first_BV is None:
        first_BV = filling.advance(6)
    slots = Slots(len(filling.states(0)), forward.device)
    for number in range(len(texts)):
        slots.add(filling.states(number))
    more_B1 = torch.tensor([[1], [2]], device=forward.device)
    positions_B1, mask_BT = slots.begin_step()
    second_BV = forward(more_B1, positions_B1, mask_BT, slots.cache, [None, None])
    worst = 0.0
    for number, ids in enumerate(texts):
        whole_1T = torch.tensor([[*ids, int(more_B1[number])]], device=forward.device)
        expected_2V = forward.model(input_ids=whole_1T, use_cache=False).logits[0, -2:].float()
        found_2V = torch.stack([first_BV[number], second_BV[number]])
        worst = max(worst, float((found_2V - expected_2V).abs().max() / expected_2V.std()))
    return worst
