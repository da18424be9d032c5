"""A plugin's metric sees what the model predicts token by token, the same however rows are batched and shared."""

from __future__ import annotations

from typing import Any

import pytest
import runs
import torch
from torch.nn import functional

import tiny
from swift.catalog.tasks import EVAL_METRICS
from swift.core.errors import UsageError
from swift.data.collate import Flattened, Padded
from swift.metrics import EvalMetrics
from swift.trainers.isolation import isolate
from together import in_processes

VAL = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 2}


class Right(EvalMetrics):
    """How many tokens are predicted rightly, of how many, in how many rows."""

    def preprocess_logits_for_metrics(self, logits, labels):
        return logits.argmax(-1)

    def compute_metrics(self, eval_prediction):
        said, known = eval_prediction.predictions[:, :-1], eval_prediction.label_ids[:, 1:]
        learnt = known != -100
        return {
            "rows": float(len(known)),
            "tokens": float(learnt.sum()),
            "right": float((said == known)[learnt].mean()),
        }


class Surprise(EvalMetrics):
    """The loss, from all logits."""

    def compute_metrics(self, eval_prediction):
        logits = torch.as_tensor(eval_prediction.predictions[:, :-1]).flatten(0, 1)
        known = torch.as_tensor(eval_prediction.label_ids[:, 1:]).flatten()
        return {"surprise": float(functional.cross_entropy(logits, known, ignore_index=-100))}


class OfTheBatch(EvalMetrics):
    """Keeps one number of a whole batch."""

    def preprocess_logits_for_metrics(self, logits, labels):
        return logits.mean()

    def compute_metrics(self, eval_prediction):
        return {}


@pytest.fixture(autouse=True)
def _plugins(monkeypatch):
    for metric in (Right, Surprise, OfTheBatch):
        monkeypatch.setitem(EVAL_METRICS._entries, metric.__name__, metric)


def measured(folder, metric: str, **settings: Any) -> dict[str, list[float]]:
    model = tiny.model()
    if isinstance(settings.get("collate"), Flattened):
        isolate(model, None, "--padding_free")
    run = runs.train(folder, model=model, val=runs.samples(7, seed=8), eval_metric=metric, **{**VAL, **settings})
    names = ("eval_loss", "eval_token_acc", "eval_rows", "eval_tokens", "eval_right", "eval_surprise")
    return {name: run.logged(name) for name in names}


@pytest.mark.parameter("eval_metric")
@pytest.mark.parametrize("collate", [Padded(0), Padded(0, "left"), Flattened()], ids=["padded", "left", "end to end"])
@pytest.mark.parametrize("batch", [1, 3])
def test_what_is_kept_is_that_of_every_row_once(tmp_path, collate, batch):
    found = measured(tmp_path, "Right", collate=collate, per_device_eval_batch_size=batch)
    tokens = sum(label != -100 for sample in runs.samples(7, seed=8) for label in sample.labels[1:])
    assert found["eval_rows"] == [7]
    assert found["eval_tokens"] == [tokens]
    assert found["eval_right"] == pytest.approx(found["eval_token_acc"])
    assert found["eval_loss"]


@pytest.mark.parameter("eval_metric")
@pytest.mark.parametrize("collate", [Padded(0), Flattened()], ids=["padded", "end to end"])
def test_the_loss_can_be_told_from_all_logits(tmp_path, collate):
    found = measured(tmp_path, "Surprise", collate=collate)
    assert found["eval_surprise"] == pytest.approx(found["eval_loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parameter("eval_metric")
def test_two_processes_bring_all_rows_together(tmp_path):
    def work(rank: int) -> dict[str, list[float]]:
        return measured(tmp_path / f"rank-{rank}", "Right", per_device_eval_batch_size=2)

    answers = in_processes(2, work, tmp_path / "two")
    assert answers[0]["eval_rows"] == [7]
    assert answers[0] == answers[1]


def test_what_belongs_to_no_token_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"preprocess_logits_for_metrics of OfTheBatch must return .* \(got \(\)\)"):
        measured(tmp_path, "OfTheBatch")
