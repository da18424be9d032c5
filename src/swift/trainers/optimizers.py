"""This file knows which optimizer a training gets, by the name of `--optimizer`, and how it is built.

A name stands for a class that makes the optimizer and the schedule of the learning rate of one training. Plugins add
theirs; without a name it is `OptimizerCallback` itself: the optimizer of `--optim`, as transformers knows it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from swift.core.errors import UsageError
from swift.core.logs import get_logger
from swift.trainers.galore import GaLore
from swift.trainers.muon import SCALES, Muon, MuonSettings
from swift.trainers.optim_args import Kind, read_optim_args
from swift.trainers.parameter_groups import HEADS, decay_groups, hidden_matrices, lora_plus_groups
from swift.trainers.projection import Lazily, Projecting, Quantized
from swift.trainers.qk_clip import QkClip

if TYPE_CHECKING:
    from swift.options.optimizers import OptimizerOptions
    from swift.trainers.arguments import Arguments
    from swift.trainers.base import SwiftTrainer

MUON_ARGS: dict[str, Kind] = {"momentum": "float", "nesterov": "bool", "ns_steps": "int", "adjust_lr_fn": "str"}
TAU = 100.0
"""The largest attention logit that QK-clip allows (Kimi K2, arXiv 2507.20534, section 2.1)."""


class OptimizerCallback:
    """What optimizes one training. Plugins derive from it and override one method or both.

    args: the training arguments. trainer: has the model as `trainer.model`.
    """

    def __init__(self, args: Arguments, trainer: SwiftTrainer) -> None:
        self.args = args
        self.trainer = trainer

    def create_optimizer(self) -> Optimizer:
        """The optimizer; of `--optim`, unless overridden."""
        return self.trainer.optimizer_of_transformers()

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer) -> LRScheduler:
        """The schedule of the learning rate; of `--lr_scheduler_type`, unless overridden."""
        return self.trainer.scheduler_of_transformers(num_training_steps, optimizer)


class LoraPlus(OptimizerCallback):
    """LoRA+: the optimizer of `--optim`, with B learning `--lorap_lr_ratio` times as fast as A."""

    def create_optimizer(self) -> Optimizer:
        """Groups by LoRA+."""
        args, model = self.args, _model(self.trainer)
        if args.lorap_lr_ratio is None:
            raise UsageError("--optimizer lorap needs --lorap_lr_ratio, which also chooses it by itself.")
        groups = lora_plus_groups(
            model.named_parameters(), self.trainer.get_decay_parameter_names(model), args.learning_rate,
            args.lorap_lr_ratio, args.weight_decay,
        )  # fmt: skip
        return by_optim(self.trainer, args)(groups)


class MuonOptimizer(OptimizerCallback):
    """Muon for the matrices between embeddings and heads, AdamW for the rest."""

    takes: ClassVar[Mapping[str, Kind]] = MUON_ARGS

    def create_optimizer(self) -> Optimizer:
        """Muon, with what `--optim_args` says."""
        return self.build(read_optim_args(self.args.optim_args, self.takes, f"--optimizer {self.args.optimizer}"))

    def build(self, settings: dict[str, Any]) -> Muon:
        """Muon with these settings."""
        scale = settings.get("adjust_lr_fn")
        if scale is not None and scale not in SCALES:
            raise UsageError(f"--optim_args adjust_lr_fn={scale}: must be one of {', '.join(SCALES)}.")
        args = self.args
        return Muon(
            muon_groups(_model(self.trainer), self.trainer.get_decay_parameter_names(_model(self.trainer)), args),
            args.learning_rate, MuonSettings(**settings), betas=(args.adam_beta1, args.adam_beta2),
            eps=args.adam_epsilon,
        )  # fmt: skip


class MuonClipOptimizer(MuonOptimizer):
    """Muon, and attention logits clipped after every step (QK-clip)."""

    takes: ClassVar[Mapping[str, Kind]] = {**MUON_ARGS, "qk_clip_tau": "float"}

    def build(self, settings: dict[str, Any]) -> Muon:
        """Muon that clips after its steps; the largest logits are logged as `max_attention_logit`."""
        tau = settings.pop("qk_clip_tau", TAU)
        if tau <= 0:
            raise UsageError(f"--optim_args qk_clip_tau={tau}: must be a number greater than 0.")
        optimizer, clip = super().build(settings), QkClip(_model(self.trainer), tau)

        def after_step(*_: Any) -> None:
            largest = clip.clip()
            if largest is not None:
                self.trainer.record("max_attention_logit", largest, largest.new_ones(()))

        optimizer.register_step_post_hook(after_step)
        return optimizer


class GaLoreOptimizer(OptimizerCallback):
    """The optimizer of `--optim` on gradients of low rank: GaLore and Q-GaLore."""

    def create_optimizer(self) -> Optimizer:
        """Groups of projected and of other weights."""
        args, options, model = self.args, self.args.galore, _model(self.trainer)
        if not options.use_galore:
            raise UsageError("--optimizer galore needs --use_galore true, which also chooses it by itself.")
        names = galore_targets(model, options.galore_target_modules, options.galore_with_embedding)
        get_logger().info("GaLore projects the gradients of %d matrices to rank %d", len(names), options.galore_rank)
        if options.galore_quantization:
            get_logger().info(
                "--galore_quantization: weights keep their type; they are not INT8, as those of the paper are"
            )
        decaying = self.trainer.get_decay_parameter_names(model)
        named = [*model.named_parameters()]
        groups = [
            {**group, "is_projected": projected}
            for projected in (False, True)
            for group in decay_groups(
                [(name, p) for name, p in named if (name in names) is projected], decaying, args.learning_rate,
                args.weight_decay,
            )
        ]  # fmt: skip
        return GaLore(
            groups, by_optim(self.trainer, args), projecting(options), options.galore_scale,
            options.galore_optim_per_parameter,
        )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- their parts


def by_optim(trainer: SwiftTrainer, args: Arguments) -> Callable[[list[dict[str, Any]]], Optimizer]:
    """What makes the optimizer of `--optim` for given groups."""
    kind, settings = trainer.get_optimizer_cls_and_kwargs(args)
    if kind.__module__.startswith("bitsandbytes") and settings.get("optim_bits") == 8:
        _spare_embeddings(_model(trainer))
    return lambda groups: kind(groups, **settings)


def _spare_embeddings(model: nn.Module) -> None:
    """Let bitsandbytes keep the states of embeddings in 32 bits, whose rows get gradients of very different sizes."""
    manager = importlib.import_module("bitsandbytes.optim").GlobalOptimManager.get_instance()
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            manager.register_module_override(module, "weight", {"optim_bits": 32})


def muon_groups(model: nn.Module, decaying: list[str], args: Arguments) -> list[dict[str, Any]]:
    """Matrices by Muon, then the rest by AdamW; each as far as it decays and as far as it does not."""
    matrices, named = hidden_matrices(model), [*model.named_parameters()]
    return [
        {**group, "is_matrix": is_matrix}
        for is_matrix in (True, False)
        for group in decay_groups(
            [(name, p) for name, p in named if (name in matrices) is is_matrix], decaying, args.learning_rate,
            args.weight_decay,
        )
    ]  # fmt: skip


def galore_targets(model: nn.Module, wanted: list[str] | None, with_embedding: bool) -> set[str]:
    """The names of the weights to project: of linear layers whose name contains one of `wanted`, of all but heads when
    nothing is wanted, and of embeddings if they are to be projected too.

    Raises UsageError when a name of `wanted` is in none, or nothing is left to project.
    """
    modules = dict(model.named_modules())
    linear = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    if wanted is None:
        chosen = [name for name in linear if not set(HEADS) & set(name.split("."))]
    else:
        lost = [word for word in wanted if not any(word in name for name in linear)]
        if lost:
            known = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise UsageError(
                f"--galore_target_modules {' '.join(lost)}: no linear layer is called so. There are: {known}."
            )
        chosen = [name for name in linear if any(word in name for word in wanted)]
    if with_embedding:
        chosen += [name for name, module in modules.items() if isinstance(module, nn.Embedding)]
    ids = {id(weight) for name in chosen if isinstance(weight := modules[name].weight, nn.Parameter)}
    names = {name for name, weight in model.named_parameters() if id(weight) in ids and weight.requires_grad}
    if not names:
        raise UsageError("--use_galore true: none of the weights to project is trained. Look at what is frozen.")
    return names


def projecting(options: OptimizerOptions) -> Projecting:
    """How gradients are projected, as the options say."""
    lazily = quantized = None
    if options.galore_quantization:
        lazily = Lazily(options.galore_cos_threshold, options.galore_gamma_proj, options.galore_queue_size)
    if options.galore_proj_quant:
        quantized = Quantized(options.galore_proj_bits, options.galore_proj_group_size)
    return Projecting(
        options.galore_rank, options.galore_update_proj_gap, options.galore_proj_type, lazily, quantized
    )  # fmt: skip


def _model(trainer: SwiftTrainer) -> nn.Module:
    assert trainer.model is not None, "a trainer is made with a model"
    return trainer.model
