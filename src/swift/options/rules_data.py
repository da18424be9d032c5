"""This file knows the rules between options of the data."""

from __future__ import annotations

from swift.options.case import Case, Rules, exclusive
from swift.options.conditions import TRAINING, Words

rule = Rules()


@rule(*TRAINING)
def training_needs_rows(case: Case) -> Words | None:
    """There is nothing to learn from otherwise."""
    if case["dataset"] or case["cached_dataset"]:
        return None
    return Words(
        "--dataset is missing: give at least one data set to train on.", "缺少 --dataset：请至少给出一个训练数据集。"
    )


@rule(*TRAINING)
def a_stream_needs_an_end(case: Case) -> Words | None:
    """The number of rows of a stream is unknown, and with it the number of steps."""
    if not case["streaming"] or case["max_steps"] > 0:
        return None
    return Words(
        "--streaming needs --max_steps, because the number of rows is not known beforehand.",
        "--streaming 需要 --max_steps，因为流式数据集的长度事先未知。",
    )


@rule()
def streams_are_not_cached(case: Case) -> Words | None:
    """A cached data set is read by position."""
    return exclusive(case, "streaming", "cached_dataset", "cached rows are read by position", "缓存数据集按位置读取")


@rule(*TRAINING)
def streams_are_prepared_as_they_come(case: Case) -> Words | None:
    """Nothing of a stream can be set apart, kept or divided among processes before it is read."""
    if not case["streaming"] or case["val_dataset"]:  # which is prepared beforehand
        return None
    used = {
        "split_dataset_ratio": case["split_dataset_ratio"],
        "dataset_num_proc": case["dataset_num_proc"] > 1,
        "load_from_cache_file": case["load_from_cache_file"],
    }
    flag = next((name for name, is_used in used.items() if is_used), None)
    if flag is None:
        return None
    return Words(
        f"--{flag} cannot be used together with --streaming, whose rows are prepared while training goes on. Remove one "
        "of them; rows to evaluate on are given with --val_dataset.",
        f"--{flag} 不能与 --streaming 同时使用：流式数据在训练过程中才被处理。请去掉其中一个；验证数据请用 --val_dataset 给出。",
    )


@rule()
def one_probability_per_data_set(case: Case) -> Words | None:
    """Interleaving draws from each data set."""
    given, wanted = len(case["interleave_prob"] or ()), len(case["dataset"] or ())
    if not given or given == wanted:
        return None
    return Words(
        f"--interleave_prob needs one probability per data set (got {given} for {wanted} in --dataset).",
        f"--interleave_prob 的个数应与 --dataset 一致（得到 {given} 个，数据集有 {wanted} 个）。",
    )


@rule(*TRAINING)
def lazy_rows_have_no_lengths(case: Case) -> Words | None:
    """Packing, grouping and streaming decide about preparation themselves."""
    others = [name for name in ("packing", "streaming", "group_by_length") if case[name]]
    if not case["lazy_tokenize"] or not others:
        return None
    return Words(
        f"--lazy_tokenize cannot be used together with --{others[0]}, which prepares rows in its own way. Remove one.",
        f"--lazy_tokenize 不能与 --{others[0]} 同时使用，后者有自己的预处理方式。请去掉其中一个。",
    )


@rule(*TRAINING)
def grouping_needs_lengths_and_shuffling(case: Case) -> Words | None:
    """Lengths of a stream are unknown; groups are drawn at random."""
    if not case["group_by_length"] or (case["train_dataloader_shuffle"] and not case["streaming"]):
        return None
    return Words(
        "--group_by_length needs --train_dataloader_shuffle true and no --streaming: groups are drawn at random among "
        "rows of known length.",
        "--group_by_length 需要 --train_dataloader_shuffle true 且不能使用 --streaming：分组需要已知长度并带随机性。",
    )
