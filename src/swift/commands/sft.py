"""This file knows `swift sft` and `swift pt`: from rows and a model to checkpoints."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from swift.chat.render import Renderer
from swift.commands import check
from swift.commands.begin import begin, settle
from swift.core import environment
from swift.core.errors import RunError
from swift.core.logs import get_logger
from swift.data.collate import Flattened, Padded
from swift.data.encode import LoadedData, load_samples
from swift.data.lazy import LazyData, LazySet, load_lazily
from swift.data.library import HubAccess
from swift.data.packing import PackedSet, pack_samples
from swift.data.quarantine import write_bad_rows
from swift.data.samples import SampleSet
from swift.data.stream import Stream, StreamedData, load_stream
from swift.data.streamed_packing import pack_capacity
from swift.hub.models import access
from swift.models.families import layout_for
from swift.models.info import check_weights, model_info
from swift.models.load import load_model
from swift.models.parameters import parameter_table
from swift.models.precision import mixed_precision
from swift.models.processor import load_tokenizer
from swift.models.vocabulary import token_ids, with_room
from swift.options.commands import Sft
from swift.options.saved import write_args
from swift.options.training import TrainingOptions
from swift.trainers import processes
from swift.trainers.arguments import training_arguments, without_evaluation
from swift.trainers.base import Companions, Feed
from swift.trainers.isolation import isolate
from swift.trainers.outputs import make_folder, next_version, resumable
from swift.trainers.session import Outcome, open_session, say_farewell, statistics
from swift.trainers.supervised import SupervisedTrainer
from swift.tuners.attach import attach

Data = LoadedData | LazyData | StreamedData


def run(command: Sft) -> Path | int | None:
    """Pre-train or fine-tune. Returns the folder of the last checkpoint, None when none was saved.

    With `--dry_run true` nothing is trained, and it returns the exit code of the check.
    """
    if command.proof.dry_run:
        return check.run(command)
    logger = get_logger()
    command = begin(command, command.general, deterministic=command.training.full_determinism)
    command, info = settle(command, model_info(command.model, access(command.general)))
    if command.training.check_model:
        check_weights(info)
    resume = resumed(command)
    base = make_folder(Path(command.training.output_dir or "output").expanduser().absolute())
    processes.join(command.general, "cuda" if torch.cuda.is_available() else "cpu")
    arguments = training_arguments(
        command.training, command.general,
        output_dir=base, precision=mixed_precision(info.dtype), extra=command.extra,
    )  # fmt: skip

    tokenizer = load_tokenizer(info, command.model.new_special_tokens)
    renderer = Renderer(tokenizer, command.template, layout=layout_for(info, command.template, tokenizer))
    data = load(command, renderer, HubAccess(command.general.use_hf, command.general.hub_token))
    if data.val is None:
        arguments = without_evaluation(arguments)

    folder = run_folder(base, command.training)
    arguments.output_dir = str(folder)
    if environment.rank() == 0:
        write_args(command, folder)
        write_accounts(data, folder)

    adapters = [str(resume)] if resume and _is_adapter(resume) else [str(folder) for folder in info.adapters]
    asked = [name for name, source in command.sources.items() if source.asked_for]
    model = with_room(load_model(info, command.model, training=True), tokenizer)
    if is_flat(command):
        isolate(model, command.model.attn_impl, "--packing" if command.training.packing else "--padding_free")
    model = attach(
        model, command.method, command.tuner, adapters=adapters, asked=asked,
        new_token_ids=token_ids(tokenizer, command.model.new_special_tokens),
    )  # fmt: skip
    table = parameter_table(model)
    logger.info("%s", table)
    first = data.train.first() if isinstance(data.train, Stream) else data.train[0]
    coloured = sys.stderr.isatty() and not environment.NO_COLOR.is_set()
    logger.info("the first sample:\n%s", renderer.show(first, colours=coloured))

    session = open_session(folder, command.training, command.tracking)
    trainer = SupervisedTrainer(
        model, arguments,
        Feed(packed(command, data.train), data.val, _collate(command, tokenizer), command.data.data_seed,
             command.training.train_dataloader_shuffle, command.training.group_by_length),
        Companions(tokenizer, renderer.saved_chat_template(), _companions(folder, info.path)),
        command.training, session.callbacks,
    )  # fmt: skip
    about = {
        "model_parameter_info": str(table).partition("\n")[0],
        "train_dataset": described(data.train),
        "val_dataset": None if data.val is None else described(data.val),
    }
    outcome = session.run(trainer, resume, about)
    part(data, outcome, command.name)
    if outcome.interrupted:
        raise KeyboardInterrupt
    return outcome.last


def resumed(command: Sft) -> Path | None:
    """The checkpoint of `--resume_from_checkpoint`, which must hold what `--tuner_type` trains."""
    if command.training.resume_from_checkpoint is None:
        return None
    checkpoint = resumable(command.training.resume_from_checkpoint)
    full = command.method.tuner_type == "full"
    if full and _is_adapter(checkpoint):
        raise RunError(
            f"{checkpoint} holds an adapter, which --tuner_type full cannot go on from. Use its own tuner type."
        )
    if not full and not _is_adapter(checkpoint):
        raise RunError(f"{checkpoint} holds a whole model, and not an adapter. Go on with --tuner_type full.")
    get_logger().info("going on from %s: weights, optimizer, schedule, random state and place in the data", checkpoint)
    return checkpoint


def run_folder(base: Path, training: TrainingOptions) -> Path:
    """The folder of this run, the same on all processes: a new version inside `base`, or `base` itself."""
    folder = processes.told(next_version(base, datetime.now())) if training.add_version else base
    get_logger().info("output folder: %s", folder)
    return make_folder(folder)


def part(data: Data, outcome: Outcome, name: str) -> None:
    """The last words of a run: rows that turned out to be of no use, and where the weights are."""
    if isinstance(data.train, LazySet) and data.train.num_unusable:
        get_logger().warning("%d rows could not be used; others took their places", data.train.num_unusable)
    say_farewell(outcome, name)
    processes.leave()


def write_accounts(data: Data, folder: Path) -> None:
    """The rows that were held back, and those that could not be used, where there are any."""
    if data.val_rows:
        write_rows(data.val_rows, folder / "val_dataset.jsonl")
    write_bad_rows(data.report.bad, folder)


def write_rows(rows: list[dict[str, Any]], file: Path) -> None:
    """The rows that were held back for evaluation, so that `swift infer --val_dataset` can answer the same."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.write_text("".join(lines), encoding="utf-8")


