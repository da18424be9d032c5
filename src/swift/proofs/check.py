"""This file knows how a run is looked at before it begins: everything but the weights, in the order of the run.

Nothing is printed and nothing is written. Where one part fails, the parts that stand on it are left out, and the
failed proof says why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from swift.chat.render import Renderer
from swift.core.errors import ModelError, SwiftError, UsageError
from swift.data.library import HubAccess
from swift.data.packing import pack_in_processes
from swift.data.tasks import OF_MODELS, Aim, Classes, Task
from swift.models.families import layout_for
from swift.models.info import ModelInfo, check_weights
from swift.models.load import attention
from swift.models.loader import row_of
from swift.models.processor import TOKENIZER_FILES, load_tokenizer
from swift.models.quantize import loading_arguments
from swift.models.vocabulary import token_ids
from swift.options.commands import Rlhf, Sft
from swift.options.declare import Origin, flags
from swift.options.derivations import processes, training_processes
from swift.options.help import show
from swift.options.saved import SECRETS
from swift.proofs import rows
from swift.proofs.machine import Machine, cores, devices, prove_disk, prove_processes, prove_writable
from swift.proofs.measured import Measured, Rendering, measure
from swift.proofs.rendering import Words
from swift.proofs.report import CheckReport, Fact, Proof, counted, histogram
from swift.proofs.schedule import Schedule, schedule
from swift.proofs.size import (
    Trained,
    checkpoint_bytes,
    empty_model,
    shown_bytes,
    stored_weights,
    trained_part,
)
from swift.trainers.outputs import resumable

TASKS: dict[str, Task] = {
    "dpo": "preference", "orpo": "preference", "simpo": "preference", "cpo": "preference", "rm": "preference",
    "kto": "kto", "ppo": "prompt", "grpo": "prompt", "gkd": "prompt",
}  # fmt: skip
"""`--rlhf_type` -> what it takes of a row."""


@dataclass(frozen=True)
class _Tools:
    """What conversations are rendered with."""

    tokenizer: PreTrainedTokenizerBase
    renderer: Renderer


def check(command: Sft, info: ModelInfo, machine: Machine | None = None) -> CheckReport:
    """What would happen if this command were run, and what is wrong with it.

    command: complete, with what its checkpoint decides filled in.
    machine: how disk, ports and GPUs are asked; this machine when not given.
    Raises UsageError for options that turn out not to fit model or rows.
    """
    machine = machine or Machine()
    report = CheckReport(f"swift {command.name}", decided(command))
    _look_at_model(report, command, info)
    tools = _look_at_template(report, command, info)
    trained = _look_at_tuner(report, command, info, tools)
    aim = aim_of(command)
    measured = _look_at_rows(report, command, tools.renderer, aim) if tools else None
    if tools and measured:
        words = Words(tools.tokenizer)
        report.rows = rows.shown_rows(measured, words)
        learns = not aim.reads and aim.task != "prompt"
        has_stops = bool(tools.renderer.stop_token_ids)
        report.proofs += rows.prove_numbers(
            measured, command.template, learns=learns, has_stops=has_stops, reads=aim.reads
        )
        if aim.reads:
            report.proofs += rows.prove_read(measured, words)
        else:
            report.proofs += rows.prove_witnesses(measured, tools.renderer, words, command.template)
    plan = _look_at_steps(report, command, measured) if measured and len(measured.train) else None
    _look_at_machine(report, command, info, machine, (trained, plan))
    if isinstance(command, Rlhf):
        report.proofs.append(
            Proof(
                "the command can be run", False, "not available yet: swift rlhf",
                "The command line and the rows are looked at; training on them is to come.",
            )
        )  # fmt: skip
    return report


def decided(command: Sft) -> list[Fact]:
    """The options that were given or derived, with their sources; secrets are not shown."""
    values, table = command.values(), flags(type(command))
    facts = []
    for name, flag in table.items():
        source, value = command.sources[name], values[name]
        is_idle = source.origin is Origin.RULE and (value in (None, False) or flag.marks.later is not None)
        if source.origin is Origin.DEFAULT or is_idle or flag.group == "proof":
            continue
        is_secret = value is not None and any(part in name for part in SECRETS)
        facts.append(Fact(name, "(not shown)" if is_secret else show(value), str(source)))
    return facts + [Fact(name, show(value), "training arguments") for name, value in command.extra.items()]


def aim_of(command: Sft) -> Aim:
    """What the command takes of a row, and what labels may be."""
    if isinstance(command, Rlhf):
        return Aim(TASKS[command.preference.rlhf_type])
    task, model = OF_MODELS[command.model.task_type], command.model
    if task != "seq_cls" or model.problem_type is None or model.num_labels is None:
        return Aim(task)
    return Aim(task, Classes(model.problem_type, model.num_labels))


# --------------------------------------------------------------------------------------------------------------- model


def _look_at_model(report: CheckReport, command: Sft, info: ModelInfo) -> None:
    """The facts of the model, and the proofs that it can be loaded."""
    report.model += [
        Fact("folder", str(info.path)),
        Fact("architecture", ", ".join(info.architectures) or info.model_type, info.family or ""),
        Fact("context", f"{info.max_length:,} tokens" if info.max_length else "not named"),
    ]
    row = row_of(info.family)
    if row is not None and row.note:
        report.model.append(Fact("about", row.note))
    if info.quantization:
        report.model.append(Fact("quantized with", info.quantization))
    if info.quantization or command.quantization.quant_method:
        method = command.quantization.quant_method
        report.proofs.append(_attempted("quantized weights can be made and read here",
                                        lambda: loading_arguments(info, command.quantization), method or ""))  # fmt: skip
    report.proofs.append(_attempted("the weights are there and whole", lambda: check_weights(info)))
    if report.proofs[-1].holds:
        _describe_weights(report, info)
    if command.model.attn_impl is not None:
        impl = command.model.attn_impl
        report.proofs.append(_attempted("the attention can run here", lambda: attention(impl, training=True), impl))
    if command.training.resume_from_checkpoint is not None:
        name = command.training.resume_from_checkpoint
        report.proofs.append(_attempted("the checkpoint can be continued", lambda: resumable(name), name))


def _describe_weights(report: CheckReport, info: ModelInfo) -> None:
    stored = stored_weights(info.path)
    loaded = f"loaded as {info.dtype}"
    if stored is None:
        report.model.append(Fact("type", loaded, "weights in .bin files are not counted"))
        return
    kinds = ", ".join(f"{count:,} in {dtype}" for dtype, count in stored.dtypes.items())
    files = f"{counted(stored.files, 'file')}, {shown_bytes(stored.num_bytes)}"
    report.model += [
        Fact("parameters stored", f"{stored.parameters:,}", files),
        Fact("type", loaded, f"stored: {kinds}"),
    ]


def _look_at_tuner(report: CheckReport, command: Sft, info: ModelInfo, tools: _Tools | None) -> Trained | None:
    """What would be trained, counted on a model without memory; None, and a failed proof, when it cannot be."""
    size = len(tools.tokenizer) if tools else 0
    added = token_ids(tools.tokenizer, command.model.new_special_tokens) if tools else []
    try:
        empty = empty_model(info, command.model, size)
        trained = trained_part(empty, info, command.method, command.tuner, command.variants, added)
    except UsageError:
        raise
    except SwiftError as error:
        report.proofs.append(Proof("the model can be built and adapted", False, str(error), "See what it says."))
        return None
    share = f"{100 * trained.trained / trained.total:.4g} % of {trained.total:,}"
    report.model.append(Fact("parameters trained", f"{trained.trained:,}", f"{share}, {command.method.tuner_type}"))
    report.proofs.append(
        Proof("the model can be built and adapted", trained.trained > 0, f"{trained.trained:,} parameters are trained",
              "Nothing is trained: look at what is frozen.")
    )  # fmt: skip
    return trained


def _look_at_template(report: CheckReport, command: Sft, info: ModelInfo) -> _Tools | None:
    """The tokenizer and what renders rows; None, and a failed proof, when there is none."""
    claim = "tokenizer and chat template can be used"
    try:
        tokenizer = load_tokenizer(info, command.model.new_special_tokens)
        renderer = Renderer(tokenizer, command.template, layout=layout_for(info, command.template, tokenizer))
    except ModelError as error:
        report.proofs.append(Proof(claim, False, str(error), "See what it says."))
        return None
    size = len(tokenizer)
    embeds = f"the model embeds {info.vocab_size:,}" if info.vocab_size else ""
    report.model.append(Fact("tokenizer", f"{size:,} tokens", embeds))
    template = command.template.template or "the checkpoint's own"
    ends = ", ".join(repr(word) for word in renderer.stop_words)
    name = template if renderer.chat_template is not None else "none, plain text"
    report.model.append(Fact("chat template", name, f"a reply ends with {ends}"))
    report.proofs.append(Proof(claim, True, f"{size:,} tokens; {name}"))
    return _Tools(tokenizer, renderer)


# ---------------------------------------------------------------------------------------------------------------- rows


def _look_at_rows(report: CheckReport, command: Sft, renderer: Renderer, aim: Aim) -> Measured | None:
    """All rows, rendered and measured; None, and a failed proof, when they cannot be read at all."""
    access = HubAccess(command.general.use_hf, command.general.hub_token)
    # A stream is looked at as a whole, so that its lengths are known.
    update: dict[str, Any] = {"streaming": False}
    if command.sources["dataset_num_proc"].origin is Origin.DEFAULT:
        update["dataset_num_proc"] = cores()
    data = command.data.model_copy(update=update)
    if not data.dataset and not data.cached_dataset:
        return None
    try:
        measured = measure(data, Rendering(renderer, command.template, aim), access, command.general.external_plugins)
    except UsageError:
        raise
    except SwiftError as error:
        report.proofs.append(Proof("rows can be read and rendered", False, str(error), "See what it says."))
        return None
    report.read = measured.report.read
    report.left_out = rows.left_out(measured)
    report.datasets = rows.dataset_facts(measured)
    report.max_length, report.longer = command.template.max_length, measured.longer
    report.lengths = histogram(measured.numbers.lengths.tolist())
    if not len(measured.train):
        report.proofs.append(Proof("there are rows to train on", False, "none is left", "See the rows left out."))
    return measured


def _look_at_steps(report: CheckReport, command: Sft, measured: Measured) -> Schedule:
    """How many steps the run has, and how many tokens a step."""
    training = command.training
    size = command.template.sequence_parallel_size * training.deepspeed_autotp_size
    count = training_processes(command.values()) // size
    sharers = "processes" if size == 1 else f"groups of {size} processes"
    numbers = measured.numbers
    lengths: list[int] = numbers.lengths[measured.train].tolist()
    is_by_row = aim_of(command).task != "supervised"  # a row of other tasks may hold several samples
    drawn, what = (measured.rows_to_train, "rows") if is_by_row else (len(lengths), "samples")
    if training.packing:
        capacity = training.packing_length or command.template.max_length
        if capacity is None or max(lengths) > capacity:
            raise UsageError(
                f"--packing needs a --packing_length (or --max_length) of at least {max(lengths)} tokens, the length "
                f"of the longest row (got {capacity})."
            )
        drawn, what = len(pack_in_processes(lengths, capacity, training.packing_num_proc)), "packs"
    plan = schedule(training, drawn, count)
    tokens, learnt = sum(lengths), int(numbers.learnt[measured.train].sum())
    batch = f"{training.per_device_train_batch_size} x {training.gradient_accumulation_steps} x {count}"
    report.schedule += [
        Fact(f"{what} per epoch", f"{plan.rows:,}", f"{counted(len(lengths), 'sample')}" if training.packing else ""),
        Fact(f"{what} per step", f"{plan.rows_per_step:,}", f"{batch} (batch, accumulation, {sharers})"),
        Fact("steps per epoch", f"{plan.per_epoch:,}"),
        Fact("steps in all", f"{plan.total:,}", f"{plan.epochs:.3g} epochs"),
        Fact("tokens per step", f"{tokens / plan.per_epoch:,.0f}", f"{learnt / plan.per_epoch:,.0f} of them learnt"),
        Fact("tokens in all", f"{tokens * plan.epochs:,.0f}", f"{learnt * plan.epochs:,.0f} of them learnt"),
        Fact("checkpoints", f"{plan.checkpoints:,}", f"{plan.kept:,} on disk at a time"),
    ]
    return plan


# ------------------------------------------------------------------------------------------------------------- machine


def _look_at_machine(
    report: CheckReport, command: Sft, info: ModelInfo, machine: Machine, sizes: tuple[Trained | None, Schedule | None]
) -> None:
    """Devices, disk, write rights, ports."""
    report.machine.append(devices(machine, processes()))
    folder = Path(command.training.output_dir or "output").expanduser().absolute()
    report.machine.append(Fact("output folder", str(folder)))
    report.proofs.append(prove_writable(folder))
    trained, plan = sizes
    if trained and plan and plan.checkpoints:
        tokenizer = sum((info.path / name).stat().st_size for name in TOKENIZER_FILES if (info.path / name).is_file())
        one = checkpoint_bytes(
            trained, cast("str", command.training.optim), only_model=command.training.save_only_model,
            tokenizer_bytes=tokenizer,
        )  # fmt: skip
        report.machine.append(Fact("one checkpoint", f"about {shown_bytes(one)}"))
        report.proofs.append(prove_disk(folder, one, plan.kept, machine))
    report.proofs += prove_processes(machine)


def _attempted(claim: str, attempt: Callable[[], object], found: str = "") -> Proof:
    """A proof by doing: it holds when nothing is raised."""
    try:
        attempt()
    except SwiftError as error:
        return Proof(claim, False, str(error), "See what it says.")
    return Proof(claim, True, found or "yes")
