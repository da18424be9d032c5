"""This file knows the public names of losses, for plugins (`--external_plugins my_loss.py --loss_type mine`).

from swift.loss import BaseLoss, loss_map

class Mine(BaseLoss):
    def __call__(self, outputs, labels, *, num_items_in_batch=None, loss_scale=None, **kwargs): ...

loss_map["mine"] = Mine
"""

from __future__ import annotations

from swift.catalog.components import LOSSES as loss_map  # noqa: N811 (the public name)
from swift.losses.plugin import BaseLoss, cross_entropy

__all__ = ["BaseLoss", "cross_entropy", "loss_map"]