def is_flat(command: Sft) -> bool:
    """Whether rows are laid end to end, in packs or batch by batch, instead of padded."""
    return command.template.padding_free or command.training.packing


def load(command: Sft, renderer: Renderer, hub: HubAccess) -> Data:
    """The rows of the run, tokenized before it or, with `--streaming` and `--lazy_tokenize`, while it goes on.

    What is read before the run is read by one process of each node.
    """
    data, template, wait = command.data, command.template, command.general.ddp_timeout
    if command.training.lazy_tokenize:
        return processes.made_once(lambda: load_lazily(data, template, renderer, hub), wait)
    plugins = command.general.external_plugins
    if not data.streaming:
        return processes.made_once(lambda: load_samples(data, template, renderer, hub, plugins), wait)
    length = pack_capacity(command.training.packing_length) if command.training.packing else None
    return load_stream(command.data, command.template, renderer, hub, packing_length=length)


def described(samples: SampleSet | LazySet | Stream) -> str:
    """The samples in one line, for the summary of the run."""
    return statistics(samples.lengths) if isinstance(samples, SampleSet) else samples.describe()


def packed(command: Sft, samples: SampleSet | LazySet | Stream) -> SampleSet | LazySet | PackedSet | Stream:
    """What a run learns from: the samples, or with `--packing` packs of them."""
    if not command.training.packing or not isinstance(samples, SampleSet):
        return samples
    return pack_samples(samples, command.training.packing_length, command.training.packing_num_proc)


def _collate(command: Sft, tokenizer: PreTrainedTokenizerBase) -> Padded | Flattened:
    if is_flat(command):
        return Flattened()
    assert isinstance(tokenizer.pad_token_id, int), "load_tokenizer gives every tokenizer a padding token"
    return Padded(tokenizer.pad_token_id, command.template.padding_side)


def _companions(folder: Path, model: Path) -> tuple[Path, ...]:
    """The files that are copied into every checkpoint as they are, where they exist."""
    return tuple(file for file in (folder / "args.json", model / "generation_config.json") if file.is_file())


def _is_adapter(checkpoint: Path) -> bool:
    return (checkpoint / "adapter_config.json").is_file()
