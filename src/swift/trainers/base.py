"""This file knows what all our trainers have in common: the one subclass of transformers' Trainer.

It touches private names of transformers where the Trainer has no public one; the equivalence tests of the trainers are
the fence around that.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from transformers import (
    EvalPrediction,
    PreTrainedConfig,
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    set_seed,
)  # fmt: skip
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINING_ARGS_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import TrainOutput
from typing_extensions import override

from swift.catalog.components import CALLBACKS, OPTIMIZERS
from swift.core import phases
from swift.core.errors import RunError
from swift.core.labels import IGNORED
from swift.core.logs import get_logger
from swift.data.cursor import cursor_files
from swift.data.sharding import EpochSampler
from swift.data.stream import Share, Stream
from swift.trainers import processes
from swift.trainers.adapters import watchers
from swift.trainers.arguments import Arguments
from swift.trainers.background import Saver, Snapshot, unchanging
from swift.trainers.benchmarks import Benchmarks
from swift.trainers.best import is_measured
from swift.trainers.checkpoints import Place, seal, seal_alone, start, written
from swift.trainers.feed import Companions, Feed, to_validate
from swift.trainers.interruption import StoppedInEvaluation
from swift.trainers.optimizer_state import check_saved, mark
from swift.trainers.optimizers import OptimizerCallback
from swift.trainers.outputs import STATE, Continuation
from swift.trainers.position import Bookmark, Pace, join_order, read_position
from swift.trainers.ratios import Ratios
from swift.trainers.savable import make_savable, save_on_this_node, without_copies, without_whole_embeddings
from swift.trainers.sharded import gathered_weights, require_sharding, saved_state, without_first_step
from swift.trainers.streaming import Follower, for_stream
from swift.trainers.zero_parts import take_up
from swift.tuners.adalora import is_adalora
from swift.tuners.checkpoints import complete, is_read_while_written, resume, write


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
        self.mesh = feed.mesh
        self.twins = feed.twins
        self.dealing = dealing = feed.dealing(args.process_index, args.world_size)
        self.sampler = feed.sampler(args.train_batch_size * dealing.rows)
        self.companions = companions
        self.ratios = Ratios()
        self.saver = Saver(companions.background)
        self._snapshot = Snapshot()
        self._reserved = False
        self._pace: Pace | None = None
        self._from: Continuation | None = None
        self.follower: Follower | None = None
        self.benchmarks = next((each for each in callbacks if isinstance(each, Benchmarks)), None)
        self.validates = feed.val is not None
        if isinstance(feed.train, Stream):
            args = for_stream(args)
            share = Share(args.train_batch_size, args.gradient_accumulation_steps, dealing.row, dealing.rows)
            self.follower = Follower(feed.train, share, feed.collate, dealing.leads)
        config: PreTrainedConfig = model.config  # type: ignore[assignment]  # an adapter passes it on
        use_cache = config.use_cache
        super().__init__(
            model=model,  # type: ignore[arg-type]  # an adapter around a model is no PreTrainedModel and works as one
            args=args,
            data_collator=feed.collate,  # type: ignore[arg-type]  # samples are objects of ours, not dictionaries
            train_dataset=feed.train,  # type: ignore[arg-type]  # a stream is none to transformers: it has no length
            eval_dataset=to_validate(
                feed, args.eval_batch_size * dealing.rows, has_benchmarks=self.benchmarks is not None
            ),
            compute_metrics=compute_metrics,
            callbacks=[
                Bookmark(self.sampler),
                *watchers(model),
                *([self.follower] if self.follower else []),
                *callbacks,
            ],
        )
        # The Trainer writes its own choice into the config, which would be saved with the model.
        config.use_cache = use_cache
        require_sharding(self.accelerator, args)
        for shown_by_ours in (PrinterCallback, ProgressCallback):
            self.remove_callback(shown_by_ours)
        recompute = args.activation_checkpointing_kwargs
        if args.activation_checkpointing and isinstance(recompute, dict) and recompute.get("use_reentrant"):
            # Reentrant recomputation yields gradients only where an input requires them; embeddings may be frozen.
            model.enable_input_require_grads()  # type: ignore[operator]  # models of transformers have it
        if model.can_generate():  # type: ignore[operator]  # an adapter passes it on
            make_savable(model.generation_config)  # type: ignore[arg-type]  # models of transformers have it
        early = ["early_stop"] if args.early_stop_interval is not None and "early_stop" not in args.callbacks else []
        # in front, so that what they add to a log is in every log, and what they end is ended for all
        self.callback_handler.callbacks[:0] = [CALLBACKS[name](args, self) for name in [*early, *args.callbacks]]
        self.optimization = (
            OptimizerCallback(args, self) if args.optimizer is None else OPTIMIZERS[args.optimizer](args, self)
        )
        # processes that have parts of the same matrices must drop out the same numbers
        set_seed(args.seed + args.process_index // feed.twins)

    # ------------------------------------------------------------------------------------------------------- batches

    @override
    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        return self.sampler

    @override
    def _get_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader[Any]:
        """As transformers deals batches to the processes; those that share a row are dealt the same ones."""
        loader = super()._get_dataloader(*args, **kwargs)
        if self.dealing.size > 1:
            dealt: Any = loader.batch_sampler
            dealt.num_processes, dealt.process_index = self.dealing.rows, self.dealing.row
            dealt.even_batches = self.dealing.rows > 1  # of one row at a time, the last batch may be smaller
        return loader

    @override
    def get_train_dataloader(self) -> DataLoader[Any]:
        """The batches to learn from; those of a stream are dealt to the processes by the stream itself."""
        return self.follower.loader(self.args) if self.follower else super().get_train_dataloader()

    @override
    def set_initial_training_values(self, args: TrainingArguments, dataloader: DataLoader[Any]) -> Any:
        """As transformers counts, but a stream has no end: all its passes are one epoch to transformers.

        In a run that goes on in steps of another size, steps keep counting and the rows that are left are gone through.
        """
        epochs, steps, examples, samples, step_rows, batches, max_steps = super().set_initial_training_values(
            args, dataloader
        )
        if self.follower:
            return 1, steps, examples, samples, step_rows, batches, max_steps
        if self.mesh is not None:
            step_rows //= self.mesh.shape.size  # transformers takes each for a reader; it knows parts of matrices
        self._pace = pace = Pace(steps, step_rows)
        begin = read_position(self._from.checkpoint) if self._from else None
        if self._from and begin:
            join_order(begin, self.sampler)
            state = TrainerState.load_from_json(str(self._from.checkpoint / STATE))
            self._pace = pace = pace.going_on(begin, state.global_step)
        if pace.offset:
            max_steps += pace.offset if args.max_steps <= 0 else 0
            epochs = math.ceil((max_steps - pace.offset) / steps)
        return epochs, steps, examples, samples, step_rows, batches, max_steps

    @override
    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """The epochs behind, and the batches of the next one, by what a step is in this run."""
        found = super()._init_training_state(*args, **kwargs)
        if self._pace is None or not self._pace.offset:
            return found
        epochs, steps = self._pace.reached(self.state.global_step)
        return epochs, steps * self.args.gradient_accumulation_steps

    def go_on(self, continuation: Continuation | None) -> TrainOutput:
        """Train from the beginning, or from a checkpoint; a stream goes on where the checkpoint says.

        Whatever ends the training, a checkpoint that is being written is finished before. Raises RunError when the
        checkpoint was saved in another way of reading than this run has, or could not be written.
        """
        name = str(continuation.checkpoint) if continuation else None
        if continuation and continuation.anew:
            if not continuation.is_loaded:
                self._load_from_checkpoint(str(continuation.checkpoint))
            continuation = name = None
        self._from = continuation
        if continuation and self.follower:
            self.follower.go_to(continuation.checkpoint)
        elif continuation and cursor_files(continuation.checkpoint):
            raise RunError(
                f"--resume_from_checkpoint {name} was saved by a run with --streaming true, which reads rows in another "
                "order. Add --streaming true."
            )
        try:
            return self.train(resume_from_checkpoint=name)
        finally:
            self.saver.finish()

    @property
    def _is_sharded(self) -> bool:
        """Whether DeepSpeed or FSDP divides anything."""
        return self.is_deepspeed_enabled or self.is_fsdp_enabled

    @override
    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        """As transformers prepares, but with `--resume_only_model` nothing of a divided state is read.

        What DeepSpeed has divided among other processes it cannot read: that is done here.
        """
        reads = self._from is None or not (self._from.weights_only or self._from.divides_anew) or not self._is_sharded
        checkpoint = resume_from_checkpoint if reads else None
        prepared = super()._prepare_for_training(max_steps, train_dataloader, checkpoint)
        if self.is_deepspeed_enabled and checkpoint is None:
            without_first_step(self.model_wrapped.optimizer)  # type: ignore[union-attr]  # that of DeepSpeed's engine
        if self._from and self._from.divides_anew:
            take_up(self.model_wrapped, self._from.checkpoint)
        if checkpoint != resume_from_checkpoint:
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared

    @override
    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Go on with the states of a checkpoint, after a look at whether they are of this optimizer.

        With `--resume_only_model` the optimizer begins afresh, and the schedule at the step that was reached.
        """
        if self._from is None or not self._from.weights_only:
            if checkpoint is not None and self.optimizer is not None:
                check_saved(Path(checkpoint) / OPTIMIZER_NAME, self.optimizer)
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")  # no step of the optimizer came before
            for _ in range(self.state.global_step):
                self.lr_scheduler.step()  # type: ignore[union-attr]  # made just before

    @override
    def _load_scaler(self, checkpoint: str | None) -> None:
        if self._from is None or not self._from.weights_only:
            super()._load_scaler(checkpoint)

    @override
    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Random numbers go on where they were, process by process."""
        if checkpoint is None or (self._from and self._from.weights_only):
            return
        name = "rng_state.pth" if self.args.world_size <= 1 else f"rng_state_{self.args.process_index}.pth"
        if not (Path(checkpoint) / name).is_file():
            get_logger().warning(
                "%s has no %s, because there were more or fewer processes: dropout draws other numbers",
                checkpoint,
                name,
            )
        super()._load_rng_state(checkpoint)

    @override
    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor]:
        """The batches of one optimizer step, and how many tokens are learnt in them.

        With `--average_tokens_across_devices` the tokens of all processes, else of this one. At least 1, so that a
        step without any learnt token has loss 0.
        """
        phases.enter(f"in step {self.state.global_step + 1}")
        self.saver.check()
        if self.saver.background and not self._reserved and self.state.global_step > self._initial_global_step:
            self._reserved = True  # a step has been made, so the optimizer has its state
            self.saver.submit(self._snapshot.reserve(*self._changing()))
        taken = list(islice(epoch_iterator, num_batches))
        batches = self.follower.unwrap(taken) if self.follower else taken
        count = torch.tensor(sum(self.num_items(batch) for batch in batches), device=device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            count = self.accelerator.reduce(count, "sum")
            count = count // self.dealing.size  # type: ignore[operator]  # each row was counted by all that are dealt it
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
        if self.is_deepspeed_enabled:
            return norm  # its step is made already; it leaves out those of gradients that are not finite, and says so
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

    # ------------------------------------------------------------------------------------------------------- metrics

    def record(self, name: str, numerator: Tensor, denominator: Tensor) -> None:
        """Add to a ratio that the next log of training shows, over all processes since the last log."""
        self.ratios.add(name, numerator, denominator)

    @override
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the values, and with those of training the ratios that were recorded since the last time."""
        super().log(logs | self.ratios.taken(self.accelerator) if "loss" in logs else logs, start_time)

    @override
    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate without touching the random state, so that a run with evaluations equals one without.

        Benchmarks come after the rows to validate on, where there are any. Raises StoppedInEvaluation when the run is
        told to stop meanwhile.
        """
        with torch.random.fork_rng(devices=[]):
            metrics = super().evaluate(*args, **kwargs) if self.validates else {}
            return metrics | self._answer_benchmarks() if self.benchmarks else metrics

    @override
    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate in training, and tell a schedule that waits for the result. Nothing is measured, and nobody told, when
        the run is told to stop meanwhile."""
        try:
            return super()._evaluate(*args, **kwargs)
        except StoppedInEvaluation:
            return {}

    def _answer_benchmarks(self) -> dict[str, float]:
        """Log the scores. The main ones are also found under the names by which checkpoints are compared (`eval_*`): NaN,
        which is better than nothing, where a benchmark failed."""
        assert self.benchmarks is not None, "asked for by those who have some"
        scores = self.benchmarks.evaluate(self)
        if scores:
            self.log(dict(scores))
        if not self.validates:  # else callbacks have heard of this evaluation
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, dict(scores))
        return scores | {f"eval_{name}": scores.get(name, math.nan) for name in {*self.benchmarks.names, *scores}}

    @override
    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        return bool(metrics) and is_measured(self.args, metrics) and super()._determine_best_metric(metrics, trial)

    # -------------------------------------------------------------------------------------------------------- saving

    @override
    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Weights that can be used without what they were divided by in training; all processes take part."""
        if self._is_sharded:
            whole = gathered_weights(self.model, self.model_wrapped, cut=self.twins > 1)  # type: ignore[arg-type]  # a trainer has a model
            self._save(output_dir, state_dict=whole)
        else:
            super().save_model(output_dir, _internal_call)

    @override
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Read the weights of a checkpoint; those of some adapters are kept in another form than they are trained in."""
        if self._from and self._from.is_loaded:
            return
        if not resume(self.model, Path(resume_from_checkpoint)):  # type: ignore[arg-type]  # a trainer has a model
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    @override
    def _load_best_model(self) -> None:
        best = Path(self.state.best_model_checkpoint or "")
        if self.is_deepspeed_enabled and saved_state(best).num_processes not in (None, self.args.world_size):
            take_up(self.model_wrapped, best)  # from the time before the run was continued
            return
        if not resume(self.model, best):  # type: ignore[arg-type]  # a trainer has a model
            super()._load_best_model()

    @override
    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint beside its place and put it there when it is whole, now or while training goes on."""
        phases.enter(f"saving checkpoint-{self.state.global_step}")
        self.store_flos()
        place = Place.of(Path(self.args.output_dir or "."), self.state.global_step)
        self.saver.wait()
        if self.args.should_save:
            start(place)
        processes.meet()
        place.partial.mkdir(parents=True, exist_ok=True)  # on a node with a disk of its own
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(place.final)
        with written(place):
            self._write_progress(place.partial)
        if self.saver.background and not is_read_while_written(self.model):  # type: ignore[arg-type]  # a trainer has a model
            self._save_in_background(place)
            return
        with written(place):
            self.save_model(str(place.partial), _internal_call=True)
            if not self.args.save_only_model:
                self._save_optimizer_and_scheduler(str(place.partial))
            seal(place, self.state.global_step, each_node=self.args.save_on_each_node)

    def _write_progress(self, folder: Path) -> None:
        """What is small: the state of the run, its random numbers, and where it is in the data."""
        if not self.args.save_only_model:
            self._save_scaler(str(folder))
            self._save_rng_state(str(folder))
        if self.follower:
            self.follower.write_place(folder)
        if not self.args.should_save:
            return
        if self._pace:
            self._pace.position(self.state.global_step, self.sampler).write(folder)
        states: Any = self.state.stateful_callbacks  # a dictionary, once transformers has made the state
        for callback in (*self.callback_handler.callbacks, self.control):
            if isinstance(callback, ExportableState):
                states[type(callback).__name__] = callback.state()
        self.state.save_to_json(str(folder / STATE))

    def _save_in_background(self, place: Place) -> None:
        """Copy what changes, and leave the writing to a thread of the process that writes."""
        work = self._copied(place) if self.args.should_save else None
        processes.meet()  # what the other processes have written belongs to it
        if work:
            self.saver.submit(work)

    @override
    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> TrainOutput:
        """The end of a training comes after its last checkpoint."""
        self.saver.wait()
        return super()._finalize_training(trial, num_train_samples, start_time)

    def _copied(self, place: Place) -> Callable[[], None]:
        """The work of writing the weights and the optimizer as they are now."""
        scheduler: Any = self.lr_scheduler
        step, schedule = self.state.global_step, scheduler.state_dict()
        weights, progress = self._snapshot.take(*self._changing())

        def write() -> None:
            with written(place):
                self._save(str(place.partial), state_dict=weights)
                if progress:
                    torch.save(progress, place.partial / OPTIMIZER_NAME)
                    torch.save(schedule, place.partial / SCHEDULER_NAME)
                seal_alone(place, step)

        return write

    def _changing(self) -> tuple[list[dict[str, Any]], frozenset[int]]:
        """The state of the model and of the optimizer, where that is saved; and the weights in it that never change."""
        model: Any = self.model
        optimizer: Any = self.optimizer
        progress = {} if self.args.save_only_model else optimizer.state_dict()
        return [model.state_dict(), progress], unchanging(model, optimizer)

    @override
    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Weights as transformers saves them, and everything needed to use them.

        Of processes that gather divided weights all come here, and those that write nothing have nothing to write.
        """
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir or ".")
        is_written = write(self.model, folder, state_dict)  # type: ignore[arg-type]  # a trainer has a model
        if is_written:
            torch.save(self.args, folder / TRAINING_ARGS_NAME)
        else:
            self._save_whole(output_dir, state_dict)
        if self.args.process_index > 0 and not is_written and isinstance(self.model, PreTrainedModel):
            save_on_this_node(self.model, folder)
        complete(self.model, folder)  # type: ignore[arg-type]  # an adapter around a model is no PreTrainedModel
        self.companions.write(folder)
        writes = self.model.can_generate()  # type: ignore[union-attr,operator]  # models of transformers have it
        if writes and not (folder / "generation_config.json").exists():  # an adapter is saved without one
            self.model.generation_config.save_pretrained(folder)  # type: ignore[union-attr]  # models of transformers have it

    def _save_whole(self, output_dir: str | None, state_dict: dict[str, Any] | None) -> None:
        """Weights in the way of transformers and peft."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*`save_embedding_layers`.*")  # of rows, which are saved anyway
            if is_adalora(self.model):  # type: ignore[arg-type]  # which may leave a layer without ranks
                warnings.filterwarnings("ignore", message=".*have invalid shape.*")
            whole = without_copies(self.model, state_dict)  # type: ignore[arg-type]  # a trainer has a model
            super()._save(output_dir, without_whole_embeddings(self.model, whole))  # type: ignore[arg-type]  # a trainer has a model
