"""This file knows the losses that users name with `--loss_type`, and what a loss of their own is called with.

Axes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy as torch_cross_entropy

from swift.catalog.components import LOSSES
from swift.core.labels import IGNORED


class BaseLoss:
    """A loss that keeps something: made once with the training arguments and the trainer, called with every batch."""

    def __init__(self, args: Any, trainer: Any) -> None:
        self.args = args
        self.trainer = trainer

    def __call__(self, outputs: Any, labels: Tensor, *, num_items_in_batch: Tensor | int | None = None,
                 loss_scale: Tensor | None = None, **kwargs: Any) -> Tensor:  # fmt: skip
        """The loss of a batch, one number with a gradient.

        outputs: what the model returned. `outputs.logits` [B, T, V], and in `outputs.loss` the loss of every position,
            float32 [B, T]: what it costs to predict the token after it, weighted, 0 where nothing is learnt.
        labels: [B, T], where their token stands, -100 where it is not learnt.
        num_items_in_batch: the learnt tokens of the whole optimizer step, of which this batch is a part; None in
            evaluation. A loss that takes it by name has to divide by it; every other one is divided by the number of
            batches in the step.
        loss_scale: the weights of the tokens [B, T], where they stand, or None when all weigh 1.
        """
        raise NotImplementedError(f"{type(self).__name__} has no __call__")


def cross_entropy(outputs: Any, labels: Tensor, *, num_items_in_batch: Tensor | int | None = None, **_: Any) -> Tensor:
    """Cross-entropy per learnt token, from the logits and without weights: what a loss of one's own starts from."""
    logits_TV, targets_T = outputs.logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten()
    total = torch_cross_entropy(logits_TV, targets_T, ignore_index=IGNORED, reduction="sum")
    count = (targets_T != IGNORED).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
    return total / count


def callable_loss(name: str, args: Any, trainer: Any) -> tuple[Callable[..., Tensor], bool]:
    """The loss of this name, and whether it takes `num_items_in_batch` by name, and so divides by it.

    What is called with is what its signature has room for: `num_items_in_batch`, `loss_scale`, `trainer`.
    Raises UsageError for a name that is not registered.
    """
    registered = LOSSES[name]
    loss: Callable[..., Tensor] = registered if not isinstance(registered, type) else registered(args, trainer)
    parameters = inspect.signature(loss).parameters
    takes_rest = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())

    def call(outputs: Any, labels: Tensor, further: Mapping[str, Any]) -> Tensor:
        taken = {name: value for name, value in further.items() if takes_rest or name in parameters}
        return loss(outputs, labels, **taken)

    return call, "num_items_in_batch" in parameters
