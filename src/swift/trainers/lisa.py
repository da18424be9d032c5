"""This file knows LISA (arXiv:2403.17919): of all layers only a few, drawn at random, are trained at a time."""

from __future__ import annotations

import random
from typing import Any

from torch import nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from swift.core.errors import UsageError
from swift.core.logs import get_logger


class Lisa(TrainerCallback):
    """Trains `count` of the layers for `interval` steps, then others; what stands outside the layers is always trained.

    Which layers those are follows from the seed and the number of the step alone, so a resumed run draws the same. A
    layer that is put to rest gives up its state in the optimizer, and begins with a new one when its turn comes again:
    memory is that of the layers in turn, and no layer is moved by what it learnt long ago.

    Parameters that were frozen before stay frozen. Raises UsageError for more layers than there are.
    """

    def __init__(self, layers: nn.ModuleList, count: int, interval: int) -> None:
        if count > len(layers):
            raise UsageError(f"--lisa_activated_layers {count}: the model has {len(layers)} layers. Give at most that.")
        self.count = count
        self.interval = interval
        self.parameters = [[p for p in layer.parameters() if p.requires_grad] for layer in layers]
        self.turn: int | None = None

    def drawn(self, turn: int, seed: int) -> list[int]:
        """The numbers of the layers of a turn, each turn on its own."""
        return sorted(random.Random(f"lisa-{seed}-{turn}").sample(range(len(self.parameters)), self.count))

    @override
    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Several processes must know that not every parameter has a gradient."""
        if args.world_size > 1 and not args.ddp_find_unused_parameters:
            raise UsageError(
                "--lisa_activated_layers in several processes needs --ddp_find_unused_parameters true: layers at rest have "
                "no gradient."
            )

    @override
    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
                      optimizer: Optimizer | None = None, **_: Any) -> None:  # fmt: skip
        """Draw the layers of a turn that begins, or in which a run goes on."""
        turn = state.global_step // self.interval
        if turn == self.turn:
            return
        assert optimizer is not None, "a training has an optimizer"
        self.turn = turn
        active = self.drawn(turn, args.seed)
        get_logger().info("step %d: LISA trains the layers %s", state.global_step + 1, ", ".join(map(str, active)))
        for number, parameters in enumerate(self.parameters):
            for parameter in parameters:
                parameter.requires_grad_(number in active)
                if number not in active:
                    optimizer.state.pop(parameter, None)

    @override
    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Leave every layer as it was found."""
        for parameters in self.parameters:
            for parameter in parameters:
                parameter.requires_grad_(True)
