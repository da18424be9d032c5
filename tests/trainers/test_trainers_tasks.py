"""Classification, embedding and ranking: what changes a training, and what does not."""

from __future__ import annotations

import json

import pytest
import runs
import task_runs
import test_trainers_processes
import torch
from transformers import AutoModel, AutoModelForSequenceClassification

from swift.core.errors import UsageError
from swift.data.groups import Draw
from swift.data.packing import pack_samples
from swift.models.heads import Head
from swift.trainers.evaluation import pearson, ranks_of, spearman
from swift.trainers.objectives import Outputs, groups_of, infonce_settings

TASKS = ["seq_cls", "embedding", "reranker", "generative_reranker"]
MEANS = [
    ("seq_cls", None), ("embedding", "cosine_similarity"), ("embedding", "contrastive"),
    ("reranker", "pointwise_reranker"), ("reranker", "listwise_reranker"), ("generative_reranker", "listwise_reranker"),
]  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("tasks") / "model"


@pytest.mark.parameter("task_type")
@pytest.mark.parameter("loss_type")
@pytest.mark.parametrize(("task", "loss_type"), MEANS)
def test_a_step_of_four_rows_at_once_is_one_of_four_rows_one_by_one(tmp_path, base, task, loss_type):
    settings = {"loss_type": loss_type, "max_steps": 3}
    one = task_runs.train(tmp_path / "a", base, task, **settings, per_device_train_batch_size=4,
                          gradient_accumulation_steps=1)  # fmt: skip
    other = task_runs.train(tmp_path / "b", base, task, **settings, per_device_train_batch_size=1,
                            gradient_accumulation_steps=4)  # fmt: skip
    assert one.logged("loss") == pytest.approx(other.logged("loss"), rel=1e-4)
    assert one.logged("acc") == pytest.approx(other.logged("acc"))
    assert runs.distance(one.weights(), other.weights()) < 2e-4


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
@pytest.mark.parameter("problem_type")
def test_other_problems_are_means_over_rows_too(tmp_path, base, problem):
    settings = {"problem": problem, "max_steps": 2}
    one = task_runs.train(tmp_path / "a", base, "seq_cls", **settings, per_device_train_batch_size=4,
                          gradient_accumulation_steps=1)  # fmt: skip
    other = task_runs.train(tmp_path / "b", base, "seq_cls", **settings, per_device_train_batch_size=1,
                            gradient_accumulation_steps=4)  # fmt: skip
    assert one.logged("loss") == pytest.approx(other.logged("loss"), rel=1e-4)
    assert bool(one.logged("acc")) == (problem != "regression")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parameter("padding_free")
def test_rows_end_to_end_train_what_padded_rows_train(tmp_path, base, task):
    padded, flat = (
        task_runs.train(tmp_path / str(flat), base, task, flat=flat, max_steps=3, group_by_length=True)
        for flat in (False, True)
    )
    assert padded.logged("loss") == pytest.approx(flat.logged("loss"), rel=1e-4)
    assert runs.distance(padded.weights(), flat.weights()) < 2e-4


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parameter("packing")
def test_a_pack_trains_what_its_rows_train_in_one_batch(tmp_path, base, task):
    rows = task_runs.stored(task, task_runs.rows(task, 6))
    packs = pack_samples(rows, 10_000)
    assert len(packs) == 1
    settings = {"max_steps": 2, "gradient_accumulation_steps": 1, "train_dataloader_shuffle": False}
    packed = task_runs.train(
        tmp_path / "a", base, task, flat=True, train=packs, per_device_train_batch_size=1, **settings
    )
    plain = task_runs.train(tmp_path / "b", base, task, train=rows, per_device_train_batch_size=6, **settings)
    assert packed.logged("loss") == pytest.approx(plain.logged("loss"), rel=1e-4)
    assert runs.distance(packed.weights(), plain.weights()) < 2e-4


