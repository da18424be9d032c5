"""A model that stands in for one whose weights are elsewhere."""

from __future__ import annotations

import torch

import tiny
from swift.models.stand_in import LEAST_LAYERS, is_here, stand_in


def test_a_stand_in_is_of_the_same_kind_and_width_and_has_few_layers() -> None:
    model = tiny.model(layers=6)
    made = stand_in(model)
    assert type(made) is type(model)
    assert made.config.num_hidden_layers == LEAST_LAYERS
    assert made.get_input_embeddings().weight.shape == model.get_input_embeddings().weight.shape
    assert model.config.num_hidden_layers == 6
    assert is_here(model)


def test_every_kind_of_layer_is_there() -> None:
    kinds = ["full_attention"] * 3 + ["sliding_attention"] + ["full_attention"] * 2
    model = tiny.model(layers=6, layer_types=kinds, use_sliding_window=True, sliding_window=8)
    assert stand_in(model).config.layer_types == kinds[:4]


def test_it_is_the_same_every_time_and_draws_nothing() -> None:
    model = tiny.model(layers=3)
    before = torch.get_rng_state()
    first, second = stand_in(model), stand_in(model)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
