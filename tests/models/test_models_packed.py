"""Matrices that are laid out for the processor give what the plain ones give."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import tiny
from swift.models.packed import PackedLinear, can_pack, pack, unpack

pytestmark = pytest.mark.skipif(not can_pack(), reason="torch was built without oneDNN")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_gives_the_same_up_to_rounding(dtype, bias):
    torch.manual_seed(0)
    plain = nn.Linear(96, 130, bias=bias).to(dtype)
    packed = PackedLinear(plain)
    for shape in ((1, 96), (7, 96), (3, 5, 96), (2, 0, 96)):
        inputs = torch.randn(shape).to(dtype)
        with torch.inference_mode():
            torch.testing.assert_close(packed(inputs), plain(inputs))
    assert torch.equal(packed.weight, plain.weight)


def test_a_packed_model_answers_the_same_and_can_be_unpacked():
    plain = tiny.model(seed=3)
    packed = copy.deepcopy(plain)
    assert pack(packed) == 15
    ids = torch.arange(30)[None]
    with torch.inference_mode():
        torch.testing.assert_close(packed(ids).logits, plain(ids).logits)
    assert not any(type(module) is nn.Linear for module in packed.modules())
    unpack(packed)
    assert not any(isinstance(module, PackedLinear) for module in packed.modules())
    for name, weight in plain.state_dict().items():
        assert torch.equal(packed.state_dict()[name], weight)


def test_what_is_no_plain_matrix_is_left_alone():
    from peft import LoraConfig, get_peft_model

    half = nn.Sequential(nn.Linear(8, 8, dtype=torch.float16), nn.Conv1d(4, 4, 1))
    assert pack(half) == 0
    model = get_peft_model(tiny.model(), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    pack(model)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert isinstance(layer.base_layer, PackedLinear)
    assert type(layer.lora_A["default"]) is nn.Linear
