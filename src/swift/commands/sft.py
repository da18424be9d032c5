"""This file knows `swift sft` and `swift pt`: from rows and a model to checkpoints."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel, TrainerCallback

from swift.commands import check
from swift.commands.benchmarking import benchmarks_of
from swift.commands.preparation import Data, Prepared, flat_by, may_be_flat, prepare
from swift.commands.replying import replies_of
from swift.core import environment, phases
from swift.core.errors import UsageError
from swift.core.logs import get_logger
from swift.data.groups import GroupSet
from swift.data.lazy import LazySet
from swift.data.packing import PackedSet, pack_samples
from swift.data.samples import SampleSet
from swift.data.stream import Stream
from swift.hub.pushing import Target, open_repository
from swift.models.heads import head_module, with_padding
from swift.models.liger import use_liger
from swift.models.load import load_model
from swift.models.parameters import parameter_table
from swift.models.stored import stored_weights
from swift.models.vocabulary import token_ids, with_room
from swift.options.commands import Sft
from swift.options.optimizers import OptimizerOptions
from swift.options.training import TrainingOptions
from swift.parallel.mesh import Mesh
from swift.parallel.partitions import gather_experts_together
from swift.proofs.schedule import schedule
from swift.trainers import processes
from swift.trainers.base import SwiftTrainer
from swift.trainers.feed import Feed
from swift.trainers.gradients import backward_on, first_batches
from swift.trainers.isolation import isolate, isolate_if_it_can
from swift.trainers.lisa import Lisa
from swift.trainers.objectives import objective_of
from swift.trainers.pushing import Pushes
from swift.trainers.representation import Goal, RepresentationTrainer
from swift.trainers.session import Outcome, open_session, say_farewell, statistics
from swift.trainers.sharded import require_dividable
from swift.trainers.sharing import share
from swift.trainers.supervised import SupervisedTrainer
from swift.trainers.watchdog import Watchdog
from swift.tuners import unsloth
from swift.tuners.attach import attach
from swift.tuners.own.layers import decoder_layers
from swift.tuners.own.longlora import shift_attention
from swift.tuners.request import Run

Samples = SampleSet | GroupSet | LazySet | Stream


def run(command: Sft, watchers: Sequence[TrainerCallback] = ()) -> Path | int | None:
    """Pre-train or fine-tune. Returns the folder of the last checkpoint, None when none was saved.

    watchers: look on beside those of the session.

    With `--dry_run true` nothing is trained, and it returns the exit code of the check.
    """
    if command.proof.dry_run:
        return check.run(command)
    with Watchdog.of_environment():
        prepared = prepare(command)
        with prepared.claim:
            last = fit(prepared, watchers)
        processes.leave()
        return last


def fit(prepared: Prepared, watchers: Sequence[TrainerCallback] = ()) -> Path | None:
    """Train what is prepared. Returns the folder of the last checkpoint, None when none was saved."""
    command, data = prepared.command, prepared.data
    pushes = pushes_of(prepared)
    model, flat, mesh = learner(prepared)
    prepared = replace(prepared, flat=flat)
    table = parameter_table(model)
    get_logger().info("%s", table)
    show_first(prepared)
    session = open_session(prepared.folder, command.training, command.tracking)
    callbacks = [*session.callbacks, *drawing_layers(model, command.optimizers), *([pushes] if pushes else [])]
    trainer = trainer_of(prepared, model, mesh, callbacks)
    for watcher in watchers:
        trainer.add_callback(watcher)
    about = {
        "model_parameter_info": str(table).partition("\n")[0],
        "train_dataset": described(data.train),
        "val_dataset": None if data.val is None else described(data.val),
    }
    outcome = session.run(trainer, prepared.resume, about)
    part(data, outcome, command.name)
    if pushes:
        pushes.finish(outcome.last)
    if outcome.interrupted:
        raise KeyboardInterrupt
    return outcome.last


def pushes_of(prepared: Prepared) -> Pushes | None:
    """What pushes checkpoints, on the first process; the repository is there, or a RunError says why it cannot be."""
    training, general = prepared.command.training, prepared.command.general
    if not training.push_to_hub or environment.rank() != 0:
        return None
    assert training.hub_model_id is not None, "a rule asks for it"
    target = Target(training.hub_model_id, general.use_hf, training.hub_private_repo, general.hub_token)
    return Pushes(open_repository(target), prepared.folder)


def learner(prepared: Prepared) -> tuple[PreTrainedModel | PeftModel, bool, Mesh | None]:
    """The model with its weights, ready to learn what `--tuner_type` trains, whether rows are laid end to end, and the
    processes that share each row."""
    command = prepared.command
    phases.enter("loading the model")
    if command.method.tuner_backend == "unsloth":
        loading = loading_of(command)
        learns = unsloth.learner(prepared.info, command.method.tuner_type, command.tuner, loading, prepared.adapters)
        return learns, bool(flat_by(command)), None
    model = with_room(load_model(prepared.info, command.model, command.quantization, training=True), prepared.tokenizer)
    with_padding(model, prepared.tokenizer, command.model.task_type)
    gather_experts_together(model)
    if command.training.use_liger_kernel:
        use_liger(model)
    flag = flat_by(command)
    flat = flag is not None
    if flag is not None:
        if command.model.task_type in ("seq_cls", "reranker"):
            head_module(model)
        isolate(model, command.model.attn_impl, flag)
    elif may_be_flat(command):
        flat = isolate_if_it_can(model, command.model.attn_impl)
    if command.method.tuner_type == "longlora":
        shift_attention(model, command.template.max_length, command.model.attn_impl)
    size, patience = command.template.sequence_parallel_size, timedelta(seconds=command.general.ddp_timeout)
    mesh = share(model, size, patience) if size > 1 else None
    learns = attach(
        model, command.method, command.tuner, variants=command.variants, adapters=prepared.adapters,
        asked=[name for name, source in command.sources.items() if source.asked_for],
        run=about_the_run(prepared),
    )  # fmt: skip
    require_dividable(learns, command.training)
    return learns, flat, mesh


def trainer_of(
    prepared: Prepared, model: PreTrainedModel | PeftModel, mesh: Mesh | None, callbacks: list[TrainerCallback]
) -> SwiftTrainer:
    """What trains: on tokens that are learnt, or on what `--task_type` makes of whole texts."""
    training, companions = prepared.command.training, prepared.companions
    if prepared.head is None:
        callbacks = [*filter(None, [replies_of(prepared, model), benchmarks_of(prepared, model)]), *callbacks]
        return SupervisedTrainer(model, prepared.arguments, feed(prepared, mesh), companions, training, callbacks)
    goal = Goal(prepared.head, objective_of(prepared.head, training.loss_type), training.eval_metric)
    return RepresentationTrainer(model, prepared.arguments, feed(prepared, mesh), companions, goal, callbacks)


def loading_of(command: Sft) -> unsloth.Loading:
    """How Unsloth loads the model of a command."""
    length = command.template.max_length
    if length is None:
        raise UsageError("--tuner_backend unsloth needs --max_length: config.json does not say how long rows can be.")
    return unsloth.Loading(
        length, command.quantization.quant_bits, command.training.gradient_checkpointing, command.general.seed
    )  # fmt: skip


def about_the_run(prepared: Prepared) -> Run:
    """What some adapters must know of the training: its steps (AdaLoRA), gradients of its rows (LoRA-GA), weights
    before they were quantized (LoftQ)."""
    command, samples = prepared.command, prepared.data.train
    steps = backward = None
    if command.method.tuner_type == "adalora":
        drawn = packed(command.training, samples)
        rows = 0 if isinstance(drawn, Stream) else len(drawn)  # a stream has --max_steps
        steps = schedule(
            command.training, rows, prepared.arguments.world_size // command.template.sequence_parallel_size
        ).total
    if command.tuner.init_weights == "lora-ga" and not prepared.adapters:
        backward = backward_on(first_batches(samples, prepared.collate, command.variants, command.data.data_seed))
    loses = command.tuner.init_weights == "loftq" and not prepared.adapters and prepared.info.quantization is None
    return Run(
        new_token_ids=token_ids(prepared.tokenizer, command.model.new_special_tokens),
        total_steps=steps,
        backward=backward,
        stored=stored_weights(prepared.info.path) if loses else None,
        values=command.values(),
    )


def drawing_layers(model: PreTrainedModel | PeftModel, options: OptimizerOptions) -> list[Lisa]:
    """With `--lisa_activated_layers`, what draws the layers that are trained."""
    if not options.lisa_activated_layers:
        return []
    assert isinstance(model, PreTrainedModel), "LISA is for full training, which adds no adapter"
    _, layers = decoder_layers(model)
    return [Lisa(layers, options.lisa_activated_layers, options.lisa_step_interval)]


def feed(prepared: Prepared, mesh: Mesh | None) -> Feed:
    """What the trainer is fed with, and by whom each row is shared."""
    training, data = prepared.command.training, prepared.data
    return Feed(
        packed(training, data.train), data.val, prepared.collate, prepared.command.data.data_seed,
        training.train_dataloader_shuffle, training.group_by_length, draws(data.train), mesh,
        training.deepspeed_autotp_size,
    )  # fmt: skip


def draws(samples: Samples) -> bool:
    """Whether a set gives other samples of a row in every epoch, and has to be told which it is."""
    return isinstance(samples, (GroupSet, LazySet)) and samples.draw is not None


def show_first(prepared: Prepared) -> None:
    """Log the first sample, with the text that is learnt in colour on a terminal."""
    samples = prepared.data.train
    found = samples.first() if isinstance(samples, Stream) else samples[0]
    first = found[0] if isinstance(found, list) else found
    coloured = sys.stderr.isatty() and not environment.NO_COLOR.is_set()
    get_logger().info("the first sample:\n%s", prepared.renderer.show(first, colours=coloured))
    if "label" in first.extra:
        get_logger().info("no token of it is learnt, but its label: %s", first.extra["label"])


def part(data: Data, outcome: Outcome, name: str) -> None:
    """The last words of a run: rows that turned out to be of no use, and where the weights are."""
    if isinstance(data.train, LazySet) and data.train.num_unusable:
        get_logger().warning("%d rows could not be used; others took their places", data.train.num_unusable)
    say_farewell(outcome, name)
    processes.leave()


def described(samples: Samples) -> str:
    """The samples in one line, for the summary of the run."""
    return statistics(samples.lengths) if isinstance(samples, SampleSet) else samples.describe()


def packed(training: TrainingOptions, samples: Samples) -> Samples | PackedSet:
    """What a run learns from: the samples, or with `--packing` packs of them."""
    if not training.packing or not isinstance(samples, (SampleSet, GroupSet)):
        return samples
    return pack_samples(samples, training.packing_length, training.packing_num_proc)
