"""This file knows how a vocabulary grows: new special tokens, and rows of the embedding for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from swift.core.errors import UsageError
from swift.core.logs import get_logger
from swift.core.paths import is_file
from swift.parallel.partitions import shape_of, whole

ROWS_OF = 128
"""An embedding that has to grow grows to a multiple of this, which matrix products like."""


def new_tokens(names: Sequence[str]) -> list[str]:
    """The tokens of `--new_special_tokens`: each itself, or what a .txt file holds, parted by white space.

    Raises UsageError when a file is missing, or a token is empty or has white space in it.
    """
    tokens: list[str] = []
    for name in names:
        if not name.endswith(".txt"):
            tokens.append(name)
            continue
        if not is_file(name):
            raise UsageError(f"--new_special_tokens {name}: there is no such file. Give tokens, or .txt files of them.")
        tokens += Path(name).expanduser().read_text(encoding="utf-8").split()
    wrong = [token for token in tokens if not token or token.split() != [token]]
    if wrong:
        raise UsageError(f"--new_special_tokens: {wrong[0]!r} is no token: it is empty or has white space in it.")
    return list(dict.fromkeys(tokens))


def add_tokens(tokenizer: PreTrainedTokenizerBase, names: Sequence[str]) -> None:
    """Add the tokens of `--new_special_tokens` to a tokenizer; those it has already stay where they are."""
    tokens = new_tokens(names)
    missing = [token for token in tokens if token not in tokenizer.get_vocab()]
    tokenizer.add_special_tokens({"extra_special_tokens": tokens}, replace_extra_special_tokens=False)
    if missing:
        ids = token_ids(tokenizer, missing)
        get_logger().info("%d new special tokens, ids %d to %d: %s", len(missing), ids[0], ids[-1], " ".join(missing))


def token_ids(tokenizer: PreTrainedTokenizerBase, names: Sequence[str]) -> list[int]:
    """The ids of the tokens of `--new_special_tokens`, in order, once each."""
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[token] for token in new_tokens(names)]


def with_room(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The model with room for every token of the tokenizer; one that has it already is left as it is.

    New rows of the embedding and of the output layer are the mean of the old ones, so that a new token begins as an
    average one, wherever it is added; the number of rows becomes a multiple of 128.
    """
    layers: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    rows = shape_of(layers[0].weight)[0]
    if len(tokenizer) <= rows:
        return model
    with whole(layer.weight for layer in layers if layer is not None):
        means = [None if layer is None else layer.weight.detach().float().mean(dim=0) for layer in layers]
    model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=ROWS_OF, mean_resizing=False)
    grown: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    with torch.no_grad(), whole((layer.weight for layer in grown if layer is not None), changed=True):
        for layer, mean in zip(grown, means, strict=True):
            if layer is not None and mean is not None:
                layer.weight[rows:] = mean.to(layer.weight)
    total = shape_of(grown[0].weight)[0]
    get_logger().info("The embedding grows from %d to %d rows for %d tokens.", rows, total, len(tokenizer))
    return model
