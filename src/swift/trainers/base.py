"""This file knows what all our trainers have in common: the one subclass of transformers' Trainer.

It touches private names of transformers where the Trainer has no public one; the equivalence tests of the trainers are
the fence around that.
"""

from __future__ import annotations

import copy
import math
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer as TokenRows
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from transformers import (
    EvalPrediction,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)  # fmt: skip
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import TrainOutput
from typing_extensions import override

from swift.catalog.components import CALLBACKS, OPTIMIZERS
from swift.core.errors import ModelError, RunError
from swift.core.logs import get_logger
from swift.data.cursor import cursor_files
from swift.data.sharding import EpochSampler, LengthGroupedSampler
from swift.data.stream import Share, Stream
from swift.losses.supervised import IGNORED
from swift.trainers.adapters import watchers
from swift.trainers.arguments import Arguments
from swift.trainers.optimizer_state import check_saved, mark
from swift.trainers.optimizers import OptimizerCallback
from swift.trainers.streaming import Follower, for_stream
from swift.tuners.adalora import is_adalora
from swift.tuners.checkpoints import complete, resume, write


@dataclass(frozen=True)
class Feed:
    """What a trainer is fed with: samples to learn from, samples to evaluate on, and how they become batches.

    train: a set of samples, or a `Stream` of them, which has an order of its own.
    group_by_length: rows of like length come together in a batch; `train.lengths` says how long they are.
    tells_epoch: whether `train` gives other samples in every epoch, which an index tells it.
    """

    train: Any
    val: Any | None
    collate: Callable[[Any], dict[str, Any]]
    seed: int
    shuffle: bool = True
    group_by_length: bool = False
    tells_epoch: bool = False

    def sampler(self, batch: int) -> EpochSampler:
        """The order of the rows; `batch` of them are computed at the same time on all processes together."""
        if isinstance(self.train, Stream):
            return EpochSampler(0, self.seed)
        if self.group_by_length:
            return LengthGroupedSampler(self.train.lengths, batch, self.seed, tells_epoch=self.tells_epoch)
        return EpochSampler(len(self.train), self.seed, self.shuffle, tells_epoch=self.tells_epoch)


