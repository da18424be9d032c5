"""The dropout of adapters on a CPU: the right share, the right scale, no pattern, the same again from the same seed."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from torch import nn

import tiny
from swift.models.info import model_info
from swift.models.load import load_model
from swift.options.model import ModelOptions
from swift.options.tuner import TunerChoice, TunerOptions
from swift.tuners.attach import attach
from swift.tuners.dropout import QuickDropout, dropped


@pytest.mark.parametrize("rate", [0.001, 0.05, 0.5, 0.9])
def test_each_element_is_dropped_at_the_rate_by_itself(rate: float) -> None:
    torch.manual_seed(1)
    rows = 250_000
    places = dropped(rows * 4, rate)
    assert (places.diff() > 0).all()
    assert 0 <= int(places[0]) <= int(places[-1]) < rows * 4
    dropped_NF = torch.zeros(rows * 4, dtype=torch.bool).index_fill(0, places, True).view(rows, 4)
    near = 5 * (rate * (1 - rate) / rows) ** 0.5
    assert (dropped_NF.double().mean(0) - rate).abs().max() < near
    together = (dropped_NF[:, :1] & dropped_NF[:, 1:]).double().mean(0)
    assert (together - rate**2).abs().max() < near, "one element says nothing of its neighbours"
    halves = dropped_NF.view(2, -1).double().mean(1)
    assert (halves - rate).abs().max() < near, "the end is like the beginning"


@pytest.mark.parametrize("count", [0, 1, 2, 3, 1000])
def test_any_number_of_elements_can_be_asked_for(count: int) -> None:
    torch.manual_seed(2)
    found = [dropped(count, 0.5) for _ in range(2000)]
    assert all(((places >= 0) & (places < count)).all() for places in found)
    mean = sum(map(len, found)) / 2000
    assert abs(mean - count / 2) <= 5 * (count / 4 / 2000) ** 0.5


def test_what_stays_is_scaled_so_that_the_mean_is_kept() -> None:
    out = QuickDropout(0.2)(torch.ones(3, 500, dtype=torch.float64))
    torch.testing.assert_close(out.unique(), torch.tensor([0, 1.25], dtype=torch.float64))


def test_what_is_dropped_has_no_gradient_and_a_seed_repeats_it() -> None:
    layer, values = QuickDropout(0.3), torch.ones(7, 11, requires_grad=True)
    torch.manual_seed(5)
    out = layer(values)
    out.sum().backward()
    torch.testing.assert_close(values.grad, out.detach())
    torch.manual_seed(5)
    assert torch.equal(layer(values), out)
    assert not torch.equal(layer(values), out)


def test_nothing_is_dropped_outside_training() -> None:
    values = torch.randn(5)
    assert torch.equal(QuickDropout(0.5).eval()(values), values)


@pytest.mark.parameter("lora_dropout")
def test_adapters_drop_by_it_and_only_in_training(tmp_path) -> None:
    options = ModelOptions(model=str(tiny.checkpoint(tmp_path / "m")))
    bare = load_model(model_info(options), options, training=True)
    model = attach(bare, TunerChoice(tuner_type="lora"), TunerOptions(lora_dropout=0.4))
    drops = [module for module in model.modules() if isinstance(module, nn.Dropout) and module.p]
    assert drops
    assert {(type(drop), drop.p) for drop in drops} == {(QuickDropout, 0.4)}
    assert isinstance(model.peft_config["default"], LoraConfig)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    ids_BT = torch.arange(5, 17)[None]
    model.train()
    assert not torch.equal(model(ids_BT).logits, model(ids_BT).logits)
    model.eval()
    torch.testing.assert_close(model(ids_BT).logits, model(ids_BT).logits)
