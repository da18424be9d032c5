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
from swift.tuners.dropout import QuickDropout, kept


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
def test_each_of_the_four_elements_of_a_draw_is_dropped_at_the_rate_by_itself(rate: float) -> None:
    torch.manual_seed(1)
    factors_NF = kept(torch.empty(250_000, 4, dtype=torch.float64), rate)
    dropped_NF = factors_NF == 0
    near = 5 * (rate * (1 - rate) / 250_000) ** 0.5
    assert (dropped_NF.double().mean(0) - rate).abs().max() < near
    together = (dropped_NF[:, :1] & dropped_NF[:, 1:]).double().mean(0)
    assert (together - rate**2).abs().max() < near, "one element says nothing of its neighbours"
    torch.testing.assert_close(factors_NF[~dropped_NF].unique(), torch.tensor([1 / (1 - rate)], dtype=torch.float64))


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
