"""This file knows `swift prove`: trainings that must be the same training, run and held against each other."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from swift.commands import export
from swift.commands.begin import begin, settle
from swift.commands.trainings import RefusalError, TrainingError, Trainings
from swift.core import environment
from swift.core.errors import UsageError
from swift.core.logs import get_logger
from swift.hub.models import access
from swift.models.info import ModelInfo, model_info
from swift.models.precision import torch_dtype
from swift.options.commands import Sft
from swift.options.parse import parse
from swift.options.proving import Proving
from swift.proofs.equivalence import LIMITS, SAME, Finding, Record, Report, logits_of, resumed, same_logits, same_steps
from swift.proofs.equivalence_text import as_values, show
from swift.proofs.shrink import shrink, still
from swift.proofs.trace import NOTHING, Wish, row_logits
from swift.proofs.variants import (
    BASE,
    Setting,
    Variant,
    as_typed,
    batch_variants,
    comparable,
    prepared_for_proof,
    refusal,
    with_options,
)
from swift.trainers.outputs import checkpoints
from swift.trainers.sharded import divides_weights, sharding

TOTAL = 4
"""Rows of a step, or twice the number of processes where these are more."""
WHY = "of the proof"
TRAINED = "as trained"
SAVING = {"save_strategy": "steps", "save_steps": 10**6, "save_only_model": False}
"""A checkpoint at the end of a training, and none before: the schedule is that of a training without."""
CONSTANT = {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": None, "warmup_ratio": 0.0}
FAST = 1e-3
"""The learning rate at which a few steps change something that can be seen."""


@dataclass(frozen=True)
class Proof:
    """One proof while it is made. command: on the model it is proven with, shortened to `steps`."""

    command: Sft
    info: ModelInfo
    steps: int
    trainings: Trainings
    report: Report

    def train(self, name: str, command: Sft, processes: int = 1, wish: Wish = NOTHING) -> Record:
        """Train in one of the ways that are compared. Raises RefusalError and TrainingError."""
        get_logger().info("prove %s: %s", self.report.proof, name)
        record = self.trainings.run(name, command, processes, wish)
        if not any(norm > 0 for norm in record.trace.norms):  # trainings that do nothing are equal too
            raise TrainingError("nothing is learnt in the first steps (the gradient is 0), so nothing can be proven")
        return record

    def ask(self, name: str, function: Callable[..., None], *arguments: object) -> Tensor:
        """The logits that a function writes in a new process."""
        get_logger().info("prove %s: %s", self.report.proof, name)
        file = self.trainings.folder / "logits.safetensors"
        self.trainings.apply(function, file, *arguments)
        return load_file(file)["logits"]


def run(command: Sft, asked: Proving) -> int:
    """Prove what was asked for; 0 when everything holds, else 1."""
    if divides_weights(command.training):
        raise UsageError(
            f"swift prove compares whole weights and gradients, which no process has with --{sharding(command.training)}. "
            "Use --deepspeed zero2, or leave it out here."
        )
    command = begin(command, command.general, deterministic=command.training.full_determinism)
    command, info = settle(command, model_info(command.model, access(command.general)))
    reports = []
    with tempfile.TemporaryDirectory(prefix="swift-prove-") as folder:
        command, info, notes = _model(command, info, asked, Path(folder))
        for proof in asked.proofs:
            started = time.perf_counter()
            place = Path(folder) / proof
            place.mkdir()
            shown = f"{asked.command} {' '.join(asked.words)}"
            report = Report(proof, shown, _device(), info.dtype, notes=list(notes))
            with Trainings(place) as trainings:
                PROVE[proof](Proof(prepared_for_proof(command, asked.steps), info, asked.steps, trainings, report))
            report.seconds = time.perf_counter() - started
            show(report, Console(highlight=False))
            reports.append(report)
    if asked.json is not None:
        file = Path(asked.json).expanduser()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps([as_values(report) for report in reports], indent=2, ensure_ascii=False))
    return 0 if all(report.holds for report in reports) else 1


def prove_batch(proof: Proof) -> None:
    """A step is the same however it is cut up."""
    processes = max(environment.NPROC_PER_NODE.integer() or 1, 2)
    total = processes * max(TOTAL // processes, 2)
    command, notes = comparable(proof.command, total)
    dropouts = still(proof.info, proof.trainings.folder / "model")
    if dropouts:
        notes.append(f"dropout of the model's config is 0 here: {', '.join(dropouts)}")
        command = with_options(command, {"model": str(proof.trainings.folder / "model")}, WHY)
    proof.report.notes += notes
    records = {BASE: proof.train(BASE, command)}
    devices = torch.cuda.device_count() if torch.cuda.is_available() else None
    for variant in batch_variants(command, Setting(total, processes, devices)):
        changed = as_typed(command, variant.changes, variant.name)
        missing = f"{variant.against} was not run" if variant.against not in (*records, "") else ""
        left_out = variant.left_out or refusal(command, changed) or missing
        if not left_out:
            left_out = _try(proof, variant, changed, records)
        if left_out and variant.against:
            proof.report.findings.append(Finding(variant.name, variant.against, left_out=left_out))


def _try(proof: Proof, variant: Variant, command: Sft, records: dict[str, Record]) -> str:
    """Run a variant and compare it; why the options were refused, "" when they were not."""
    try:
        record = records[variant.name] = proof.train(variant.name, command, variant.processes)
    except RefusalError as error:
        return str(error)
    except TrainingError as error:
        proof.report.findings.append(Finding(variant.name, variant.against, error=str(error)))
        return ""
    if variant.note:
        proof.report.notes.append(variant.note)
    if variant.against:
        differences = same_steps(records[variant.against], record, LIMITS[proof.info.dtype])
        proof.report.findings.append(Finding(variant.name, variant.against, tuple(differences)))
    return ""


def prove_resume(proof: Proof) -> None:
    """A training that was interrupted and resumed is the one that was not."""
    middle = proof.steps // 2
    name, against = f"interrupted after step {middle} and resumed", "uninterrupted"
    whole = proof.train(against, proof.command)
    try:
        before = proof.train("interrupted", with_options(proof.command, SAVING, WHY), wish=Wish(stop_after=middle))
        [checkpoint] = checkpoints(before.folder / "run")
        onward = with_options(proof.command, {"resume_from_checkpoint": str(checkpoint)}, WHY)
        after = proof.train("resumed", onward)
    except (TrainingError, RefusalError) as error:
        proof.report.findings.append(Finding(name, against, error=str(error)))
        return
    limits = SAME
    if torch.accelerator.is_available():
        limits = LIMITS[proof.info.dtype]
        proof.report.notes.append(
            "an accelerator adds up in any order: what is equal to the last bit on a CPU is compared with limits here"
        )
    proof.report.findings.append(Finding(name, against, tuple(resumed(whole, before, after, limits))))


def prove_merge(proof: Proof) -> None:
    """The model that was trained is the one that is saved, merged, and read by plain transformers."""
    task = proof.command.values()["task_type"]
    if task not in (None, "causal_lm"):
        proof.report.notes.append(f"what is proven here are logits of words, and --task_type {task} has none")
        return
    command, rate = proof.command, max(proof.command.training.learning_rate or 0, FAST)
    proof.report.notes.append(
        f"--learning_rate is {rate:g} here, constant, so that there is something to see in a few steps"
    )
    command = with_options(command, {**SAVING, **CONSTANT, "learning_rate": rate}, WHY)
    trained = proof.train("trained", command, wish=Wish(logits=True))
    checkpoint = checkpoints(trained.folder / "run")[-1]
    base, dtype = Path(str(command.model.model)), proof.info.dtype
    stages: list[tuple[str, Callable[..., None], tuple[object, ...]]]
    if (checkpoint / "adapter_config.json").is_file():
        merged = proof.trainings.folder / "merged"
        stages = [
            ("the adapter, read from disk by plain peft", adapter_logits, (base, checkpoint, dtype)),
            ("merged, read from disk by plain transformers", merged_logits, (base, checkpoint, merged, dtype)),
        ]
    else:
        nothing = f"--tuner_type {command.method.tuner_type} leaves nothing to merge"
        proof.report.findings.append(Finding("merged", TRAINED, left_out=nothing))
        stages = [("the checkpoint, read from disk by plain transformers", whole_logits, (checkpoint, dtype))]
    expected = logits_of(trained.folder)
    limit = _effect(proof, expected, trained, base)
    for name, function, arguments in stages:
        try:
            found = proof.ask(name, function, trained.trace.rows, *arguments)
            finding = Finding(name, TRAINED, (same_logits("logits", expected, found, limit),))
        except (TrainingError, RefusalError) as error:
            finding = Finding(name, TRAINED, error=str(error))
        proof.report.findings.append(finding)


def _effect(proof: Proof, expected: Tensor, trained: Record, base: Path) -> float:
    """How far logits may be apart: what the type explains, and never more than a tenth of what training has changed."""
    before = proof.ask("before training", whole_logits, trained.trace.rows, base, proof.info.dtype)
    if before.shape != expected.shape:
        return LIMITS[proof.info.dtype].logits  # the vocabulary has grown: they cannot be compared
    change = same_logits("logits", before, expected, 0.0).found
    proof.report.notes.append(f"training has changed these logits by {change:.2g} of their norm")
    return min(LIMITS[proof.info.dtype].logits, change / 10)


PROVE: Mapping[str, Callable[[Proof], None]] = {
    "batch": prove_batch, "resume": prove_resume, "merge": prove_merge,
}  # fmt: skip


def whole_logits(file: Path, rows: list[list[int]], folder: Path, dtype: str) -> None:
    """Write the logits of a checkpoint, read as anybody reads it."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch_dtype(dtype), device_map=_where())
    save_file({"logits": row_logits(model, rows)}, file)


