"""Parameters that a checkpoint lacks begin as `--init_strategy` says, and all others are left alone."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import tiny
from swift.core.errors import ModelError
from swift.core.logs import get_logger
from swift.models.info import model_info
from swift.models.initialize import FILLS, fill_missing, is_unusable
from swift.models.load import load_model
from swift.options.model import ModelOptions

MATRIX, BIAS, SCALE = "0.weight", "0.bias", "1.weight"
OUT, IN = 300, 200
DEVIATIONS = {
    "zero": 0.0,
    "uniform": 0.1 / math.sqrt(3),
    "normal": 0.01,
    "xavier_uniform": math.sqrt(2 / (IN + OUT)),
    "xavier_normal": math.sqrt(2 / (IN + OUT)),
    "kaiming_uniform": math.sqrt(2 / (1 + 0.1**2) / OUT),
    "kaiming_normal": math.sqrt(2 / IN),
    "orthogonal": math.sqrt(1 / OUT),
}
"""The deviation of a matrix of OUT x IN after each strategy: of the papers' variances; orthogonal rows or columns have
length 1 along the longer side."""
LIMITS = {"uniform": 0.1, "xavier_uniform": math.sqrt(6 / (IN + OUT))}


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(IN, OUT), nn.RMSNorm(OUT), nn.Linear(OUT, 4))


@pytest.mark.parameter("init_strategy")
@pytest.mark.parametrize("strategy", FILLS)
def test_a_matrix_has_the_spread_of_its_formula_and_what_was_there_stays(strategy):
    model, before = net(), net()
    assert fill_missing(model, [MATRIX, BIAS, SCALE], strategy) == [MATRIX, BIAS, SCALE]
    values = model[0].weight.detach()
    assert float(values.std()) == pytest.approx(DEVIATIONS[strategy], rel=0.05)
    assert abs(float(values.mean())) < 0.02
    if strategy in LIMITS:
        assert 0.95 * LIMITS[strategy] < float(values.abs().max()) <= LIMITS[strategy]
    assert torch.equal(model[2].weight, before[2].weight)


@pytest.mark.parameter("init_strategy")
def test_an_orthogonal_matrix_is_one():
    model = net()
    fill_missing(model, [MATRIX], "orthogonal")
    weight = model[0].weight.detach()
    torch.testing.assert_close(weight.T @ weight, torch.eye(IN), atol=1e-5, rtol=0)


@pytest.mark.parameter("init_strategy")
@pytest.mark.parametrize("strategy", [name for name, (_, for_matrices) in FILLS.items() if for_matrices])
def test_with_a_strategy_for_matrices_scales_begin_at_one_and_biases_at_zero(strategy):
    model = net()
    fill_missing(model, [BIAS, SCALE], strategy)
    assert torch.equal(model[0].bias, torch.zeros(OUT))
    assert torch.equal(model[1].weight, torch.ones(OUT))


@pytest.mark.parameter("init_strategy")
@pytest.mark.parametrize("name", ["zero", "uniform", "normal"])
def test_with_the_others_vectors_are_filled_like_matrices(name):
    model = net()
    fill_missing(model, [BIAS], name)
    assert float(model[0].bias.detach().std()) == pytest.approx(DEVIATIONS[name], rel=0.2)


def test_numbers_that_are_none_are_told_from_weights():
    ones = torch.ones(64)
    assert not is_unusable(ones)
    assert not is_unusable(torch.zeros(64))
    assert not is_unusable(torch.randn(64))
    assert not is_unusable(torch.arange(4))
    assert is_unusable(ones.clone().index_fill_(0, torch.tensor([3]), torch.nan))
    assert is_unusable(ones.clone().index_fill_(0, torch.tensor([3]), torch.inf))
    shifted = torch.full((64,), 1e9, dtype=torch.float64)
    shifted[0] += 1.0
    assert is_unusable(shifted)


def without(folder, *names):
    """A checkpoint that lacks some of its tensors."""
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if k not in names}, folder / "model.safetensors", {"format": "pt"})
    return folder


def load(folder, **options):
    chosen = ModelOptions(model=str(folder), **options)
    return load_model(model_info(chosen), chosen, training=True)


@pytest.mark.parameter("init_strategy")
def test_a_checkpoint_that_lacks_weights_loads_with_a_strategy_and_says_what_it_filled(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(get_logger(), "propagate", True)
    lacking = ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"]
    folder = without(tiny.checkpoint(tmp_path / "m"), *lacking)
    with pytest.raises(ModelError, match="--init_strategy normal"):
        load(folder)
    caplog.set_level("INFO")
    model = load(folder, init_strategy="xavier_normal", torch_dtype="bfloat16")
    assert "init_strategy xavier_normal filled 2 parameters: model.layers.1.mlp.up_proj.weight, model.norm.weight" in (
        caplog.text
    )
    assert torch.equal(model.model.norm.weight.float(), torch.ones(64))
    filled = model.model.layers[1].mlp.up_proj.weight.detach().float()
    assert float(filled.std()) == pytest.approx(math.sqrt(2 / 192), rel=0.05)
    expected = load_file(folder / "model.safetensors")["model.layers.0.mlp.up_proj.weight"].bfloat16()
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, expected)


@pytest.mark.parameter("init_strategy")
def test_a_whole_checkpoint_is_left_as_it_is_and_that_is_said(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(get_logger(), "propagate", True)
    folder = tiny.checkpoint(tmp_path / "m")
    model = load(folder, init_strategy="zero")
    assert "--init_strategy zero filled nothing" in caplog.text
    stored = load_file(folder / "model.safetensors")
    assert all(torch.equal(p, stored[name]) for name, p in model.named_parameters())
