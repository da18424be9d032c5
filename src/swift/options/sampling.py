"""This file knows the options of `swift sample`: many replies per prompt, and which of them are kept."""

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from swift.options.conditions import equals, given
from swift.options.declare import Fraction, Json, Options, option


class SamplingOptions(Options):
    """Sampling of many replies with rewards."""

    prm_model: str | None = None
    """Process reward model: a model, or the name of one that is registered by a plugin."""
    orm_model: str | None = None
    """Outcome reward: the name of one that is registered, usually a comparison with the answer or a test."""
    sampler_type: Literal["sample", "distill"] = "sample"
    """Whether replies come from a model here, or are distilled from one behind an API."""
    sampler_engine: Literal["transformers", "lmdeploy", "vllm", "client", "no"] = "transformers"
    """Engine that generates; client for an API, no to score the replies of `--cache_files`."""
    output_dir: str = "sample_output"
    """Folder of the results."""
    output_file: str | None = None
    """Name of the result file, a .jsonl without folder; the time of the run when not given."""
    override_exist_file: bool = False
    """Whether a result file of this name may be replaced."""
    num_sampling_batch_size: PositiveInt = 1
    """Prompts per batch."""
    num_sampling_batches: PositiveInt | None = None
    """Most batches; all when not given."""
    n_best_to_keep: PositiveInt = option(5, when=given("prm_model", "orm_model"))
    """How many of the best replies to a prompt are kept."""
    data_range: list[NonNegativeInt] = option([])
    """Which part of the data this process does, as two numbers: `2 3` is the last of three parts, counted from 0."""
    prm_threshold: float = option(0.0, when=given("prm_model"))
    """Process reward a reply must exceed to be kept."""
    easy_query_threshold: Fraction | None = option(None, when=given("orm_model"))
    """Prompts of which more than this share of replies is right are left out as too easy; all are kept when not
    given."""
    engine_kwargs: Json | None = None
    """Further arguments of the engine, e.g. `'{"cache_max_entry_count": 0.7}'`."""
    num_return_sequences: PositiveInt = option(64, when=equals("sampler_type", "sample"))
    """Replies that are sampled per prompt."""
    cache_files: list[str] = option([])
    """Result files of an earlier run without reward models, whose replies are scored now; with `--sampler_engine no`
    generator and reward model need not fit in memory together. Give the same `--dataset` again."""
