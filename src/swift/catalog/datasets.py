"""This file knows the data sets that have a name: where they are, what they consist of, how their rows are prepared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Prepared = dict[str, Any] | None | list[dict[str, Any]]
Prepare = Callable[[dict[str, Any]], Prepared]
"""A row as it is in the file -> a row in a form that is understood; None leaves it out, a list makes several of it."""


@dataclass(frozen=True)
class SubsetDataset:
    """A part or variant of a data set.

    name: what is written behind the colon of `--dataset`.
    subset: its name on the hub; as `name` when not given.
    split: the splits it is read from; those of the data set when not given.
    preprocess_func: prepares its rows: a function of a row, or the name of one in `PREPARATIONS`. `columns` are new
        names of columns, `messages` options of the reader of messages; all three in place of those of the data set.
    is_weak_subset: not part of `all`.
    """

    name: str = "default"
    subset: str | None = None
    split: Sequence[str] | None = None
    preprocess_func: Prepare | str | None = None
    columns: Mapping[str, str] | None = None
    messages: Mapping[str, str] | None = None
    is_weak_subset: bool = False

    @property
    def on_hub(self) -> str:
        """The name of the subset on the hub; `default` where a repository has no subsets."""
        return self.subset or self.name


@dataclass(frozen=True)
class DatasetMeta:
    """A data set known by name.

    ms_dataset_id, hf_dataset_id: its names on ModelScope and Hugging Face.
    dataset_path: a file or folder on this machine, read in place of the hub.
    dataset_name: a short name of its own; two data sets may not have the same.
    subsets: its parts; a text is one of that name.
    split: the splits that are read, one behind the other.
    preprocess_func: prepares rows: a function of a row, or the name of one in `PREPARATIONS`.
    load_function: returns the files of a subset: `load_function(meta, subset) -> paths`, in place of a download.
    columns: new names of columns. messages: options of the reader of messages (`role_key`, `content_key`, ...).
    tags, help: said about it. huge_dataset: whether it is better streamed than read at once.
    has_persona: whether its texts hold the placeholders {{NAME}} and {{AUTHOR}}, to be filled in from --model_name and
        --model_author in the language of the column `tag` (zh, en).
    """

    ms_dataset_id: str | None = None
    hf_dataset_id: str | None = None
    dataset_path: str | None = None
    dataset_name: str | None = None
    subsets: Sequence[SubsetDataset | str] = ("default",)
    split: Sequence[str] = ("train",)
    preprocess_func: Prepare | str | None = None
    load_function: Callable[[DatasetMeta, SubsetDataset], Iterable[str | Path]] | None = None
    columns: Mapping[str, str] | None = None
    messages: Mapping[str, str] | None = None
    tags: Sequence[str] = ()
    help: str | None = None
    huge_dataset: bool = False
    has_persona: bool = field(default=False, kw_only=True)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name it can be asked for by."""
        names = (self.dataset_name, self.ms_dataset_id, self.hf_dataset_id, self.dataset_path)
        return tuple(name for name in names if name)

    @property
    def parts(self) -> tuple[SubsetDataset, ...]:
        """Its subsets."""
        return tuple(SubsetDataset(each) if isinstance(each, str) else each for each in self.subsets)


_VARIANTS_OF_SELF_COGNITION = (
    SubsetDataset(),
    SubsetDataset("qwen3", subset="default", preprocess_func="no_think_and_empty_think"),
    SubsetDataset("empty_think", subset="default", preprocess_func="empty_think"),
)
_HH_RLHF = ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")

