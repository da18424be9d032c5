"""Classes, embeddings and rankings of rows that processes share are those of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import runs
import task_runs

import tiny
from swift.data.packing import pack_samples
from together import in_processes

pytestmark = pytest.mark.slow
SPEED = {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}
GOALS = [
    ("seq_cls", {}), ("embedding", {"loss_type": "infonce"}), ("embedding", {"pooling": "mean", "loss_type": "contrastive"}),
    ("reranker", {"loss_type": "listwise_reranker"}), ("generative_reranker", {}),
]  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of the model, which is there before processes look for it."""
    folder = tmp_path_factory.mktemp("sharing") / "model"
    tiny.checkpoint(folder)
    return folder


def learnt(folder: Path, base: Path, task: str, **settings: Any) -> dict[str, Any]:
    """What one training says and leaves, ready to be sent."""
    made = {"max_steps": 3, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 2, "eval_strategy": "steps",
            "eval_steps": 1, "val": task_runs.rows(task, 5, seed=3)}  # fmt: skip
    run = task_runs.train(folder, base, task, **{**made, **settings})
    measured = {name for entry in run.history for name in entry if name.startswith("eval_")} - SPEED
    logged = {name: run.logged(name) for name in measured | {"loss", "grad_norm", "acc"}}
    return {"logged": logged, "weights": run.weights()}


def shared(folder: Path, base: Path, task: str, processes: int, size: int, **settings: Any) -> list[dict[str, Any]]:
    """The same rows of a step by several processes, `size` of which share each row."""
    steps = 2 // (processes // size)

    def work(rank: int) -> dict[str, Any]:
        return learnt(
            folder / str(rank), base, task, **{"gradient_accumulation_steps": steps, **settings}, sharers=size,
            average_tokens_across_devices=True,
        )  # fmt: skip

    return in_processes(processes, work, folder)


def require_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["logged"].keys() == other["logged"].keys()
    for name, values in one["logged"].items():
        assert other["logged"][name] == pytest.approx(values, rel=1e-4, abs=1e-6), name
    assert one["logged"]["loss"]
    assert one["logged"]["eval_loss"]
    assert runs.distance(one["weights"], other["weights"]) < 2e-4


@pytest.mark.parameter("sequence_parallel_size")
@pytest.mark.parametrize(("task", "settings"), GOALS)
def test_two_processes_that_share_rows_of_a_task_learn_what_one_learns(tmp_path, base, task, settings):
    one = learnt(tmp_path / "one", base, task, flat=True, **settings)
    for answer in shared(tmp_path / "two", base, task, 2, 2, **settings):
        require_equal(one, answer)


@pytest.mark.parameter("sequence_parallel_size")
@pytest.mark.parametrize(("task", "settings"), [GOALS[0], GOALS[2], GOALS[4]])
def test_four_processes_by_heads_in_a_ring_learn_what_one_learns(tmp_path, base, task, settings):
    one = learnt(tmp_path / "one", base, task, flat=True, **settings)
    for answer in shared(tmp_path / "four", base, task, 4, 4, **settings):
        require_equal(one, answer)


@pytest.mark.parameter("sequence_parallel_size")
def test_a_group_of_processes_counts_as_one_where_rows_are_candidates_of_each_other(tmp_path, base):
    """Two groups of two see the rows of each other as two processes do that share nothing."""
    settings = {"loss_type": "infonce", "gradient_accumulation_steps": 1}

    def work(rank: int) -> dict[str, Any]:
        return learnt(
            tmp_path / str(rank), base, "embedding", flat=True, average_tokens_across_devices=True, **settings
        )

    apart, together = in_processes(2, work, tmp_path / "two")[0], shared(tmp_path / "four", base, "embedding", 4, 2, **settings)  # fmt: skip
    for key in ("loss", "grad_norm"):
        assert together[0]["logged"][key] == pytest.approx(apart["logged"][key], rel=1e-4), key
    assert runs.distance(apart["weights"], together[0]["weights"]) < 2e-4


@pytest.mark.parameter("sequence_parallel_size")
@pytest.mark.parameter("eval_metric")
@pytest.mark.parametrize(("task", "metric", "settings"), [
    ("embedding", "paired", {}), ("reranker", "reranker", {}), ("seq_cls", "acc", {"problem": "single_label_classification"}),
])  # fmt: skip
def test_rows_of_an_evaluation_are_measured_once(tmp_path, base, task, metric, settings):
    settings = {**settings, "eval_metric": metric, "max_steps": 1}
    one = learnt(tmp_path / "one", base, task, flat=True, **settings)
    for answer in shared(tmp_path / "four", base, task, 4, 2, **settings):
        require_equal(one, answer)


@pytest.mark.parameter("packing")
def test_packs_of_a_task_are_shared(tmp_path, base):
    settings = {"train": pack_samples(task_runs.stored("reranker", task_runs.rows("reranker")), 160),
                "per_device_train_batch_size": 1, "lora": 0.0}  # fmt: skip
    one = learnt(tmp_path / "one", base, "reranker", flat=True, **settings)
    for answer in shared(tmp_path / "two", base, "reranker", 2, 2, **settings):
        require_equal(one, answer)
