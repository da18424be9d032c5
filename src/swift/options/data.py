"""This file knows the options of the data: which rows are read, mixed, split and prepared, and how."""

from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from swift.options.conditions import absent, command, given
from swift.options.declare import Fraction, Json, Options, option

READS_DATA = command("pt", "sft", "rlhf", "infer", "export", "parity", "sample", "web-ui")
HAS_TRAINING_ROWS = given("dataset", "cached_dataset", "load_data_args")
HAS_ROWS = given("dataset", "val_dataset", "cached_dataset", "cached_val_dataset", "load_data_args")
READS_ROWS = given("dataset", "val_dataset", "load_data_args")
"""Rows are read as somebody wrote them; those of cached data sets are prepared already."""
PREPARES = command("pt", "sft", "rlhf", "export")
HAS_VALIDATION_ROWS = given("val_dataset", "cached_val_dataset", "split_dataset_ratio", "load_data_args")


class DataOptions(Options):
    """Which rows are read and how they are prepared."""

    dataset: list[str] = option([], important=True, when=READS_DATA)
    """Data sets to train on, each `id or path[:subset[/subset]][#rows]`. A path is a jsonl, json, csv, txt or parquet
    file or a folder of them. `#rows` draws that many rows, repeating them when there are fewer."""
    val_dataset: list[str] = option([], important=True, when=READS_DATA)
    """Data sets to evaluate or infer on, written like `--dataset`."""
    cached_dataset: list[str] = option([], important=True, when=READS_DATA)
    """Folders of training rows that `swift export --to_cached_dataset true` has prepared, each with an optional
    `#rows`."""
    cached_val_dataset: list[str] = option([], when=READS_DATA)
    """Folders of prepared validation rows."""
    split_dataset_ratio: Fraction = option(0.0, important=True, when=absent("val_dataset") & HAS_TRAINING_ROWS)
    """Share of each training data set that is set apart for validation; 0 sets nothing apart."""
    data_seed: NonNegativeInt = option(42, when=HAS_ROWS)
    """Seed of sampling, splitting and shuffling rows."""
    dataset_num_proc: PositiveInt = option(1, important=True, when=READS_ROWS & PREPARES)
    """Number of processes that prepare rows."""
    load_from_cache_file: bool = option(False, important=True, when=READS_ROWS & PREPARES)
    """Whether rows prepared by an earlier run are used again, and those of this run kept for later ones. Rows are known
    by their bytes and by everything that decides which tokens they become."""
    dataset_shuffle: bool = option(True, when=HAS_ROWS)
    """Whether training rows are shuffled once when they are read. The order within each epoch is
    `--train_dataloader_shuffle`."""
    val_dataset_shuffle: bool = option(False, when=HAS_VALIDATION_ROWS)
    """Whether validation rows are shuffled when they are read."""
    streaming: bool = option(False, when=HAS_ROWS & command("pt", "sft", "rlhf"))
    """Whether rows are read and prepared while training goes on. Their number is unknown, so `--max_steps` must be
    given; shuffling is only as good as `--shuffle_buffer_size`."""
    interleave_prob: list[NonNegativeFloat] | None = option(None, when=given("dataset"))
    """One probability per data set: rows are drawn from the data sets in turn at random instead of one data set after
    the other. Validation data is not affected."""
    stopping_strategy: Literal["first_exhausted", "all_exhausted"] = option(
        "first_exhausted", when=given("interleave_prob")
    )
    """Whether interleaving ends with the first data set that runs out, or goes on until every row was seen."""
    shuffle_buffer_size: PositiveInt = option(1000, when=given("streaming") & given("dataset_shuffle"))
    """Number of rows among which a streamed data set is shuffled."""
    download_mode: Literal["reuse_dataset_if_exists", "force_redownload"] = option(
        "reuse_dataset_if_exists", when=READS_ROWS
    )
    """Whether a downloaded data set is used again or downloaded anew."""
    columns: Json | None = option(None, when=READS_ROWS)
    """New names of columns, e.g. `'{"text1": "query", "text2": "response"}'`, so that rows have a form that is
    understood. Mapping a column to `_` hides it."""
    strict: bool = option(False, when=READS_ROWS)
    """Whether the first bad row is an error. Otherwise bad rows are left out, counted by cause and reported."""
    remove_unused_columns: bool = option(True, important=True, when=HAS_ROWS)
    """Whether columns without a meaning are dropped. false hands them on to the loss; GRPO does so by default, for
    its reward functions."""
    model_name: list[str] | None = option(None, important=True, when=given("dataset", "val_dataset"))
    """Chinese and English name of the model, in this order: fills `{{NAME}}` in the self-cognition data set."""
    model_author: list[str] | None = option(None, important=True, when=given("dataset", "val_dataset"))
    """Chinese and English name of the model's author, in this order: fills `{{AUTHOR}}` in the self-cognition data
    set."""
    custom_dataset_info: list[str] = option([], when=READS_DATA)
    """JSON files, or JSON text, that register data sets: their source, subsets and columns."""
