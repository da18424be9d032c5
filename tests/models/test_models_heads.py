"""What a model puts out for a text does not depend on what stands beside it, nor on how a batch is laid out."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification, XLMRobertaConfig, XLMRobertaForSequenceClassification

import tiny
from swift.chat.render import Sample
from swift.core.errors import ModelError, UsageError
from swift.data.collate import Flattened, Padded
from swift.models.heads import Head, head_names, judging_tokens
from swift.models.info import model_info
from swift.models.load import load_model
from swift.models.pooling import last_positions, last_positions_flat, pool, pool_flat
from swift.models.sentence import described_pooling, write_description
from swift.models.tasks import labels_of
from swift.options.model import ModelOptions
from swift.trainers.isolation import isolate

TEXTS = [Sample(list(range(5, 5 + size)), [-100] * size) for size in (4, 9, 1, 6)]
HEADS = {
    "seq_cls": Head("seq_cls", "single_label_classification", 3, pad_token_id=0),
    "reranker": Head("reranker", pad_token_id=0),
    "generative_reranker": Head("generative_reranker", judges=(10, 11)),
    "embedding": Head("embedding"),
    "embedding first": Head("embedding", pooling="first"),
    "embedding mean": Head("embedding", pooling="mean", normalizes=False),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.checkpoint(tmp_path_factory.mktemp("heads") / "model")


def options(folder, name: str, **more) -> ModelOptions:
    task = name.split(maxsplit=1)[0]
    if task == "seq_cls":
        more = {"num_labels": 3, "problem_type": "single_label_classification", **more}
    return ModelOptions(model=str(folder), task_type=task, **more)


def load(folder, name: str, *, training=True, **more):
    chosen = options(folder, name, **more)
    torch.manual_seed(0)
    model = load_model(model_info(chosen), chosen, training=training)
    model.config.pad_token_id = 0
    return model


@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_padding_on_either_side_none_and_rows_end_to_end_give_the_same_output(folder, name):
    model, head = load(folder, name), HEADS[name]
    alone = torch.cat([head.outputs(model, Padded(0)([text])) for text in TEXTS])
    torch.testing.assert_close(head.outputs(model, Padded(0)(TEXTS)), alone)
    torch.testing.assert_close(head.outputs(model, Padded(0, "left")(TEXTS)), alone)
    isolate(model, None, "--padding_free")
    torch.testing.assert_close(head.outputs(model, Flattened()(TEXTS)), alone)


@torch.no_grad()
def test_a_classifier_pools_as_transformers_does_even_where_a_text_ends_with_the_padding_token(folder):
    texts = [Sample([5, 6, 7, 0], [-100] * 4), Sample([8, 9, 0, 0], [-100] * 4), Sample([7, 8, 9, 10, 11], [-100] * 5)]
    model, head = load(folder, "seq_cls"), HEADS["seq_cls"]
    plain = torch.cat([model(input_ids=torch.tensor([text.input_ids])).logits for text in texts])
    torch.testing.assert_close(head.outputs(model, Padded(0)(texts)), plain)
    isolate(model, None, "--padding_free")
    torch.testing.assert_close(head.outputs(model, Flattened()(texts)), plain)


@torch.no_grad()
def test_a_generative_reranker_is_the_difference_of_two_logits(folder):
    model = load(folder, "generative_reranker")
    logits = model(input_ids=torch.tensor([TEXTS[1].input_ids])).logits[0, -1]
    found = HEADS["generative_reranker"].outputs(model, Padded(0)(TEXTS))
    torch.testing.assert_close(found[1], logits[10] - logits[11])


def test_embeddings_have_length_one_unless_the_model_says_otherwise(folder):
    found = HEADS["embedding"].outputs(load(folder, "embedding"), Padded(0)(TEXTS))
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(len(TEXTS)))


def test_pooling_by_hand():
    states = torch.arange(12.0).reshape(2, 3, 2)
    valid = torch.tensor([[True, True, False], [False, True, True]])
    assert last_positions(valid).tolist() == [1, 2]
    assert last_positions(torch.zeros(1, 4, dtype=torch.bool)).tolist() == [3]
    assert pool(states, valid, "last").tolist() == [[2, 3], [10, 11]]
    assert pool(states, valid, "first").tolist() == [[0, 1], [8, 9]]
    assert pool(states, valid, "mean").tolist() == [[1, 2], [9, 10]]
    flat, borders = states.reshape(6, 2), torch.tensor([0, 2, 6])
    assert pool_flat(flat, borders, "last").tolist() == [[2, 3], [10, 11]]
    assert pool_flat(flat, borders, "first").tolist() == [[0, 1], [4, 5]]
    assert pool_flat(flat, borders, "mean").tolist() == [[1, 2], [7, 8]]
    assert last_positions_flat(torch.tensor([True, False, True, True, False, False]), borders).tolist() == [0, 3]
    assert last_positions_flat(torch.zeros(6, dtype=torch.bool), borders).tolist() == [1, 5]


@pytest.mark.parameter("num_labels")
@pytest.mark.parameter("problem_type")
def test_the_labels_of_a_classifier_are_said_known_or_asked_for(folder, tmp_path):
    info = model_info(ModelOptions(model=str(folder)))
    with pytest.raises(UsageError, match="--num_labels"):
        labels_of(info, ModelOptions(task_type="seq_cls"))
    one, three = (labels_of(info, ModelOptions(task_type="seq_cls", num_labels=count)) for count in (1, 3))
    assert (one.problem, three.problem) == ("regression", "single_label_classification")
    load(folder, "seq_cls", problem_type="multi_label_classification").save_pretrained(tmp_path / "trained")
    known = labels_of(model_info(ModelOptions(model=str(tmp_path / "trained"))), ModelOptions(task_type="seq_cls"))
    assert (known.num_labels, known.problem) == (3, "multi_label_classification")


def test_a_head_of_the_checkpoint_is_kept_and_another_number_of_classes_makes_a_new_one(folder, tmp_path):
    model = load(folder, "seq_cls")
    model.save_pretrained(tmp_path / "trained")
    again = load(tmp_path / "trained", "seq_cls", training=False)
    assert torch.equal(again.score.weight, model.score.weight)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "trained")
    assert torch.equal(theirs.score.weight, model.score.weight)
    assert load(tmp_path / "trained", "seq_cls", num_labels=5).score.weight.shape[0] == 5
    with pytest.raises(ModelError, match="no classification head of this size"):
        load(tmp_path / "trained", "seq_cls", training=False, num_labels=5)
    with pytest.raises(ModelError, match="no classification head"):
        load(folder, "reranker", training=False)
    with pytest.raises(ModelError, match="is a classifier"):
        load(tmp_path / "trained", "embedding")


@torch.no_grad()
def test_an_encoder_is_classified_by_its_own_head_and_refuses_rows_end_to_end(tmp_path):
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=1
    )
    model = XLMRobertaForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    loaded = load(tmp_path / "model", "reranker", training=False)
    assert head_names(loaded) == ["classifier"]
    found = Head("reranker", pad_token_id=1).outputs(loaded, Padded(1)(TEXTS))
    alone = torch.cat([model(input_ids=torch.tensor([text.input_ids])).logits[:, 0] for text in TEXTS])
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-4)
    with pytest.raises(ModelError, match="--padding_free"):
        Head("reranker", pad_token_id=1).outputs(loaded, Flattened()(TEXTS))


def test_what_judges_must_be_one_token_each(monkeypatch):
    tokenizer = tiny.tokenizer()
    with pytest.raises(UsageError, match="GENERATIVE_RERANKER_POSITIVE_TOKEN"):
        judging_tokens(tokenizer)
    monkeypatch.setenv("GENERATIVE_RERANKER_POSITIVE_TOKEN", "a")
    monkeypatch.setenv("GENERATIVE_RERANKER_NEGATIVE_TOKEN", "b")
    assert judging_tokens(tokenizer) == tuple(tokenizer.convert_tokens_to_ids(["a", "b"]))


@pytest.mark.parametrize("pooling", ["last", "first", "mean"])
@pytest.mark.parametrize("normalizes", [True, False])
def test_a_description_says_again_what_it_was_told(tmp_path, pooling, normalizes):
    assert described_pooling(tmp_path) is None
    write_description(tmp_path, pooling, 64, normalizes=normalizes)
    assert described_pooling(tmp_path) == (pooling, normalizes)


def test_parts_of_sentence_transformers_that_are_not_known_are_refused(tmp_path):
    write_description(tmp_path, "mean", 64, normalizes=True)
    modules = json.loads((tmp_path / "modules.json").read_text())
    dense = {"idx": 3, "name": "3", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    (tmp_path / "modules.json").write_text(json.dumps([*modules, dense]))
    with pytest.raises(ModelError, match="Dense"):
        described_pooling(tmp_path)
