"""This file knows the public names of optimizers, for plugins (`--external_plugins my_optimizer.py`).

from swift.optimizers import OptimizerCallback, optimizers_map

class Mine(OptimizerCallback):
    def create_optimizer(self):
        return torch.optim.Adamax(self.trainer.model.parameters(), lr=self.args.learning_rate)

optimizers_map["mine"] = Mine
"""

from __future__ import annotations

from swift.catalog.components import OPTIMIZERS as optimizers_map  # noqa: N811 (the public name)
from swift.trainers.optimizers import OptimizerCallback

__all__ = ["OptimizerCallback", "optimizers_map"]
