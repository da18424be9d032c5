"""Rows end to end never see each other: what would let them is refused before training."""

from __future__ import annotations

import warnings

import pytest
import torch

import architectures
import tiny
from swift.core.errors import ModelError
from swift.models.varlen import VARLEN
from swift.trainers import isolation
from swift.trainers.isolation import isolate

SEE = ("falcon", "bamba", "mamba", "qwen3_next")
"""Architectures whose rows see each other whatever the attention: linear attention, state spaces, masks of their own."""
MASKED = ("phimoe", "qwen2_moe", "llama4_text")
"""Architectures that leave windows or chunks to a mask."""
APART = [name for name in architectures.FAMILIES if name not in SEE]


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # kernels that are not installed
        yield


def are_apart(model) -> bool:
    """Whether the attention that a model has keeps sequences apart: one that was asked for is tried as it is."""
    try:
        isolate(model, "eager", "--packing")
    except ModelError:
        return False
    return True


@pytest.mark.parameter("packing")
@pytest.mark.parameter("padding_free")
@pytest.mark.parametrize("family", APART)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_an_attention_is_found_under_which_sequences_are_apart(family, dtype):
    model = architectures.model(family).to(dtype)
    isolate(model, None, "--packing")
    assert are_apart(model)
    assert (model.config._attn_implementation == VARLEN) is (family not in MASKED)


@pytest.mark.parameter("packing")
@pytest.mark.parametrize("family", SEE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_model_whose_sequences_see_each_other_is_refused(family, dtype):
    model = architectures.model(family).to(dtype)
    given = model.config._attn_implementation
    with pytest.raises(
        ModelError, match=f"--packing true does not work with {family} and {given} attention: .+ Drop --packing"
    ):
        isolate(model, None, "--packing")
    assert model.config._attn_implementation == given


@pytest.mark.parameter("attn_impl")
def test_eager_attention_stays_when_it_is_asked_for_and_is_refused_where_it_leaks():
    model = tiny.model(attn_implementation="eager")
    isolate(model, "eager", "--padding_free")
    assert model.config._attn_implementation == "eager"
    with pytest.raises(
        ModelError, match=r"--padding_free true does not work with gpt_oss and eager attention: rows .* see"
    ):
        isolate(architectures.model("gpt_oss", "eager"), "eager", "--padding_free")


def test_a_window_wider_than_what_is_tried_is_not_lost():
    model = architectures.model("phimoe", sliding_window=64)
    isolate(model, None, "--packing")
    assert model.config._attn_implementation == "sdpa"


def test_a_leak_is_found_wherever_it_is(monkeypatch):
    """A model that adds the mean of a few channels of all tokens before, in its last layer, in bfloat16."""
    model = tiny.model().to(torch.bfloat16)
    assert are_apart(model)

    def leak(_module, _inputs, output):
        before = output.float().cumsum(1)[..., :2].sum(-1, keepdim=True) * 1e-4
        return output + before.to(output.dtype)

    model.model.layers[-1].mlp.register_forward_hook(leak)
    assert not are_apart(model)


def test_a_model_that_counts_positions_through_the_row_is_refused():
    model = architectures.model("gpt2")
    embed = model.transformer.wpe
    assert are_apart(model)
    embed.register_forward_pre_hook(lambda _, given: (torch.arange(given[0].shape[-1])[None],))
    assert not are_apart(model)


def test_trying_a_model_leaves_no_trace():
    model = tiny.model(attention_dropout=0.5).train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    assert are_apart(model)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(value.grad is None for value in model.parameters())
    assert not model.get_input_embeddings()._forward_hooks


def test_a_mask_of_ones_would_let_sequences_see_each_other(monkeypatch):
    """Why a flattened batch has no attention mask: the probe notices it when it has one."""

    class Masked(isolation.Flattened):
        def __call__(self, items):
            batch = super().__call__(items)
            return {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}

    monkeypatch.setattr(isolation, "Flattened", Masked)
    assert not are_apart(tiny.model())
