"""This file knows the public names of evaluation metrics, for plugins (`--external_plugins my_metric.py`).

from swift.metrics import EvalMetrics, eval_metrics_map

class Mine(EvalMetrics):
    def compute_metrics(self, eval_prediction):
        return {"mine": ...}

eval_metrics_map["mine"] = Mine
"""

from __future__ import annotations

from swift.catalog.tasks import EVAL_METRICS as eval_metrics_map  # noqa: N811 (the public name)
from swift.trainers.evaluation import EvalMetrics

__all__ = ["EvalMetrics", "eval_metrics_map"]
