"""This file knows when an exported model is the one it was made of: what both say to the same prompts, read from disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from swift.core.errors import ModelError
from swift.core.logs import get_logger
from swift.models.info import model_info
from swift.models.load import load_model
from swift.models.processor import load_tokenizer
from swift.options.model import ModelOptions
from swift.tuners.merge import TOLERANCES, distance
from swift.tuners.probe import logits_for, spread_prompt

PROMPTS = (
    "What is the capital of France? The capital of France is",
    "请用一句话介绍一下你自己。",
    "def add(a, b):\n    return a + b\n\n\nprint(add(2, 3))  # ",
)
"""Texts that a model is asked before and after."""
SEEN = 0.5
"""The share of an adapter's effect beyond which rounding is worth a warning."""
STANDS_ALONE = ("adapters", "model_revision", "rope_scaling", "max_model_len", "new_special_tokens", "init_strategy")
"""Options that an exported model does not need any more, because they are in its files."""


@dataclass(frozen=True)
class Heard:
    """What a model says to prompts.

    prompts: token ids of each. without, said: logits [T, V] in float32, of the base and of the model that is exported.
    dtype: the type of its weights.
    """

    prompts: list[list[int]]
    without: list[Tensor]
    said: list[Tensor]
    dtype: torch.dtype


def prompts_for(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The prompts of the gate: some texts, and ids from the whole vocabulary."""
    return [*(_ids(tokenizer, text) for text in PROMPTS), spread_prompt(model)]


def require_same(folder: Path, options: ModelOptions, family: str | None, heard: Heard) -> None:
    """Load what was written and compare it with what it was made of: token ids of texts, and logits.

    options: those the source was loaded with. Raises ModelError, with the figures, when they differ.
    """
    name = str(heard.dtype).removeprefix("torch.")
    plain = ModelOptions().model_dump(include=set(STANDS_ALONE))
    again = options.model_copy(update={**plain, "model": str(folder), "model_type": family, "torch_dtype": name})
    info = model_info(again)
    _require_same_tokens(load_tokenizer(info), heard)
    model = load_model(info, again, training=False)
    found = [logits_for(model, prompt) for prompt in heard.prompts]
    error, effect = distance(heard.said, found, heard.dtype), _effect(heard)
    tolerance = TOLERANCES[heard.dtype]
    if not error <= tolerance:
        raise ModelError(
            f"The exported model, read from its folder, does not equal what it was made of: logits differ by "
            f"{error:.2g} of their norm, and {tolerance:.2g} is what rounding to {name} explains. Nothing was kept."
        )
    if effect is None:
        get_logger().info(
            "read from disk, logits differ by %.2g of their norm (limit %.2g, %s)", error, tolerance, name
        )
        return
    get_logger().info(
        "read from disk, logits differ by %.2g of their norm (limit %.2g, %s); the adapter changes them by %.2g",
        error, tolerance, name, effect,
    )  # fmt: skip
    if effect == 0:
        get_logger().warning("The adapter changes nothing: the merged model says what the model says without it.")
    elif error > SEEN * effect:
        get_logger().warning(
            "Rounding to %s loses much of this adapter, whose effect is %.2g where rounding is %.2g. Merge with "
            "--torch_dtype float32, or use the adapter unmerged.", name, effect, error,
        )  # fmt: skip


def _effect(heard: Heard) -> float | None:
    """How far the adapter moves the logits; None where they cannot be compared, as with other classes."""
    if any(before.shape != after.shape for before, after in zip(heard.without, heard.said, strict=True)):
        return None
    return distance(heard.without, heard.said, heard.dtype)


def _require_same_tokens(tokenizer: PreTrainedTokenizerBase, heard: Heard) -> None:
    for text, ids in zip(PROMPTS, heard.prompts, strict=False):
        found = _ids(tokenizer, text)
        if found != ids:
            raise ModelError(
                f"The tokenizer of the exported model reads {text!r} as {_shown(found)}, and that of its source as "
                f"{_shown(ids)}. Nothing was kept; look at the tokenizer files beside the adapter."
            )


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text)["input_ids"]  # type: ignore[return-value]  # of one text, not of several


def _shown(ids: Sequence[int]) -> str:
    return " ".join(map(str, ids[:8])) + (" ..." if len(ids) > 8 else "")
