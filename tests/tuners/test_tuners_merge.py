"""A merged model is the model with its adapter, or it is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from swift.core.errors import ModelError
from swift.options.tuner import TunerChoice, TunerOptions
from swift.tuners.attach import attach, load_adapters
from swift.tuners.merge import TOLERANCES, merge, relative_errors
from swift.tuners.probe import prompt_logits

IDS_BT = torch.arange(5, 17)[None]


def adapter(folder, model=None, scale=0.05, **options):
    """A saved adapter that changes the model."""
    torch.manual_seed(0)
    tuned = attach(model or tiny.model(), TunerChoice(), TunerOptions(**options))
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data += scale * torch.randn_like(parameter)
    tuned.save_pretrained(folder, save_embedding_layers=False)
    return folder


@pytest.mark.parameter("merge_lora")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dora": True},
        {"use_rslora": True, "lora_rank": 3, "lora_alpha": 5},
        {"lora_bias": "all"},
        {"modules_to_save": ["all-norm"]},
        {"modules_to_save": ["embed_tokens"]},
        {"target_modules": ["all-linear", "all-embedding"]},
        {"target_modules": ["lm_head"]},
    ],
    ids=str,
)
@pytest.mark.parametrize("tied", [True, False])
def test_merged_logits_equal_those_with_the_adapter(tmp_path, options, tied):
    def model():
        return tiny.model(tie_word_embeddings=tied, attention_bias=True)

    adapter(tmp_path, model(), **options)
    expected = load_adapters(model(), [tmp_path])(IDS_BT).logits
    merged = merge(model(), [tmp_path])
    assert relative_errors(expected[0], merged(IDS_BT).logits[0]).max() < 1e-5
    assert relative_errors(model()(IDS_BT).logits[0], expected[0]).max() > 1e-3, "the adapter has an effect"
    assert not [name for name, _ in merged.named_modules() if "lora" in name]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_merges_within_its_rounding(tmp_path, dtype):
    adapter(tmp_path)
    merged = merge(tiny.model().to(dtype), [tmp_path])
    assert {parameter.dtype for parameter in merged.parameters()} == {dtype}
    expected = prompt_logits(load_adapters(tiny.model().to(dtype), [tmp_path]))
    assert relative_errors(expected, prompt_logits(merged)).median() < TOLERANCES[dtype]


def test_several_adapters_are_merged_together(tmp_path):
    paths = [adapter(tmp_path / "a", target_modules=["q_proj"]), adapter(tmp_path / "b", target_modules=["down_proj"])]
    expected = load_adapters(tiny.model(), paths)(IDS_BT).logits
    torch.testing.assert_close(merge(tiny.model(), paths)(IDS_BT).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_a_merged_model_stays_tied_where_its_embedding_was_trained_whole(tmp_path, tied):
    adapter(tmp_path, tiny.model(tie_word_embeddings=tied), modules_to_save=["embed_tokens"])
    merged = merge(tiny.model(tie_word_embeddings=tied), [tmp_path])
    assert (merged.lm_head.weight is merged.model.embed_tokens.weight) is tied
    assert merged.config.tie_word_embeddings is tied


def test_an_adapter_of_the_output_layer_alone_leaves_the_embedding(tmp_path):
    adapter(tmp_path, target_modules=["lm_head"])
    merged = merge(tiny.model(), [tmp_path])
    torch.testing.assert_close(merged.model.embed_tokens.weight, tiny.model().model.embed_tokens.weight.detach())
    assert not merged.config.tie_word_embeddings


def edited(folder, **changes):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora_bias": True}, "biases"),
        ({"alora_invocation_tokens": [1, 2]}, "activated LoRA"),
        ({"layer_replication": [[0, 2], [0, 2]]}, "replicates layers"),
        ({"peft_type": "LOHA"}, "it is a LOHA adapter"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*Unexpected keyword arguments.*:UserWarning")
def test_what_no_weight_can_hold_is_refused_with_the_reason(tmp_path, changes, words):
    edited(adapter(tmp_path), **changes)
    with pytest.raises(ModelError, match=rf"{tmp_path} cannot be merged: .*{words}"):
        merge(tiny.model(), [tmp_path])


def test_nothing_to_merge_is_refused():
    with pytest.raises(ModelError, match="nothing to merge"):
        merge(tiny.model(), [])


def test_the_gate_refuses_a_merge_that_is_not_equal(tmp_path, monkeypatch):
    from swift.tuners import merge as module

    adapter(tmp_path)
    fold = module._fold

    def wrong(adapted):
        merged = fold(adapted)
        merged.model.layers[0].mlp.up_proj.weight.data *= 1.001
        return merged

    monkeypatch.setattr(module, "_fold", wrong)
    with pytest.raises(ModelError, match=r"does not equal the model with its adapter: .* Nothing was saved"):
        merge(tiny.model(), [tmp_path])


def test_an_adapter_with_values_that_are_no_numbers_is_refused(tmp_path):
    adapter(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    next(iter(tensors.values()))[0] = float("nan")
    save_file(tensors, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"cannot be merged: NaNs? "):
        merge(tiny.model(), [tmp_path])
