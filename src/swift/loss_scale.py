"""This file knows the public names of loss weights, for plugins (`--external_plugins my_loss_scale.py`).

from swift.loss_scale import ConfigLossScale, loss_scale_map

class Mine(ConfigLossScale):
    loss_scale_config = {"Answer:": [1, 2]}

loss_scale_map["mine"] = Mine
"""

from __future__ import annotations

from swift.chat.weights import LOSS_SCALES as loss_scale_map  # noqa: N811 (the public name)
from swift.chat.weights import ConfigLossScale, LossScale

__all__ = ["ConfigLossScale", "LossScale", "loss_scale_map"]
