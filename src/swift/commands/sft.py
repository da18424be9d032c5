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
from swift.commands.begin import begin, settle
from swift.core import environment
from swift.core.errors import RunError
from swift.core.logs import get_logger
from swift.data.collate import Flattened, Padded
from swift.data.encode import load_samples
from swift.models.info import check_weights, model_info
from swift.models.load import load_model
from swift.models.parameters import parameter_table
from swift.models.precision import mixed_precision
from swift.models.processor import load_tokenizer
from swift.options.commands import Sft
from swift.options.saved import write_args
from swift.options.training import TrainingOptions
from swift.trainers import processes
from swift.trainers.arguments import training_arguments, without_evaluation
from swift.trainers.base import Companions, Feed
from swift.trainers.outputs import make_folder, next_version, resumable
from swift.trainers.session import open_session, say_farewell, statistics
from swift.trainers.supervised import SupervisedTrainer
from swift.tuners.attach import attach


def run(command: Sft) -> Path | None:
    """Pre-train or fine-tune. Returns the folder of the last checkpoint, None when none was saved."""
    logger = get_logger()
    command = begin(command, command.general, deterministic=command.training.full_determinism)
    command, info = settle(command, model_info(command.model))
    if command.training.check_model:
        check_weights(info)
    resume = resumed(command)
    base = make_folder(Path(command.training.output_dir or "output").expanduser().absolute())
    processes.join(command.general, "cuda" if torch.cuda.is_available() else "cpu")
    arguments = training_arguments(
        command.training, command.general,
        output_dir=base, precision=mixed_precision(info.dtype), extra=command.extra,
    )  # fmt: skip

    tokenizer = load_tokenizer(info)
    renderer = Renderer(tokenizer, command.template)
    data = load_samples(command.data, command.template, renderer)
    if data.val is None:
        arguments = without_evaluation(arguments)

    folder = run_folder(base, command.training)
    arguments.output_dir = str(folder)
    if environment.rank() == 0:
        write_args(command, folder)
        if data.val_rows:
            write_rows(data.val_rows, folder / "val_dataset.jsonl")

    adapters = [str(resume)] if resume and _is_adapter(resume) else command.model.adapters
    asked = [name for name, source in command.sources.items() if source.asked_for]
    model = load_model(info, command.model, training=True)
    model = attach(model, command.method, command.tuner, adapters=adapters, asked=asked)
    table = parameter_table(model)
    logger.info("%s", table)
    coloured = sys.stderr.isatty() and not environment.NO_COLOR.is_set()
    logger.info("the first sample:\n%s", renderer.show(data.train[0], colours=coloured))

    session = open_session(folder, command.training, command.tracking)
    trainer = SupervisedTrainer(
        model, arguments,
        Feed(data.train, data.val, _collate(command, tokenizer), command.data.data_seed,
             command.training.train_dataloader_shuffle),
        Companions(tokenizer, renderer.saved_chat_template(), _companions(folder, info.path)),
        command.training, session.callbacks,
    )  # fmt: skip
    about = {
        "model_parameter_info": str(table).partition("\n")[0],
        "train_dataset": statistics(data.train.lengths),
        "val_dataset": None if data.val is None else statistics(data.val.lengths),
    }
    outcome = session.run(trainer, resume, about)
    say_farewell(outcome, command.name)
    processes.leave()
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


def write_rows(rows: list[dict[str, Any]], file: Path) -> None:
    """The rows that were held back for evaluation, so that `swift infer --val_dataset` can answer the same."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.write_text("".join(lines), encoding="utf-8")


def _collate(command: Sft, tokenizer: PreTrainedTokenizerBase) -> Padded | Flattened:
    if command.template.padding_free:
        return Flattened()
    assert isinstance(tokenizer.pad_token_id, int), "load_tokenizer gives every tokenizer a padding token"
    return Padded(tokenizer.pad_token_id, command.template.padding_side)


def _companions(folder: Path, model: Path) -> tuple[Path, ...]:
    """The files that are copied into every checkpoint as they are, where they exist."""
    return tuple(file for file in (folder / "args.json", model / "generation_config.json") if file.is_file())


def _is_adapter(checkpoint: Path) -> bool:
    return (checkpoint / "adapter_config.json").is_file()
