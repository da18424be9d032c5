"""`--rope_scaling` and `--max_model_len`: the plan, and what it does to a model."""

from __future__ import annotations

import pytest
import torch

import tiny
from swift.core.errors import ModelError
from swift.models.info import model_info
from swift.models.load import load_model
from swift.models.rope import RopePlan, plan_rope
from swift.options.model import ModelOptions


@pytest.mark.parametrize(
    ("wanted", "max_model_len", "existing", "length", "factor", "reach"),
    [
        ("linear", 1000, None, 512, 2.0, 1000),
        ("linear", 512, None, 512, 1.0, 512),
        ("yarn", 1025, None, 512, 3.0, 1025),
        ({"type": "yarn", "factor": 4.0}, None, None, 512, 4.0, 2048),
        ({"rope_type": "dynamic", "factor": 2}, None, None, 512, 2, 1024),
        ({"type": "yarn", "original_max_position_embeddings": 256}, 1024, None, 512, 4.0, 1024),
        (None, 2048, {"rope_type": "linear", "factor": 2.0}, 1024, 4.0, 2048),
        (None, 2048, {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 256}, 512, 8.0, 2048),
        ("yarn", 2048, {"rope_type": "linear", "factor": 2.0}, 1024, 4.0, 2048),
    ],
)
def test_the_factor_leads_from_the_original_to_the_wanted_length(
    wanted, max_model_len, existing, length, factor, reach
):
    plan = plan_rope(wanted, max_model_len, existing, length)
    assert plan.scaling is not None
    assert plan.scaling["factor"] == factor
    assert plan.max_length == reach


def test_nothing_asked_changes_nothing():
    assert plan_rope(None, None, {"rope_type": "linear", "factor": 2.0}, 1024) == RopePlan(None, 1024)
    assert plan_rope(None, None, None, None) == RopePlan(None, None)


def test_a_length_alone_leaves_a_plain_rope_plain():
    assert plan_rope(None, 99, {"rope_type": "default", "rope_theta": 1e4}, 512) == RopePlan(None, 99, 99)


def test_a_length_beyond_the_scaling_is_a_warning():
    assert "512 x 2.0 = 1024" in str(plan_rope({"type": "yarn", "factor": 2.0}, 4096, None, 512).warning)
    assert plan_rope({"type": "yarn", "factor": 2.0}, 1024, None, 512).warning is None


@pytest.mark.parametrize(
    ("wanted", "max_model_len", "length", "words"),
    [
        ("yarn", None, 512, "--max_model_len"),
        ({"factor": 2.0}, None, 512, "needs a type"),
        ({"type": "linear", "factor": 0.5}, None, 512, "at least 1"),
        ("linear", 1024, None, "original_max_position_embeddings"),
    ],
)
def test_what_cannot_be_derived_is_asked_for(wanted, max_model_len, length, words):
    with pytest.raises(ModelError, match=words):
        plan_rope(wanted, max_model_len, None, length)


def loaded(folder, **options):
    chosen = ModelOptions(model=str(folder), **options)
    info = model_info(chosen)
    return info, load_model(info, chosen, training=False)


@pytest.mark.parameter("rope_scaling")
def test_linear_scaling_divides_positions(tmp_path):
    folder = tiny.checkpoint(tmp_path / "m")
    plain, scaled = loaded(folder)[1], loaded(folder, rope_scaling={"type": "linear", "factor": 2.0})[1]
    ids_BT = torch.arange(5, 17)[None]
    places_BT = torch.arange(12)[None]
    expected = plain(ids_BT, position_ids=places_BT).logits
    torch.testing.assert_close(scaled(ids_BT, position_ids=2 * places_BT).logits, expected)
    assert not torch.allclose(scaled(ids_BT, position_ids=places_BT).logits, expected)


@pytest.mark.parameter("rope_scaling")
@pytest.mark.parametrize("rope_type", ["linear", "dynamic", "yarn"])
def test_every_type_changes_what_is_read_beyond_the_original_length(tmp_path, rope_type):
    folder = tiny.checkpoint(tmp_path / "m", max_position_embeddings=16)
    info, scaled = loaded(folder, rope_scaling=rope_type, max_model_len=64)
    assert info.max_length == 64
    ids_BT = torch.arange(5, 45)[None]
    assert not torch.allclose(scaled(ids_BT).logits, loaded(folder)[1](ids_BT).logits, atol=1e-4)


@pytest.mark.parameter("max_model_len")
def test_max_model_len_overwrites_the_length_of_the_config(tmp_path):
    info, model = loaded(tiny.checkpoint(tmp_path / "m"), max_model_len=300)
    assert (info.max_length, model.config.max_position_embeddings) == (300, 300)


def test_a_scaled_model_that_is_saved_and_loaded_again_is_the_same(tmp_path):
    info, model = loaded(tiny.checkpoint(tmp_path / "m"), rope_scaling="yarn", max_model_len=2048)
    model.save_pretrained(tmp_path / "again")
    again_info, again = loaded(tmp_path / "again")
    ids_BT = torch.arange(5, 45)[None]
    torch.testing.assert_close(again(ids_BT).logits, model(ids_BT).logits)
    assert again_info.max_length == info.max_length == 2048


def test_only_layers_of_full_attention_are_scaled(tmp_path):
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=99, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, head_dim=16,
        num_key_value_heads=1, max_position_embeddings=64, layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    Gemma3ForCausalLM(config).save_pretrained(tmp_path / "g")
    rope = loaded(tmp_path / "g", rope_scaling={"type": "linear", "factor": 2.0})[1].config.rope_parameters
    assert rope["full_attention"]["factor"] == 2.0
    assert "factor" not in rope["sliding_attention"]
    assert rope["full_attention"]["rope_theta"] == config.rope_parameters["full_attention"]["rope_theta"]
