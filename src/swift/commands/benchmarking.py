"""This file knows which benchmarks a training asks its model, and with what (`--eval_use_evalscope`)."""

from __future__ import annotations

from functools import partial
from typing import Any

from swift.commands.answering import answering
from swift.commands.preparation import Prepared
from swift.core import environment
from swift.core.logs import get_logger
from swift.engines.settings import context_length_of
from swift.evaluate.examination import Examination, Task, check_benchmarks
from swift.options.commands import Sft
from swift.trainers import processes
from swift.trainers.benchmarks import Benchmarks

FOLDER = "eval"
"""Where, in the folder of a run, each evaluation has a folder of its own, named after its step."""
OPEN_PER_PLACE = 4
"""Questions that may be open for each place in a batch: the next ones come while the model answers."""


def benchmarks_of(prepared: Prepared, model: Any) -> Benchmarks | None:
    """The benchmarks of a training; None when it has none. They are known to EvalScope, or an error says which are not."""
    command = prepared.command
    if not command.evaluation.eval_use_evalscope:
        return None
    task = task_of(command, prepared.info.name)
    processes.decided(lambda: check_benchmarks(task.benchmarks))

    def begin(step: int) -> Examination:
        folder = prepared.folder / FOLDER / f"step-{step}"
        get_logger().info("benchmarks after step %d: %s; results go to %s", step, ", ".join(task.benchmarks), folder)
        return Examination(task, folder)

    return Benchmarks(
        task.benchmarks,
        begin,
        partial(answering, prepared, model),
        form=prepared.renderer.tool_format,
        context_length=prepared.info.max_length or context_length_of(model),
    )


def task_of(command: Sft, model: str) -> Task:
    """What the examiner is told, in EvalScope's words."""
    options, general = command.evaluation, command.general
    generation = dict(options.eval_generation_config or {})
    if "max_new_tokens" in generation:
        generation["max_tokens"] = generation.pop("max_new_tokens")
    places = command.training.per_device_eval_batch_size * environment.world_size()
    return Task(
        tuple(options.eval_dataset), model, places * OPEN_PER_PLACE, general.seed, options.eval_dataset_args or {},
        options.eval_limit, generation, "huggingface" if general.use_hf else "modelscope",
    )  # fmt: skip
