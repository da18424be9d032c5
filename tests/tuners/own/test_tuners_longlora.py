"""Shifted sparse attention is attention in groups, sees nothing that comes later, and gives way to full attention."""

from __future__ import annotations

import pytest
import torch

import architectures
import tiny
from swift.core.errors import ModelError, UsageError
from swift.options.tuner import TunerChoice, TunerOptions
from swift.tuners.attach import attach, load_adapters
from swift.tuners.merge import merge
from swift.tuners.own.longlora import borders, shift_attention, shifted_attention


def states(length, heads=4, seed=0):
    torch.manual_seed(seed)
    return [torch.randn(2, heads, length, 8) for _ in range(3)]


def by_hand(query, key, value, size, mask=None):
    """Attention with a mask that says who is in whose group."""
    places = torch.arange(query.shape[2])
    outputs = []
    for head in range(query.shape[1]):
        group = places // size if head < query.shape[1] // 2 else (places + size - size // 2) // size
        visible = (group[:, None] == group) & (places[:, None] >= places)
        visible = visible if mask is None else visible & mask
        scores = query[:, head] @ key[:, head].transpose(1, 2) * 0.3
        weights = scores.masked_fill(~(visible if mask is None else visible[:, 0]), -torch.inf).softmax(-1)
        outputs.append(weights.nan_to_num(0) @ value[:, head])
    return torch.stack(outputs, dim=2)


@pytest.mark.parametrize(("length", "size"), [(32, 8), (29, 8), (8, 8), (5, 8), (3, 8), (33, 7)])
def test_half_of_the_heads_attend_in_groups_and_half_in_groups_that_are_shifted(length, size):
    torch.testing.assert_close(
        shifted_attention(*states(length), None, size=size, scale=0.3),
        by_hand(*states(length), size),
        atol=1e-5,
        rtol=1e-4,
    )


def test_padding_is_not_seen():
    length = 12
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    real = torch.ones(2, length, dtype=torch.bool)
    real[0, :3] = False
    mask = (causal & real[:, None])[:, None]
    found = shifted_attention(*states(length), mask, size=4, scale=0.3)
    expected = by_hand(*states(length), 4, mask)
    torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=1e-4)


def test_groups_cover_the_row_once():
    assert borders(10, 4, 4) == [(0, 4), (4, 8), (8, 10)]
    assert borders(10, 4, 2) == [(0, 2), (2, 6), (6, 10)]
    assert borders(2, 4, 4) == [(0, 2)]


@pytest.mark.parameter("tuner_type")
def test_no_token_reads_a_later_one_while_a_model_trains():
    model = tiny.model()
    shift_attention(model, 32, None)
    model.train()
    embedded = model.model.embed_tokens(torch.arange(5, 37)[None]).detach().requires_grad_()
    logits = model(inputs_embeds=embedded, use_cache=False).logits
    for place in (0, 7, 13, 30):
        (gradient,) = torch.autograd.grad(logits[0, place].sum(), embedded, retain_graph=True)
        reads = (gradient[0].abs().amax(-1) > 0).nonzero().flatten().tolist()
        assert max(reads) == place


@pytest.mark.parameter("max_length")
def test_attention_is_shifted_in_training_only_and_in_groups_of_a_quarter():
    ids = torch.arange(5, 37)[None]
    plain, model = tiny.model(), tiny.model()
    shift_attention(model, 32, None)
    torch.testing.assert_close(model(ids).logits, plain(ids).logits)
    assert not torch.allclose(model.train()(ids, use_cache=False).logits, plain(ids).logits, atol=1e-3)
    wide = tiny.model()
    shift_attention(wide, 128, None)  # a group holds the row; the shifted heads still see only half groups
    assert not torch.allclose(wide.train()(ids, use_cache=False).logits, model(ids, use_cache=False).logits, atol=1e-3)


def test_padded_and_single_rows_give_the_same_logits_in_training():
    model = tiny.model()
    shift_attention(model, 32, None)
    model.train()
    ids = torch.arange(5, 30)[None]
    padded = torch.cat([ids, torch.zeros(1, 7, dtype=torch.long)], dim=1)
    mask = torch.cat([torch.ones_like(ids), torch.zeros(1, 7, dtype=torch.long)], dim=1)
    alone = model(ids, use_cache=False).logits
    torch.testing.assert_close(
        model(padded, attention_mask=mask, use_cache=False).logits[:, :25], alone, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "mixtral"])
def test_models_of_the_llama_kind_are_shifted(family):
    model = architectures.model(family)
    before = model(torch.arange(5, 37)[None]).logits
    shift_attention(model, 32, None)
    shifted = model.train()(torch.arange(5, 37)[None], use_cache=False).logits
    assert not torch.allclose(shifted, before, atol=1e-4)


@pytest.mark.parametrize("family", ["mamba", "gemma2", "gpt_oss", "falcon"])
def test_models_of_other_kinds_are_refused_with_the_reason(family):
    with pytest.raises(ModelError, match="--tuner_type longlora"):
        shift_attention(architectures.model(family), 32, None)


def test_what_does_not_fit_is_refused():
    with pytest.raises(UsageError, match="needs --max_length"):
        shift_attention(tiny.model(), None, None)
    with pytest.raises(UsageError, match="got --attn_impl eager"):
        shift_attention(tiny.model(), 32, "eager")


def longlora(model):
    torch.manual_seed(0)
    shift_attention(model, 32, None)
    return attach(model, TunerChoice(tuner_type="longlora"), TunerOptions(lora_rank=4))


@pytest.mark.parameter("tuner_type")
@pytest.mark.parameter("merge_lora")
@pytest.mark.parametrize("tied", [True, False])
def test_it_trains_lora_with_embeddings_and_norms_and_merges_like_lora(tmp_path, tied):
    model = longlora(tiny.model(tie_word_embeddings=tied))
    learnt = {name.replace("modules_to_save.default.", "") for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "norm" in name or "embed_tokens" in name for name in learnt)
    assert sum("norm" in name for name in learnt) == 2 * 4 + 1
    assert any("embed_tokens" in name for name in learnt)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    ids = torch.arange(5, 37)[None]
    expected = load_adapters(tiny.model(tie_word_embeddings=tied), [tmp_path])(ids).logits
    torch.testing.assert_close(model.eval()(ids).logits, expected, atol=1e-5, rtol=1e-4)
    merged = merge(tiny.model(tie_word_embeddings=tied), [tmp_path])(ids).logits
    assert ((merged - expected).norm() / expected.norm()) < 1e-5
