"""The table of training arguments the manual does not list, against the installed transformers."""

from __future__ import annotations

import dataclasses
import typing

from transformers import TrainingArguments

from swift.options.commands import Rlhf, Sft
from swift.options.declare import flags
from swift.options.training_extra import NOT_TAKEN, TRAINING_EXTRA

MANUAL = flags(Sft) | flags(Rlhf)
TYPES = {"bool": bool, "int": int, "float": float, "str": str, "list": list, "json": dict}


def test_every_training_argument_is_an_option_of_the_manual_or_in_exactly_one_table():
    fields = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert fields - set(MANUAL) == set(TRAINING_EXTRA) | set(NOT_TAKEN)
    assert not set(TRAINING_EXTRA) & set(NOT_TAKEN)


def test_the_kind_of_each_is_among_the_types_transformers_declares():
    hints = typing.get_type_hints(TrainingArguments)
    for name, kind in TRAINING_EXTRA.items():
        arms = {typing.get_origin(arm) or arm for arm in typing.get_args(hints[name])} or {hints[name]}
        assert TYPES[kind] in arms, (name, kind, arms)
