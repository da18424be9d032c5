"""Evaluation metrics of your own: `--external_plugins metric.py --eval_metric confusion`."""

import numpy as np

from swift.metrics import EvalMetrics, eval_metrics_map


class Confusion(EvalMetrics):
    """How often the first class is taken for another, and another for the first."""

    def compute_metrics(self, eval_prediction):
        """From logits [N, C] and classes [N] of the whole validation set."""
        said, known = eval_prediction.predictions.argmax(-1), eval_prediction.label_ids
        return {
            "missed": float(np.mean(said[known == 0] != 0)) if (known == 0).any() else 0.0,
            "false_alarms": float(np.mean(said[known != 0] == 0)) if (known != 0).any() else 0.0,
        }


eval_metrics_map["confusion"] = Confusion
