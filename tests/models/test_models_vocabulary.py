from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoTokenizer

import tiny
from swift.core.errors import UsageError
from swift.models.info import model_info
from swift.models.load import load_model
from swift.models.processor import load_tokenizer
from swift.models.vocabulary import add_tokens, new_tokens, token_ids, with_room
from swift.options.model import ModelOptions
from swift.options.tuner import TunerChoice, TunerOptions
from swift.tuners.attach import attach, load_adapters
from swift.tuners.merge import merge
from swift.tuners.request import Run

NEW = ["<|look|>", "<|leap|>"]


def grown(folder=None, **changes):
    """A tokenizer and a model with new tokens; of a checkpoint where one is named."""
    tokenizer = copy.deepcopy(tiny.tokenizer())
    add_tokens(tokenizer, NEW)
    return tokenizer, with_room(tiny.model(**changes), tokenizer)


@pytest.mark.parameter("new_special_tokens")
def test_tokens_are_named_or_read_from_files_once_each(tmp_path) -> None:
    file = tmp_path / "tokens.txt"
    file.write_text("<|leap|>\n<a>  <b>\n\n", encoding="utf-8")
    assert new_tokens(["<|look|>", str(file), "<b>"]) == ["<|look|>", "<|leap|>", "<a>", "<b>"]
    for wrong, words in ((str(tmp_path / "no.txt"), "no such file"), ("a b", "white space"), ("", "empty")):
        with pytest.raises(UsageError, match=f"--new_special_tokens.*{words}"):
            new_tokens([wrong])


@pytest.mark.parameter("new_special_tokens")
def test_a_new_token_is_one_id_survives_saving_and_leaves_other_special_tokens_alone(tmp_path) -> None:
    tokenizer, _ = grown()
    ids = token_ids(tokenizer, NEW)
    assert ids == [400, 401]
    assert tokenizer("It <|look|>s", add_special_tokens=False)["input_ids"].count(400) == 1
    assert tokenizer.eos_token == tiny.tokenizer().eos_token
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again("<|look|><|leap|>", add_special_tokens=False)["input_ids"] == ids
    add_tokens(again, ["<x>"])
    add_tokens(again, NEW)
    assert token_ids(again, NEW) == ids
    assert set(NEW) | {"<x>"} <= set(again.all_special_tokens)


@pytest.mark.parameter("new_special_tokens")
def test_the_embedding_grows_to_a_multiple_of_128_only_where_rows_are_lacking() -> None:
    _, model = grown()
    assert model.get_input_embeddings().weight.shape[0] == model.config.vocab_size == 512
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight[:400], tiny.model().get_input_embeddings().weight)
    _, roomy = grown(vocab_size=405)
    assert roomy.config.vocab_size == 405


@pytest.mark.parameter("new_special_tokens")
@pytest.mark.parametrize("tied", [True, False])
def test_lora_trains_the_rows_of_new_tokens_and_no_others_and_they_come_back_from_disk(tied, tmp_path) -> None:
    tokenizer, model = grown(tie_word_embeddings=tied)
    ids = token_ids(tokenizer, NEW)
    tuned = attach(model, TunerChoice(), TunerOptions(init_weights="false"), run=Run(new_token_ids=ids))
    trained = {name: p for name, p in tuned.named_parameters() if p.requires_grad and "lora_" not in name}
    assert len(trained) == (1 if tied else 2)
    assert all(p.shape == (2, 64) for p in trained.values())
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.5)
    tuned.eval()
    ids_BT = torch.tensor([[5, 400, 7, 401]])
    expected = tuned(ids_BT).logits
    plain = grown(tie_word_embeddings=tied)[1](ids_BT).logits
    assert not torch.allclose(expected[..., 400], plain[..., 400], atol=0.1)
    tuned.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 400 * 64 * 4  # rows, and not the whole matrix
    _, fresh = grown(tie_word_embeddings=tied)
    with torch.no_grad():
        fresh.get_input_embeddings().weight[400:] = 0  # what the rows were before does not matter
    assert torch.allclose(load_adapters(fresh, [tmp_path])(ids_BT).logits[..., :402], expected[..., :402], atol=1e-5)
    merged = merge(grown(tie_word_embeddings=tied)[1], [tmp_path])
    assert torch.allclose(merged(ids_BT).logits[..., :402], expected[..., :402], atol=1e-4)


@pytest.mark.parameter("new_special_tokens")
def test_layers_trained_whole_need_no_rows_and_layers_with_an_adapter_are_refused() -> None:
    tokenizer, model = grown(tie_word_embeddings=False)
    ids = token_ids(tokenizer, NEW)
    options = TunerOptions(modules_to_save=["embed_tokens", "lm_head"])
    tuned = attach(model, TunerChoice(), options, run=Run(new_token_ids=ids))
    assert tuned.peft_config["default"].trainable_token_indices is None
    with pytest.raises(UsageError, match=r"--new_special_tokens.*--modules_to_save embed_tokens"):
        attach(
            grown()[1],
            TunerChoice(),
            TunerOptions(target_modules=["q_proj", "embed_tokens"]),
            run=Run(new_token_ids=ids),
        )


@pytest.mark.parameter("new_special_tokens")
def test_a_checkpoint_that_has_the_tokens_already_is_loaded_as_it_is(tmp_path) -> None:
    tokenizer, model = grown()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    options = ModelOptions(model=str(tmp_path), new_special_tokens=NEW)
    info = model_info(options)
    again = load_tokenizer(info, options.new_special_tokens)
    loaded = load_model(info, options, training=False)
    assert len(again) == len(tokenizer)
    assert with_room(loaded, again).get_input_embeddings().weight.shape == (512, 64)
    assert torch.equal(loaded.get_input_embeddings().weight, model.get_input_embeddings().weight)
