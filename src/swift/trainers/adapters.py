"""This file knows what a training does because of its kind of adapter: a penalty in the loss, a word after every step."""

from __future__ import annotations

from typing import Any, cast

from peft import PeftModel
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from swift.tuners.adalora import allocate, is_adalora, orthogonality


def penalty(model: nn.Module, num_batches: int) -> Tensor | float:
    """What the kind of adapter adds to the loss of one of the batches of an optimizer step, which has it once."""
    return orthogonality(cast("PeftModel", model)) / num_batches if is_adalora(model) else 0.0


def watchers(model: nn.Module) -> list[TrainerCallback]:
    """What watches a training because of its kind of adapter."""
    return [Ranks(cast("PeftModel", model))] if is_adalora(model) else []


class Ranks(TrainerCallback):
    """Allots the ranks of AdaLoRA after every optimizer step, while its gradients are there."""

    def __init__(self, model: PeftModel) -> None:
        self.model = model

    @override
    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Transformers counts the step that has just been made only later."""
        allocate(self.model, state.global_step + 1)
