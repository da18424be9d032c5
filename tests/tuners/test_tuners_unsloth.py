"""Unsloth: it trains where it is installed and there is a GPU, and says what is missing elsewhere."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

import tiny
from swift.core.errors import MissingPackage, ModelError
from swift.models.info import model_info
from swift.options.model import ModelOptions
from swift.options.tuner import TunerOptions
from swift.tuners.unsloth import Loading, learner

LOADING = Loading(max_length=128, bits=None, recompute=True, seed=42)


def info(folder):
    return model_info(ModelOptions(model=str(tiny.checkpoint(folder))))


@pytest.mark.parameter("tuner_backend")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path):
    with pytest.raises(ModelError, match=r"--tuner_backend unsloth needs a GPU.*--tuner_backend peft"):
        learner(info(tmp_path), "lora", TunerOptions(), LOADING)


@pytest.mark.gpu
@pytest.mark.parameter("tuner_backend")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.skipif(find_spec("unsloth") is not None, reason="unsloth is installed")
def test_without_the_package_it_says_how_to_install_it(tmp_path):
    with pytest.raises(MissingPackage, match="pip install unsloth"):
        learner(info(tmp_path), "lora", TunerOptions(), LOADING)


@pytest.mark.gpu
@pytest.mark.parameter("tuner_backend")
@pytest.mark.skipif(find_spec("unsloth") is None, reason="unsloth is not installed")
@pytest.mark.parametrize("tuner_type", ["lora", "full"])
def test_it_makes_a_model_that_learns(tmp_path, tuner_type):
    model = learner(info(tmp_path), tuner_type, TunerOptions(lora_rank=3, lora_dropout=0.0), LOADING)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name for name in trained) is (tuner_type == "lora")
    ids_BT = torch.arange(5, 17)[None].to(model.device)
    loss = model(input_ids=ids_BT).logits.float().square().mean()
    loss.backward()
    assert any(parameter.grad is not None for parameter in trained.values())
