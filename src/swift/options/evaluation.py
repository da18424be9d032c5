"""This file knows the options of benchmarks: EvalScope while training, and `swift eval`."""

from typing import Literal

from pydantic import PositiveInt

from swift.options.conditions import command, equals, given
from swift.options.declare import Json, Options, option

EVALSCOPE = given("eval_use_evalscope")
GENERATION = ("max_tokens", "max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "presence_penalty",
              "frequency_penalty", "num_beams",
              "do_sample", "seed", "stop_seqs")  # fmt: skip
"""What `--eval_generation_config` can hold while training."""


class TrainingEvaluationOptions(Options):
    """Evaluation with EvalScope while training."""

    eval_use_evalscope: bool = option(False, when=command("pt", "sft"))
    """Whether each evaluation also runs benchmarks with EvalScope on the model as it is then."""
    eval_dataset: list[str] = option([], when=EVALSCOPE)
    """Benchmarks of EvalScope to run while training; each logs `test_<benchmark>`."""
    eval_dataset_args: Json | None = option(None, when=EVALSCOPE)
    """EvalScope's settings of the benchmarks, by name of benchmark: `'{"gsm8k": {"few_shot_num": 0}}'`."""
    eval_limit: PositiveInt | None = option(None, when=EVALSCOPE)
    """Most questions of each part of a benchmark; all when not given."""
    eval_generation_config: Json | None = option({"max_tokens": 512}, when=EVALSCOPE)
    """How the model generates in benchmarks: max_tokens, temperature (0 unless given), top_p, top_k, ..."""


class EvaluationOptions(Options):
    """Benchmarks against a served or local model."""

    eval_backend: Literal["Native", "OpenCompass", "VLMEvalKit"] = option("Native", important=True)
    """Who runs the benchmarks: EvalScope itself, or OpenCompass or VLMEvalKit through it."""
    eval_dataset: list[str] = option([], important=True)
    """Benchmarks to run."""
    eval_limit: PositiveInt | None = None
    """Most questions of each benchmark; all when not given."""
    eval_output_dir: str = "eval_output"
    """Folder of the results."""
    eval_num_proc: PositiveInt = 16
    """Most requests under way at a time."""
    eval_url: str | None = None
    """Address of a served model to test, e.g. `http://localhost:8000/v1`. When not given, `--model` is served here."""
    eval_generation_config: Json | None = None
    """How the model generates, e.g. `'{"max_new_tokens": 512}'`."""
    extra_eval_args: Json = option({}, when=equals("eval_backend", "Native"))
    """Further arguments of EvalScope."""
    local_dataset: bool = False
    """Whether the benchmarks that are not loaded on their own are downloaded as one package into ./data."""
