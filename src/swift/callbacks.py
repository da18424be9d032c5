"""This file knows the public names of callbacks, for plugins (`--external_plugins my_callback.py`).

from swift.callbacks import TrainerCallback, callbacks_map

class Mine(TrainerCallback):
    def __init__(self, args, trainer): ...

callbacks_map["mine"] = Mine
"""

from __future__ import annotations

from transformers import TrainerCallback

from swift.catalog.components import CALLBACKS as callbacks_map  # noqa: N811 (the public name)

__all__ = ["TrainerCallback", "callbacks_map"]