def adapter_logits(file: Path, rows: list[list[int]], base: Path, adapter: Path, dtype: str) -> None:
    """Write the logits of a model with an adapter, both read as anybody reads them."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch_dtype(dtype), device_map=_where())
    save_file({"logits": row_logits(PeftModel.from_pretrained(model, adapter), rows)}, file)


def merged_logits(file: Path, rows: list[list[int]], base: Path, adapter: Path, folder: Path, dtype: str) -> None:
    """Merge an adapter as `swift export` does, and write the logits of what it wrote."""
    words = ["--adapters", str(adapter), "--model", str(base), "--merge_lora", "true", "--output_dir", str(folder)]
    export.run(parse("export", [*words, "--torch_dtype", dtype]))
    whole_logits(file, rows, folder, dtype)


def _model(command: Sft, info: ModelInfo, asked: Proving, folder: Path) -> tuple[Sft, ModelInfo, list[str]]:
    """The command on the model it is proven with, what is known of that, and what is to be said of it."""
    changes = {"model": str(info.path), "check_model": False}
    if info.family is not None:
        changes["model_type"] = info.family
    if not asked.tiny:
        return with_options(command, changes, WHY), info, []
    if info.adapters:
        raise UsageError("--tiny true: the adapter of --adapters does not fit a small model. Drop one of them.")
    if command.values()["quant_method"] is not None or info.quantization is not None:
        raise UsageError("--tiny true: a small model has random weights, which are not quantized. Drop one of them.")
    count = shrink(info, folder / "model")
    note = f"on a small copy of {info.name}: {count:,} random parameters, the same architecture and tokenizer"
    command = with_options(command, {**changes, "model": str(folder / "model")}, WHY)
    return command, model_info(command.model), [note]


def _where() -> torch.device:
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "the CPU"
