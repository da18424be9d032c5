"""This file knows which trained parameter is optimized how: learning rates and weight decays by group.

Every function is pure, and every trained parameter lands in exactly one group.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

Named = Iterable[tuple[str, nn.Parameter]]
"""Parameters with their names, as `model.named_parameters()` gives them: tied ones once."""

EMBEDDING_RATE = 1e-6
"""The learning rate of LoRA on embeddings with LoRA+, as its authors' code and peft have it."""
HEADS = ("lm_head", "score", "classifier", "v_head")
"""Names of layers that read out what the model computed."""


@dataclass(frozen=True)
class Place:
    """A group of parameters: its position among the groups, and what it is optimized with."""

    rank: int
    lr: float
    weight_decay: float


def grouped(named: Named, place: Callable[[str, nn.Parameter], Place]) -> list[dict[str, Any]]:
    """The trained parameters by their places, as torch's optimizers take groups; groups without any are left out."""
    found: dict[Place, list[nn.Parameter]] = {}
    for name, parameter in named:
        if parameter.requires_grad:
            found.setdefault(place(name, parameter), []).append(parameter)
    return [
        {"params": parameters, "lr": key.lr, "weight_decay": key.weight_decay}
        for key, parameters in sorted(found.items(), key=lambda item: item[0].rank)
    ]


def decay_groups(named: Named, decaying: Collection[str], lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: what decays, and what does not (biases and norms)."""
    names = set(decaying)
    decays, spared = Place(0, lr, weight_decay), Place(1, lr, 0.0)
    return grouped(named, lambda name, _: decays if name in names else spared)


def lora_plus_groups(named: Named, decaying: Collection[str], lr: float, ratio: float, weight_decay: float) -> list[dict[str, Any]]:  # fmt: skip
    """LoRA+ (Hayou et al. 2024, arXiv 2402.12354, section 5): B learns `ratio` times as fast as A.

    Four groups: A and everything else; LoRA on embeddings, at EMBEDDING_RATE; B and vectors that decay; B and vectors
    that do not. The first one's learning rate is the one that is logged.
    """
    names = set(decaying)
    rest, embeddings = Place(0, lr, weight_decay), Place(1, EMBEDDING_RATE, weight_decay)
    fast, fast_spared = Place(2, lr * ratio, weight_decay), Place(3, lr * ratio, 0.0)

    def place(name: str, parameter: nn.Parameter) -> Place:
        if "lora_embedding_" in name:
            return embeddings
        if "lora_B" in name or parameter.ndim == 1:
            return fast if name in names else fast_spared
        return rest

    return grouped(named, place)


def hidden_matrices(model: nn.Module) -> set[str]:
    """The names of the matrices between a model's embeddings and its heads, tensors of several matrices among them.

    Left out are vectors, embeddings and what is trained in their place (rows of new tokens, LoRA on embeddings), and
    heads.
    """
    embeddings = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim >= 2
        and id(parameter) not in embeddings
        and not {*HEADS, "embed_tokens"} & set(name.split("."))
        and "lora_embedding_" not in name
        and "trainable_tokens_delta" not in name
    }