@dataclass(frozen=True)
class Companions:
    """What is saved beside the weights, so that a checkpoint can be used by itself.

    chat_template: the template that rendered the training samples, in place of the tokenizer's own.
    files: copied as they are: args.json, the model's own generation_config.json.
    """

    tokenizer: PreTrainedTokenizerBase
    chat_template: str | None
    files: tuple[Path, ...] = ()

    def write(self, folder: Path) -> None:
        """Put everything into the folder of a checkpoint."""
        self.tokenizer.save_pretrained(folder)
        if self.chat_template is not None:
            (folder / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")
        for file in self.files:
            shutil.copy2(file, folder)


class SwiftTrainer(Trainer):
    """A Trainer whose loss is a mean over the tokens of a whole step, and whose order of rows depends on the epoch.

    A subclass computes its loss from `num_items_in_batch`, the learnt tokens of all batches of the optimizer step, so
    the loss is scaled already: dividing it by the number of accumulated batches again would make `1 x 8` and `8 x 1`
    different trainings.
    """

    loss_is_scaled_for_ga = True

    def __init__(self, model: nn.Module, args: Arguments, feed: Feed, companions: Companions,
                 compute_metrics: Callable[[EvalPrediction], dict[str, float]],
                 callbacks: list[TrainerCallback]) -> None:  # fmt: skip
        self.sampler = feed.sampler(args.train_batch_size * args.world_size)
        self.companions = companions
        self._sums: dict[str, Tensor] = {}
        self.follower: Follower | None = None
        if isinstance(feed.train, Stream):
            args = for_stream(args)
            share = Share(args.train_batch_size, args.gradient_accumulation_steps, args.process_index, args.world_size)
            self.follower = Follower(feed.train, share, feed.collate)
        config: PreTrainedConfig = model.config  # type: ignore[assignment]  # an adapter passes it on
        use_cache = config.use_cache
        super().__init__(
            model=model,  # type: ignore[arg-type]  # an adapter around a model is no PreTrainedModel and works as one
            args=args,
            data_collator=feed.collate,  # type: ignore[arg-type]  # samples are objects of ours, not dictionaries
            train_dataset=feed.train,  # type: ignore[arg-type]  # a stream is none to transformers: it has no length
            eval_dataset=feed.val,
            compute_metrics=compute_metrics,
            callbacks=[
                _Position(self.sampler),
                *watchers(model),
                *([self.follower] if self.follower else []),
                *callbacks,
            ],
        )
        # The Trainer writes its own choice into the config, which would be saved with the model.
        config.use_cache = use_cache
        for shown_by_ours in (PrinterCallback, ProgressCallback):
            self.remove_callback(shown_by_ours)
        recompute = args.activation_checkpointing_kwargs
        if args.activation_checkpointing and isinstance(recompute, dict) and recompute.get("use_reentrant"):
            # Reentrant recomputation yields gradients only where an input requires them; embeddings may be frozen.
            model.enable_input_require_grads()  # type: ignore[operator]
        if model.can_generate():  # type: ignore[operator]  # an adapter passes it on
            _make_savable(model.generation_config)  # type: ignore[arg-type]
        early = ["early_stop"] if args.early_stop_interval is not None and "early_stop" not in args.callbacks else []
        # in front, so that what they add to a log is in every log, and what they end is ended for all
        self.callback_handler.callbacks[:0] = [CALLBACKS[name](args, self) for name in [*early, *args.callbacks]]
        self.optimization = (
            OptimizerCallback(args, self) if args.optimizer is None else OPTIMIZERS[args.optimizer](args, self)
        )
        set_seed(args.seed + args.process_index)

    # ------------------------------------------------------------------------------------------------------- batches

    @override
    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        return self.sampler

    @override
    def get_train_dataloader(self) -> DataLoader[Any]:
        """The batches to learn from; those of a stream are dealt to the processes by the stream itself."""
        return self.follower.loader(self.args) if self.follower else super().get_train_dataloader()

    @override
    def set_initial_training_values(self, args: TrainingArguments, dataloader: DataLoader[Any]) -> Any:
        """As transformers counts, but a stream has no end: all its passes are one epoch to transformers."""
        _, *rest = values = super().set_initial_training_values(args, dataloader)
        return (1, *rest) if self.follower else values

    @override
    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, ignore_keys_for_eval: Any = None
    ) -> TrainOutput:
        """Train, from the beginning or from a checkpoint; a stream goes on where the checkpoint says.

        Raises RunError when the checkpoint was saved in another way of reading than this run has.
        """
        if isinstance(resume_from_checkpoint, str):
            if self.follower:
                self.follower.go_to(Path(resume_from_checkpoint))
            elif cursor_files(Path(resume_from_checkpoint)):
                raise RunError(
                    f"--resume_from_checkpoint {resume_from_checkpoint} was saved by a run with --streaming true, which "
                    "reads rows in another order. Add --streaming true."
                )
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    @override
    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor]:
        """The batches of one optimizer step, and how many tokens are learnt in them.

        With `--average_tokens_across_devices` the tokens of all processes, else of this one. At least 1, so that a
        step without any learnt token has loss 0.
        """
        taken = list(islice(epoch_iterator, num_batches))
        batches = self.follower.unwrap(taken) if self.follower else taken
        count = torch.tensor(sum(self.num_items(batch) for batch in batches), device=device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            count = self.accelerator.reduce(count, "sum")
        return batches, count.clamp(min=1)  # type: ignore[union-attr]  # one tensor in, one tensor out

    def num_items(self, batch: dict[str, Any]) -> int:
        """How many things of a batch the loss is a mean over: its learnt tokens, unless a subclass says otherwise."""
        return int((batch["labels"] != IGNORED).sum())

    @override
    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The norm of the gradient; a gradient that is not finite is dropped, and the weights stay as they are.

        A loss scaler (fp16) looks for such gradients itself and lowers its scale.
        """
        norm: Any = super()._get_grad_norm(model, grad_norm=grad_norm)
        if self.accelerator.scaler is None and not math.isfinite(norm):
            get_logger().warning(
                "step %d: the gradient is %s; the weights stay as they are", self.state.global_step + 1, norm
            )
            model.zero_grad()
        return norm

    # ----------------------------------------------------------------------------------------------------- optimization

    @override
    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """The optimizer of `--optimizer`, else that of `--optim`; its checkpoints say what made them."""
        if self.optimizer is None:
            self.optimizer = self.optimization.create_optimizer()
            mark(self.optimizer)
        return self.optimizer

    @override
    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """The schedule of `--optimizer`, else that of `--lr_scheduler_type`."""
        if self.lr_scheduler is None:
            made = self.optimization.create_scheduler(num_training_steps, optimizer or self.optimizer)
            self.lr_scheduler, self._created_lr_scheduler = made, True
        return self.lr_scheduler

    def optimizer_of_transformers(self) -> Optimizer:
        """The optimizer of `--optim`, over parameters that decay and parameters that do not."""
        return super().create_optimizer()

    def scheduler_of_transformers(self, num_training_steps: int, optimizer: Optimizer) -> LRScheduler:
        """The schedule of `--lr_scheduler_type`."""
        return super().create_scheduler(num_training_steps, optimizer)

    @override
    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Go on with the states of a checkpoint, after a look at whether they are of this optimizer."""
        if checkpoint is not None and self.optimizer is not None:
            check_saved(Path(checkpoint) / "optimizer.pt", self.optimizer)
        super()._load_optimizer_and_scheduler(checkpoint)

    # ------------------------------------------------------------------------------------------------------- metrics

    def record(self, name: str, numerator: Tensor, denominator: Tensor) -> None:
        """Add to a ratio that the next log of training shows, over all processes since the last log."""
        pair = torch.stack([numerator, denominator]).detach().to(torch.float64)
        self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    @override
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the values, and with those of training the ratios that were recorded since the last time."""
        if "loss" in logs and self._sums:
            names = sorted(self._sums)
            sums = self.accelerator.reduce(torch.stack([self._sums[name] for name in names]), "sum")
            self._sums.clear()
            logs |= {name: right / max(total, 1) for name, (right, total) in zip(names, sums.tolist(), strict=True)}  # type: ignore[union-attr]
        super().log(logs, start_time)

    @override
    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate without touching the random state, so that a run with evaluations equals one without."""
        with torch.random.fork_rng(devices=[]):
            return super().evaluate(*args, **kwargs)

    # -------------------------------------------------------------------------------------------------------- saving

    @override
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Read the weights of a checkpoint; those of some adapters are kept in another form than they are trained in."""
        if not resume(self.model, Path(resume_from_checkpoint)):  # type: ignore[arg-type]
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    @override
    def _load_best_model(self) -> None:
        if not resume(self.model, Path(self.state.best_model_checkpoint or "")):  # type: ignore[arg-type]
            super()._load_best_model()

    @override
    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Weights as transformers saves them, and everything needed to use them."""
        folder = Path(output_dir or self.args.output_dir or ".")
        is_written = self.args.should_save and write(self.model, folder, state_dict)  # type: ignore[arg-type]
        if is_written:
            torch.save(self.args, folder / TRAINING_ARGS_NAME)
        else:
            self._save_whole(output_dir, state_dict)
        if self.args.should_save:
            if self.args.process_index > 0 and not is_written and isinstance(self.model, PreTrainedModel):
                _save_on_this_node(self.model, folder)
            complete(self.model, folder)  # type: ignore[arg-type]  # an adapter around a model is no PreTrainedModel
            self.companions.write(folder)
            writes = self.model.can_generate()  # type: ignore[union-attr,operator]
            if writes and not (folder / "generation_config.json").exists():  # an adapter is saved without one
                self.model.generation_config.save_pretrained(folder)  # type: ignore[union-attr]

    def _save_whole(self, output_dir: str | None, state_dict: dict[str, Any] | None) -> None:
        """Weights in the way of transformers and peft."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*`save_embedding_layers`.*")  # of rows, which are saved anyway
            if is_adalora(self.model):  # type: ignore[arg-type]  # which may leave a layer without ranks
                warnings.filterwarnings("ignore", message=".*have invalid shape.*")
            super()._save(output_dir, _without_whole_embeddings(self.model, state_dict))  # type: ignore[arg-type]


def _make_savable(config: GenerationConfig) -> None:
    """Let a generation config be saved that transformers would refuse to write, hours later, at the first checkpoint.

    Published configs have sampling values without `do_sample`; with it they are valid. What stands in a checkpoint is
    the model's own file, a copy (`Companions.files`). Raises ModelError when the config is wrong in another way.
    """
    try:
        config.validate(strict=True)
    except ValueError:
        config.do_sample = True
        try:
            config.validate(strict=True)
        except ValueError as error:
            raise ModelError(
                f"generation_config.json of the model cannot be saved again; correct it: {error}"
            ) from error


def _without_whole_embeddings(model: nn.Module, state_dict: dict[str, Any] | None) -> dict[str, Any] | None:
    """What is to be saved, less the embeddings of which an adapter trains rows: the rows of new tokens are enough.

    Of a tied output layer not even those are needed: it takes the embedding's.
    """
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, TokenRows)]
    if not layers:
        return state_dict
    left = tuple(f"{name}." if layer.tied_adapter else f"{name}.base_layer." for name, layer in layers)
    return {name: value for name, value in (state_dict or model.state_dict()).items() if not name.startswith(left)}


def _save_on_this_node(model: PreTrainedModel, folder: Path) -> None:
    """Save a whole model on a process that is not the first of all (`--save_on_each_node`).

    `save_pretrained` asks the model whether this process writes, and the model knows of one disk only. So it is asked
    of a view of the model, with the same parameters and another answer.
    """
    view = copy.copy(model)
    view.should_save_on_this_rank = lambda is_main_process: is_main_process  # type: ignore[method-assign]
    view.save_pretrained(folder)


class _Position(TrainerCallback):
    """Keeps the sampler at the epoch of the training, and the intervals at what this run was asked for."""

    def __init__(self, sampler: EpochSampler) -> None:
        self.sampler = sampler

    @override
    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A resumed state brings the logging, saving and evaluation steps of its old run: take those of this one."""
        state.compute_steps(args, state.max_steps)

    @override
    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Tell the sampler its epoch; accelerate does not reach it in a resumed epoch of several processes."""
        self.sampler.set_epoch(int(state.epoch))
