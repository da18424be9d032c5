"""This file knows of which family a checkpoint is, and which layout its conversations take without a template."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swift.catalog.families_text import FAMILIES
from swift.catalog.family import Family
from swift.catalog.layouts import LAYOUTS, Layout
from swift.core.errors import ModelError
from swift.core.registry import did_you_mean
from swift.hub.models import name_of
from swift.options.template import TemplateOptions

if TYPE_CHECKING:
    from swift.models.info import ModelInfo

_HEAD = re.compile(r"(For[A-Z]\w*|LMHeadModel|Model)$")
"""The end of the name of an architecture that tells its head."""


def family(
    wanted: str | None, architectures: Sequence[str], model_type: str, path: Path, noted: str | None
) -> str | None:
    """The family of a checkpoint: the one asked for, else the one its name, its args.json or its architecture tells.

    architectures, model_type: as config.json names them; path: its folder; noted: the family that its args.json names.
    Of several families with this architecture, those that only write text go before the others. None when that leaves
    several. Raises ModelError when the family that was asked for is loaded otherwise than this checkpoint.
    """
    fitting = fitting_families(architectures)
    if wanted is not None:
        return _checked(wanted, fitting, architectures, model_type)
    named = [row for row in FAMILIES.values() if not row.architectures and row.knows(name_of(path))]
    known = [row.name for row in (*fitting, *named) if row.knows(name_of(path))]
    if len(known) == 1:
        return known[0]
    if noted in {row.name for row in (*fitting, *named)}:
        return noted
    writing = [row for row in fitting if row.task == "causal_lm"]
    for rows in (fitting, writing):
        if len(rows) == 1:
            return rows[0].name
    return None


def family_named(checkpoint: str, wanted: str | None) -> Family | None:
    """The family of a checkpoint that is not on this machine yet: the one asked for, else the one its name tells."""
    if wanted is not None:
        return FAMILIES.get(wanted)
    name = checkpoint.rpartition("/")[2]
    known = [row for row in FAMILIES.values() if row.knows(name)]
    return known[0] if len(known) == 1 else None


def fitting_families(architectures: Sequence[str]) -> list[Family]:
    """The families whose models have one of these architectures.

    Where none has, those whose models are the same but for the head: a classifier or an embedding trained on one of
    them is still of its family.
    """
    exact = [row for row in FAMILIES.values() if set(row.architectures) & set(architectures)]
    bodies = {_HEAD.sub("", name) for name in architectures}
    return exact or [row for row in FAMILIES.values() if bodies & {_HEAD.sub("", name) for name in row.architectures}]


def family_task(name: str) -> str:
    """What the models of a family do by themselves; causal_lm where that is none of the tasks of `--task_type`."""
    task = FAMILIES[name].task
    return task if task in ("seq_cls", "embedding", "reranker", "generative_reranker") else "causal_lm"


def layout_for(info: ModelInfo, options: TemplateOptions, tokenizer: Any) -> Layout | None:
    """The layout of conversations for a checkpoint without a chat template of its own; None when none is needed.

    Raises ModelError when its family speaks several and the name of the checkpoint does not tell which.
    """
    if options.template is not None or not options.use_chat_template or tokenizer.chat_template:
        return None
    rows = fitting_families(info.architectures) if info.family not in FAMILIES else [FAMILIES[info.family]]
    found = [template for row in rows if (template := row.template(info.name))]
    names = found if len(rows) == 1 and found else [template for row in rows for template in row.templates]
    names = list(dict.fromkeys(names))
    if len(names) == 1 and names[0] in LAYOUTS:
        return LAYOUTS[names[0]]
    known = [name for name in names if name in LAYOUTS]
    if not rows:
        about = f"no layout is known for its architecture ({', '.join(info.architectures) or 'it names none'})"
    elif not known:
        about = f"the template of its family ({', '.join(names)}) is none that is known by name"
    else:
        about = f"models of this architecture speak several: {', '.join(known)}"
    raise ModelError(
        f"{info.path} has no chat template, and {about}. Name one with --template, or train on plain text with "
        f"--use_chat_template false."
    )


def _checked(wanted: str, fitting: Sequence[Family], architectures: Sequence[str], model_type: str) -> str:
    names = [row.name for row in fitting]
    row = FAMILIES.get(wanted)
    is_loose = row is not None and (not row.architectures or row.loader is not None)
    if wanted in names or wanted == model_type or is_loose:
        return wanted
    hint = "" if wanted in FAMILIES else did_you_mean(wanted, FAMILIES)
    raise ModelError(
        f"--model_type {wanted} does not fit this checkpoint, whose architecture is {', '.join(architectures)} "
        f"({', '.join(names) or model_type}).{hint} Drop --model_type, or pass the model it belongs to."
    )
