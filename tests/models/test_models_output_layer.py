"""Hidden states in place of logits, for tiny models of many architectures."""

from __future__ import annotations

import pytest
import torch

import architectures
import tiny
from swift.models.output_layer import instead_of_logits, output_layer, projection

SCALED = {
    "gemma2": {"final_logit_softcapping": 3.0},
    "cohere2": {"logit_scale": 0.3},
}


@pytest.mark.parametrize("family", architectures.FAMILIES)
def test_our_way_from_hidden_states_to_logits_gives_the_logits_of_the_model(family):
    model = architectures.model(family, **SCALED.get(family, {}))
    way, layer = projection(model), output_layer(model)
    assert way is not None
    ids = torch.randint(3, 100, (2, 9), generator=torch.Generator().manual_seed(1))
    fed = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    with torch.no_grad():
        ours, outputs = instead_of_logits(model, layer, fed, way)
        theirs = model(**fed).logits
    torch.testing.assert_close(ours.float(), theirs.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(outputs.logits[:, -1].float(), theirs[:, -1].float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("family", "field"), [("gemma2", "cap"), ("cohere2", "scale")])
def test_a_scale_or_a_cap_of_the_config_is_found_out(family, field):
    way = projection(architectures.model(family, **SCALED[family]))
    assert getattr(way, field) == next(iter(SCALED[family].values()))
    plain = projection(tiny.model())
    assert (plain.scale, plain.cap) == (1.0, None)


@pytest.mark.parametrize("family", ["granite", "falcon_h1"])
def test_families_that_divide_or_multiply_by_a_name_of_their_own(family):
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    special = {"granite": {"logits_scaling": 5.0}, "falcon_h1": {"lm_head_multiplier": 0.4, "mamba_d_ssm": 64,
               "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8}}  # fmt: skip
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**{**architectures.SMALL, **special[family]})
    way = projection(AutoModelForCausalLM.from_config(config).eval())
    assert way.scale == pytest.approx({"granite": 0.2, "falcon_h1": 0.4}[family])


def test_a_model_that_does_something_else_with_its_logits_has_no_way():
    model = tiny.model()
    model.lm_head.register_forward_hook(lambda *call: call[2] + torch.arange(400.0))
    assert projection(model) is None


def test_looking_leaves_the_model_as_it_was():
    model = tiny.model().train()
    model.model.norm.eval()
    before = [module.training for module in model.modules()]
    projection(model)
    assert [module.training for module in model.modules()] == before
    assert not model.lm_head._forward_pre_hooks
    assert all(value.grad is None for value in model.parameters())
