"""An optimizer of one's own, used by `swift sft --external_plugins examples/plugins/optimizer.py --optimizer sign`.

Every step moves each parameter by the learning rate, up or down, and the learning rate falls in a staircase.
"""

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, StepLR

from swift.optimizers import OptimizerCallback, optimizers_map


class SignDescent(Optimizer):
    """W = W - lr sign(G)."""

    def __init__(self, params, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):  # noqa: ARG002 (torch's signature)
        """One step of everything that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.add_(parameter.grad.sign(), alpha=-group["lr"])


class Sign(OptimizerCallback):
    """`self.args` are the training arguments, `self.trainer` has the model."""

    def create_optimizer(self) -> Optimizer:
        """Over all parameters that are trained."""
        trained = [parameter for parameter in self.trainer.model.parameters() if parameter.requires_grad]
        return SignDescent(trained, lr=self.args.learning_rate)

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer) -> LRScheduler:
        """Half as much after each quarter of the steps; left out, it is that of --lr_scheduler_type."""
        return StepLR(optimizer, step_size=max(1, num_training_steps // 4), gamma=0.5)


optimizers_map["sign"] = Sign