_CHAT = (
    DatasetMeta(
        "swift/self-cognition",
        "modelscope/self-cognition",
        dataset_name="self-cognition",
        subsets=_VARIANTS_OF_SELF_COGNITION,
        tags=("chat", "self-cognition"),
        has_persona=True,
    ),
    DatasetMeta("AI-ModelScope/alpaca-gpt4-data-zh", "llm-wizard/alpaca-gpt4-data-zh", tags=("chat", "general")),
    DatasetMeta("AI-ModelScope/alpaca-gpt4-data-en", "vicgalle/alpaca-gpt4", tags=("chat", "general")),
    DatasetMeta("AI-ModelScope/LongAlpaca-12k", "Yukang/LongAlpaca-12k", tags=("long-context", "QA")),
    DatasetMeta("iic/ms_bench", tags=("chat", "general", "multi-round")),
    DatasetMeta(
        "AI-ModelScope/firefly-train-1.1M", "YeungNLP/firefly-train-1.1M", tags=("chat", "general"), huge_dataset=True
    ),
    DatasetMeta("swift/ToolBench", tags=("chat", "agent")),
)
_TEXT = (DatasetMeta("swift/chinese-c4", "shjwudp/chinese-c4", tags=("pretrain",), huge_dataset=True),)
_PREFERENCES = (
    DatasetMeta(
        "AI-ModelScope/hh-rlhf",
        "Anthropic/hh-rlhf",
        subsets=_HH_RLHF,
        preprocess_func="hh_rlhf",
        tags=("rlhf", "dpo"),
    ),
    DatasetMeta(
        "hjh0119/shareAI-Llama3-DPO-zh-en-emoji",
        "shareAI/DPO-zh-en-emoji",
        columns={"answer_zh": "response", "answer_en": "rejected_response"},
        tags=("rlhf", "dpo"),
    ),
    DatasetMeta(
        "AI-ModelScope/ultrafeedback-binarized-preferences-cleaned-kto",
        "argilla/ultrafeedback-binarized-preferences-cleaned-kto",
        tags=("rlhf", "kto"),
    ),
    DatasetMeta(
        "AI-ModelScope/orpo-dpo-mix-40k",
        "mlabonne/orpo-dpo-mix-40k",
        columns={"chosen": "messages", "rejected": "rejected_messages"},
        tags=("rlhf", "dpo", "orpo"),
    ),
)
_REASONING = (
    DatasetMeta("AI-MO/NuminaMath-TIR", "AI-MO/NuminaMath-TIR", tags=("math", "grpo")),
    DatasetMeta("modelscope/gsm8k", "openai/gsm8k", subsets=("main",), preprocess_func="gsm8k", tags=("math", "grpo")),
    DatasetMeta("tastelikefeet/competition_math", tags=("math", "grpo")),
    DatasetMeta(
        "zouxuhong/Countdown-Tasks-3to4",
        "Jiayi-Pan/Countdown-Tasks-3to4",
        preprocess_func="countdown",
        tags=("math", "grpo"),
    ),
    DatasetMeta(
        "open-r1/DAPO-Math-17k-Processed",
        "open-r1/DAPO-Math-17k-Processed",
        subsets=("all", "cn", "en"),
        tags=("math", "grpo"),
    ),
)
_CLASSES_AND_SCORES = (
    DatasetMeta(
        "DAMO_NLP/jd",
        subsets=(
            SubsetDataset(preprocess_func="jd_generation"),
            SubsetDataset("cls", subset="default", columns={"sentence": "query"}),
        ),
        tags=("classification",),
    ),
    DatasetMeta(
        "sentence-transformers/stsb",
        "sentence-transformers/stsb",
        subsets=(
            SubsetDataset(preprocess_func="stsb_similarity"),
            SubsetDataset("positive", subset="default", preprocess_func="stsb_positive"),
            SubsetDataset("generate", subset="default", preprocess_func="stsb_generate"),
            SubsetDataset("reg", subset="default", preprocess_func="stsb_regression"),
        ),
        tags=("embedding", "similarity"),
    ),
    DatasetMeta(
        "MTEB/scidocs-reranking",
        "mteb/scidocs-reranking",
        split=("validation", "test"),
        preprocess_func="scidocs_reranking",
        tags=("reranker",),
    ),
)
BUILT_IN: tuple[DatasetMeta, ...] = (*_CHAT, *_TEXT, *_PREFERENCES, *_REASONING, *_CLASSES_AND_SCORES)
"""Every data set known by name without being registered."""
