"""This file knows the data sets that have a name of their own and need more than reading."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Subset:
    """A variant of a data set: what is put behind every query and before every response."""

    after_query: str = ""
    before_response: str = ""


@dataclass(frozen=True)
class Dataset:
    """A data set known by name.

    names: its names on hubs and its alias.
    columns: the columns it has.
    subsets: its variants by name; "default" is taken when none is asked for.
    has_persona: whether its texts hold the placeholders {{NAME}} and {{AUTHOR}}, to be filled in from --model_name and
        --model_author in the language of the column `tag` (zh, en).
    """

    names: tuple[str, ...]
    columns: tuple[str, ...]
    subsets: dict[str, Subset]
    has_persona: bool = False


_EMPTY_THINKING = "<think>\n\n</think>\n\n"

DATASETS: tuple[Dataset, ...] = (
    Dataset(
        names=("swift/self-cognition", "modelscope/self-cognition", "self-cognition"),
        columns=("query", "response", "tag"),
        subsets={
            "default": Subset(),
            "qwen3": Subset(after_query=" /no_think", before_response=_EMPTY_THINKING),
            "empty_think": Subset(before_response=_EMPTY_THINKING),
        },
        has_persona=True,
    ),
)
"""Every data set known by name."""


def known_dataset(name: str) -> Dataset | None:
    """The data set of this name, or whose name is the last part of this path (its suffix aside); None when unknown."""
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    stem = last.partition(".")[0]
    for dataset in DATASETS:
        lasts = {known.rpartition("/")[2] for known in dataset.names}
        if name in dataset.names or last in lasts or stem in lasts:
            return dataset
    return None