@pytest.mark.parametrize("task", TASKS)
def test_a_resumed_run_is_the_uninterrupted_one_to_the_last_bit(tmp_path, base, task):
    draw = Draw(1, 2, 42) if "reranker" in task else None
    settings = {"lora": 0.3, "draw": draw, "max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    whole = task_runs.train(tmp_path / "a", base, task, **settings)
    resumed = task_runs.train(tmp_path / "b", base, task, resume=tmp_path / "a" / "checkpoint-3", **settings)
    assert runs.equal(whole.weights(), resumed.weights())
    assert not runs.equal(
        whole.weights(), task_runs.train(tmp_path / "c", base, task, **{**settings, "max_steps": 3}).weights()
    )


@pytest.mark.parametrize("task", TASKS)
def test_the_loss_of_an_evaluation_does_not_depend_on_its_batches(tmp_path, base, task):
    val = {"val": task_runs.rows(task, 7, seed=3), "eval_strategy": "steps", "eval_steps": 9, "eval_on_start": True,
           "max_steps": 1}  # fmt: skip
    one, other = (
        task_runs.train(tmp_path / str(size), base, task, per_device_eval_batch_size=size, **val) for size in (1, 3)
    )
    assert one.logged("eval_loss") == pytest.approx(other.logged("eval_loss"), rel=1e-5)
    assert one.logged("eval_acc") == pytest.approx(other.logged("eval_acc"))


def test_checkpoints_load_in_transformers_with_the_same_outputs(tmp_path, base):
    saved = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    ids = torch.tensor([[5, 6, 7, 8]])
    run = task_runs.train(tmp_path / "a", base, "seq_cls", **saved)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "a" / "checkpoint-1")
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, run.trainer.model.eval()(ids).logits)
    assert (theirs.config.num_labels, theirs.config.problem_type) == (3, "single_label_classification")
    run = task_runs.train(tmp_path / "b", base, "embedding", **saved)
    with torch.no_grad():
        theirs = AutoModel.from_pretrained(tmp_path / "b" / "checkpoint-1")(ids).last_hidden_state
        torch.testing.assert_close(theirs, run.trainer.model.eval()(ids).last_hidden_state)
    modules = json.loads((tmp_path / "b" / "checkpoint-1" / "modules.json").read_text())
    assert [module["type"].rpartition(".")[2] for module in modules] == ["Transformer", "Pooling", "Normalize"]


# -------------------------------------------------------------------------------------------------------------- metrics


@pytest.mark.parameter("eval_metric")
@pytest.mark.parametrize(
    ("task", "metric", "names"),
    [
        ("embedding", "paired", ["pearson_cosine", "spearman_dot_product", "spearman_manhattan"]),
        ("embedding", "infonce", ["margin", "mean_neg", "mean_pos"]),
        ("reranker", "reranker", ["mrr", "ndcg"]),
        ("seq_cls", "acc", ["acc"]),
    ],
)
def test_evaluation_reports_what_the_metric_names_and_checkpoints_are_compared_by_it(
    tmp_path, base, task, metric, names
):
    settings = {"val": task_runs.rows(task, 5, seed=1), "eval_metric": metric, "eval_strategy": "steps", "eval_steps": 1,
                "save_strategy": "steps", "save_steps": 1, "max_steps": 2, "metric_for_best_model": names[-1],
                "greater_is_better": True}  # fmt: skip
    run = task_runs.train(tmp_path / "a", base, task, **settings)
    for name in names:
        assert len(run.logged(f"eval_{name}")) == 2
    assert run.trainer.state.best_metric == max(run.logged(f"eval_{names[-1]}"))
    with pytest.raises(UsageError, match="--metric_for_best_model rouge"):
        task_runs.prepare(tmp_path / "b", base, task, **{**settings, "metric_for_best_model": "rouge"})


