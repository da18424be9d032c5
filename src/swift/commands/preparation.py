"""This file knows what a training has in hand before any weight is loaded: settled options, rows, the folder to write to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from swift.chat.render import Renderer
from swift.commands.begin import begin, settle
from swift.commands.task_settings import aim_of, renders_for
from swift.core import environment, phases
from swift.core.errors import RunError
from swift.core.logs import get_logger
from swift.data.collate import Filled, Flattened, Padded
from swift.data.collate_tasks import TaskBatch
from swift.data.encode import LoadedData, load_samples
from swift.data.formats import write_rows
from swift.data.lazy import LazyData, load_lazily
from swift.data.library import HubAccess
from swift.data.packing import pack_capacity
from swift.data.quarantine import write_bad_rows
from swift.data.stream import StreamedData, load_stream
from swift.data.tasks import SUPERVISED, Aim
from swift.hub.models import access
from swift.models.families import layout_for
from swift.models.heads import Head
from swift.models.info import ModelInfo, check_weights, model_info
from swift.models.liger import require_liger
from swift.models.load import require_means
from swift.models.loader import saved_files
from swift.models.precision import mixed_precision
from swift.models.processor import load_tokenizer
from swift.models.tasks import head_of
from swift.options.commands import Sft
from swift.options.saved import FILE_NAME, differences, write_args
from swift.options.training import TrainingOptions
from swift.trainers import processes
from swift.trainers.arguments import Arguments, training_arguments, without_evaluation
from swift.trainers.checkpoints import tidy
from swift.trainers.claims import Claim, is_held
from swift.trainers.feed import Companions
from swift.trainers.journal import FILE_NAME as JOURNAL
from swift.trainers.journal import has_finished
from swift.trainers.outputs import Continuation, make_folder, new_folder, newest_good, resumable, versions
from swift.trainers.sharded import (
    check_continuable,
    check_quantization,
    check_tensor_parallel,
    divides_anew,
    saved_state,
    sharding,
)
from swift.tuners import unsloth

Data = LoadedData | LazyData | StreamedData


@dataclass(frozen=True)
class Prepared:
    """A run up to its model.

    command: with every value decided. resume: what to go on from. folder: of this run, where args.json and the rows
    that were held back or refused stand already. claim: the hold on that folder, until the run ends. head: of tasks
    other than writing. aim: what samples are for.
    """

    command: Sft
    info: ModelInfo
    resume: Continuation | None
    arguments: Arguments
    tokenizer: PreTrainedTokenizerBase
    renderer: Renderer
    data: Data
    folder: Path
    claim: Claim
    head: Head | None = None
    aim: Aim = SUPERVISED
    flat: bool = False

    @property
    def adapters(self) -> list[str]:
        """The adapters to train on: that of the checkpoint to go on from, else those of `--adapters`."""
        if self.resume and is_adapter(self.resume.checkpoint):
            return [str(self.resume.checkpoint)]
        return [str(folder) for folder in self.info.adapters]

    @property
    def collate(self) -> Padded | Flattened | Filled | TaskBatch:
        """How rows become batches."""
        size = self.command.template.sequence_parallel_size
        assert isinstance(self.tokenizer.pad_token_id, int), "load_tokenizer gives every tokenizer a padding token"
        columns = ("channel",) if self.command.training.enable_channel_loss else ()
        padded = Padded(self.tokenizer.pad_token_id, self.command.template.padding_side, columns)
        tokens = Flattened(columns) if self.flat or flat_by(self.command) else padded
        if size > 1:
            tokens = Filled(self.tokenizer.pad_token_id, 2 * size, columns)
        return tokens if self.head is None else TaskBatch(tokens, self.aim)

    @property
    def companions(self) -> Companions:
        """What is saved beside the weights; files that do not exist are left out."""
        files = (self.folder / "args.json", self.info.path / "generation_config.json", *saved_files(self.info))
        return Companions(
            self.tokenizer, self.renderer.saved_chat_template(), tuple(file for file in files if file.is_file()),
            self.command.training.use_flash_ckpt,
        )  # fmt: skip


def prepare(command: Sft) -> Prepared:
    """Settle the options, read the rows, and make the folder of the run.

    Raises what can be found wrong before weights are loaded: UsageError, DataError, ModelError, RunError.
    """
    command = begin(command, command.general, deterministic=command.training.full_determinism)
    command, info = settle(command, model_info(command.model, access(command.general)))
    require_machine(command, info)
    if command.training.check_model:
        check_weights(info)
    check_quantization(command.training, info.quantization)
    check_tensor_parallel(command.training, info)
    base = make_folder(Path(command.training.output_dir or "output").expanduser().absolute())
    processes.join(command.general, "cuda" if torch.cuda.is_available() else "cpu", sharding(command.training))
    resume = processes.made_once(lambda: resumed(command, base), command.general.ddp_timeout)
    if resume and reads_weights_of(resume, command):
        resume = replace(resume, is_loaded=True)
        info = info if is_adapter(resume.checkpoint) else replace(info, path=resume.checkpoint)
    arguments = training_arguments(
        command.training, command.general,
        output_dir=base, precision=mixed_precision(info.dtype), extra=command.extra,
        galore=command.optimizers, lorap_lr_ratio=command.tuner.lorap_lr_ratio,
    )  # fmt: skip
    tokenizer = load_tokenizer(info, command.model.new_special_tokens)
    renderer = Renderer(tokenizer, command.template, layout=layout_for(info, command.template, tokenizer))
    phases.enter("preparing rows")
    aim = aim_of(command.model, command.data.data_seed)
    head = None if aim == SUPERVISED else head_of(info, command.model, tokenizer)
    data = load(command, renderer, HubAccess(command.general.use_hf, command.general.hub_token), aim)
    if data.val is None and not command.evaluation.eval_use_evalscope:
        arguments = without_evaluation(arguments)
    folder, claim = run_folder(base, command.training)
    arguments.output_dir = str(folder)
    if environment.rank() == 0:
        write_args(command, folder)
        write_accounts(data, folder)
    return Prepared(command, info, resume, arguments, tokenizer, renderer, data, folder, claim, head, aim)


def require_machine(command: Sft, info: ModelInfo) -> None:
    """Raise MissingPackage or ModelError for what this machine lacks to train so, before rows are prepared."""
    if command.method.tuner_backend == "unsloth":
        unsloth.require_unsloth()
        return
    require_means(info, command.model, command.quantization, training=True)
    if command.training.use_liger_kernel:
        require_liger()


def resumed(command: Sft, base: Path) -> Continuation | None:
    """What `--resume_from_checkpoint` goes on from, which must hold what `--tuner_type` trains.

    Without it, `--use_flash_ckpt` goes on with what an earlier run in `base` left unfinished.
    """
    training = command.training
    if training.resume_from_checkpoint is not None:
        checkpoint = resumable(training.resume_from_checkpoint, training.resume_only_model)
    else:
        checkpoint = unfinished(command, base) if training.use_flash_ckpt else None
    if checkpoint is None:
        return None
    full = command.method.tuner_type == "full"
    if full and is_adapter(checkpoint):
        raise RunError(
            f"{checkpoint} holds an adapter, which --tuner_type full cannot go on from. Use its own tuner type."
        )
    if not full and not is_adapter(checkpoint):
        raise RunError(f"{checkpoint} holds a whole model, and not an adapter. Go on with --tuner_type full.")
    check_continuable(checkpoint, training, environment.world_size())
    anew = divides_anew(saved_state(checkpoint), training, environment.world_size())
    continuation = Continuation(
        checkpoint, training.resume_only_model, training.ignore_data_skip, divides_anew=anew
    )  # fmt: skip
    get_logger().info("going on from %s: %s", checkpoint, continuation.what())
    return continuation


def reads_weights_of(resume: Continuation, command: Sft) -> bool:
    """Whether the model is made with the weights of the checkpoint in place of those of `--model`: with
    `--resume_only_model`, where a divided model could not take them up later, or those of a divided one lie in parts; and
    where the parts are of other processes."""
    if resume.divides_anew:
        return True
    divided = sharding(command.training) or saved_state(resume.checkpoint).sharding
    return resume.weights_only and divided is not None


def unfinished(command: Sft, base: Path) -> Path | None:
    """The newest good checkpoint of the run before this one in `base`, when the same command did not come to its end.

    A run that was killed before its first checkpoint leaves it to the one that it went on from.
    """
    for run in versions(base)[::-1] if command.training.add_version else [base]:
        if is_held(run) or not (run / FILE_NAME).is_file():
            continue
        if has_finished(run / JOURNAL):
            get_logger().info("--use_flash_ckpt: the run of %s came to its end, so this one begins anew", run)
            return None
        changed = differences(command, run)
        if changed:
            get_logger().warning(
                "--use_flash_ckpt: the run of %s was another one, so this one begins anew: %s", run, "; ".join(changed)
            )
            return None
        checkpoint = newest_good(run, False, [])
        if checkpoint is not None:
            return checkpoint
    return None


def run_folder(base: Path, training: TrainingOptions) -> tuple[Path, Claim]:
    """The folder of this run, the same on all processes: a new version inside `base`, or `base` itself.

    The first process holds it. Raises RunError when another run does.
    """

    def chosen() -> Path:
        folder = new_folder(base, datetime.now()) if training.add_version else base
        claim.append(Claim(folder).take())
        tidy(folder)
        return folder

    claim: list[Claim] = []
    folder = make_folder(processes.decided(chosen))
    get_logger().info("output folder: %s", folder)
    return folder, claim[0] if claim else Claim(folder)


def load(command: Sft, renderer: Renderer, hub: HubAccess, aim: Aim) -> Data:
    """The rows of the run, tokenized before it or, with `--streaming` and `--lazy_tokenize`, while it goes on.

    What is read before the run is read by one process of each node.
    """
    data, template, wait = command.data, command.template, command.general.ddp_timeout
    renders = renders_for(aim, renderer)
    if command.training.lazy_tokenize:
        return processes.made_once(lambda: load_lazily(data, template, renders, hub, aim), wait)
    plugins = command.general.external_plugins
    if not data.streaming:
        return processes.made_once(lambda: load_samples(data, template, renders, hub, plugins, aim), wait)
    length = pack_capacity(command.training.packing_length) if command.training.packing else None
    return load_stream(
        data,
        template,
        renders,
        hub,
        plugins,
        packing_length=length,
        aim=aim,
        once=lambda make: processes.made_once(make, wait),
    )


def write_accounts(data: Data, folder: Path) -> None:
    """The rows that were held back, and those that could not be used, where there are any.

    `swift infer --val_dataset` can answer the rows that were held back.
    """
    if data.val_rows:
        write_rows(folder / "val_dataset.jsonl", data.val_rows)
    write_bad_rows(data.report.bad, folder)


def flat_by(command: Sft) -> str | None:
    """The flag by which rows are laid end to end; None when they are padded."""
    if command.training.packing:
        return "--packing"
    if command.template.padding_free:
        return "--padding_free"
    size = command.template.sequence_parallel_size
    return f"--sequence_parallel_size {size}" if size > 1 else None


def may_be_flat(command: Sft) -> bool:
    """Whether rows that would be padded may as well be laid end to end: where padding costs as much as tokens do, on a
    CPU, and neither somebody has said how to pad nor the kind of training looks at rows."""
    said = [command.sources[name] for name in ("padding_free", "padding_side") if name in command.sources]
    looks = command.model.task_type != "causal_lm" or command.method.tuner_type not in ("full", "lora")
    return not looks and not torch.accelerator.is_available() and not any(source.asked_for for source in said)


def is_adapter(checkpoint: Path) -> bool:
    """Whether a checkpoint holds an adapter, and not a whole model."""
    return (checkpoint / "adapter_config.json").is_file()