def test_rank_metrics_by_hand():
    from swift.trainers.evaluation import reranker

    outputs = Outputs(torch.tensor([0.2, 0.9, 0.1, 3.0, 1.0, 1.0]), torch.tensor([1.0, 0, 0, 1, 0, 1]), (3, 3))
    assert groups_of([1, 0, 0]) == [3]
    assert groups_of([1, 0, 1]) == [2, 1]
    # the match is second of three; then first of two; a group of one says nothing
    found = reranker(outputs)
    assert found["mrr"] == pytest.approx((1 / 2 + 1) / 2)
    assert found["ndcg"] == pytest.approx((1 / torch.log2(torch.tensor(3.0)).item() + 1) / 2)
    tied = Outputs(torch.ones(4), torch.tensor([1.0, 0, 0, 0]), (4,))
    assert reranker(tied)["mrr"] == pytest.approx(1 / 4)


def test_infonce_metric_by_hand(monkeypatch):
    from swift.trainers.evaluation import infonce

    vectors = torch.tensor(
        [[1.0, 0], [0.8, 0.6], [0.6, 0.8], [0, 1.0], [0, 1.0]]
    )  # a, its match, another; b, its match
    outputs = Outputs(vectors, torch.tensor([1.0, 0, 1]), (3, 2))
    monkeypatch.setenv("INFONCE_USE_BATCH", "false")
    assert infonce(outputs) == pytest.approx({"mean_pos": 0.9, "mean_neg": 0.6, "margin": 0.2})
    monkeypatch.setenv("INFONCE_USE_BATCH", "true")
    # a sees 0.6 and 0; b sees 0.6 and 0.8
    assert infonce(outputs) == pytest.approx({"mean_pos": 0.9, "mean_neg": 0.5, "margin": 0.2})


def test_correlations_are_those_of_definition():
    first, second = torch.tensor([1.0, 2, 3, 10]).double(), torch.tensor([1.0, 3, 2, 4]).double()
    assert spearman(first, second) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert pearson(first, 2 * first + 1) == pytest.approx(1)
    assert ranks_of(torch.tensor([5.0, 1, 5, 7])).tolist() == [2.5, 1, 2.5, 4]


def test_settings_of_infonce_without_an_effect_are_refused(monkeypatch):
    monkeypatch.setenv("INFONCE_USE_BATCH", "false")
    monkeypatch.setenv("INFONCE_INCLUDE_QQ", "true")
    with pytest.raises(UsageError, match="INFONCE_INCLUDE_QQ"):
        infonce_settings()
    monkeypatch.setenv("INFONCE_USE_BATCH", "true")
    monkeypatch.setenv("INFONCE_TEMPERATURE", "0.05")
    assert infonce_settings().temperature == 0.05
    monkeypatch.setenv("INFONCE_TEMPERATURE", "0")
    with pytest.raises(UsageError, match="INFONCE_TEMPERATURE"):
        infonce_settings()


# ---------------------------------------------------------------------------------------------------- several processes


@pytest.mark.slow
def test_two_processes_learn_from_the_candidates_of_both_what_one_learns_from_all(tmp_path):
    """infonce with the batch of both processes is that of one process with all rows: losses, metrics and weights."""
    task_runs.model(tmp_path / "model", Head("embedding"))
    done = test_trainers_processes.launch("tasks", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = test_trainers_processes.results(tmp_path)
    for task, loss in (("embedding", "infonce"), ("seq_cls", None)):
        alone = task_runs.train(
            tmp_path / f"alone-{task}", tmp_path / "model", task, loss_type=loss, per_device_train_batch_size=4,
            gradient_accumulation_steps=1, max_steps=4, eval_strategy="steps", eval_steps=2,
            val=task_runs.rows(task, 5, seed=8), eval_metric="infonce" if loss else None, per_device_eval_batch_size=1,
        )  # fmt: skip
        weights = [torch.load(tmp_path / f"{task}-{rank}.pt") for rank in (0, 1)]
        assert runs.equal(*weights)
        assert runs.distance(weights[0], alone.weights()) < 2e-4
        for name in ("loss", "grad_norm", "acc", "eval_loss", "eval_acc", "eval_margin", "eval_mean_neg"):
            found = test_trainers_processes.logged(first[task], name)
            assert found == pytest.approx(alone.logged(name), rel=1e-3), (task, name)
            assert found == test_trainers_processes.logged(second[task], name)
