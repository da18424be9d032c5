"""This file knows how a model is made to read further than it was trained: `--rope_scaling` and `--max_model_len`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from swift.core.errors import ModelError

NEEDS_FACTOR = frozenset({"linear", "dynamic", "yarn", "llama3"})
"""Types whose formula stretches by a factor."""
KEEPS_ORIGINAL = frozenset({"yarn", "llama3", "longrope"})
"""Types whose formula takes the original length from the rope parameters themselves."""


@dataclass(frozen=True)
class RopePlan:
    """The rotary embedding a model is loaded with.

    scaling: what replaces the checkpoint's scaling; None leaves it as it is.
    max_length: the longest context, in tokens; None when neither checkpoint nor options say.
    config_length: what the config's length keys become; None leaves them. For `dynamic` it is the original length,
        because that formula takes the length it stretches from there: with max_length in its place nothing would be
        stretched.
    warning: what is probably a mistake, in one sentence.
    """

    scaling: Mapping[str, Any] | None
    max_length: int | None
    config_length: int | None = None
    warning: str | None = None


def plan_rope(
    wanted: Mapping[str, Any] | str | None,
    max_model_len: int | None,
    existing: Mapping[str, Any] | None,
    max_length: int | None,
) -> RopePlan:
    """What `--rope_scaling` and `--max_model_len` make of a checkpoint.

    wanted: a type (linear, dynamic, yarn), a whole mapping, or None.
    existing: the rope scaling of the checkpoint, if it has one.
    max_length: the longest context by the checkpoint's config, L_config.

    The original length is L0 = `original_max_position_embeddings` where it is said, else L_config / existing factor.
    A factor that is not given is max(ceil(max_model_len / L0), 1); a max_model_len that is not given is L0 * factor.
    Raises ModelError when type, factor or original length are missing and cannot be derived.
    """
    known = _typed({key: value for key, value in (existing or {}).items() if value is not None})
    asked = {"rope_type": wanted} if isinstance(wanted, str) else _typed(wanted or {})
    if not asked:
        if max_model_len is None:
            return RopePlan(None, max_length)
        if known.get("rope_type", "default") == "default":
            return RopePlan(None, max_model_len, max_model_len)
        asked = {key: value for key, value in known.items() if key != "factor"}
    if "rope_type" not in asked:
        raise ModelError(
            f'--rope_scaling needs a type, as in \'{{"type": "yarn", "factor": 2.0}}\': linear, dynamic or yarn '
            f"(got {dict(asked)})."
        )
    if asked["rope_type"] == "default":
        return RopePlan(asked, max_model_len or max_length, max_model_len)
    return _stretched(asked, _original_length(asked, known, max_length), max_model_len, max_length)


def _stretched(asked: dict[str, Any], original: int, max_model_len: int | None, max_length: int | None) -> RopePlan:
    """The plan for a type that stretches: with its factor and its original length filled in."""
    rope_type = asked["rope_type"]
    if asked.get("factor") is None and rope_type in NEEDS_FACTOR:
        if max_model_len is None:
            raise ModelError(
                f"--rope_scaling {rope_type} needs a factor. Give --max_model_len (the factor is then "
                f'max_model_len / {original}), or --rope_scaling \'{{"type": "{rope_type}", "factor": 2.0}}\'.'
            )
        asked["factor"] = float(max(math.ceil(max_model_len / original), 1))
    factor = asked.get("factor")
    if factor is not None and factor < 1:
        raise ModelError(f"--rope_scaling: the factor must be at least 1 (got {factor}).")
    if rope_type in KEEPS_ORIGINAL:
        asked["original_max_position_embeddings"] = original
    else:
        asked.pop("original_max_position_embeddings", None)
    reach = int(original * factor) if factor is not None else max_length
    warning = None
    if max_model_len is not None and reach is not None and max_model_len > reach:
        warning = (
            f"--max_model_len {max_model_len} is beyond what the scaled rope reaches: {original} x {factor} = {reach}"
        )
    length = max_model_len or reach
    return RopePlan(asked, length, original if rope_type == "dynamic" else length, warning)


def _typed(scaling: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping of its own, with the type under the name `rope_type` (older checkpoints and users say `type`)."""
    named = dict(scaling)
    old = named.pop("type", None)
    if old is not None:
        named.setdefault("rope_type", old)
    return named


def _original_length(asked: Mapping[str, Any], known: Mapping[str, Any], max_length: int | None) -> int:
    for source in (asked, known):
        if source.get("original_max_position_embeddings"):
            return int(source["original_max_position_embeddings"])
    if max_length is not None:
        stretched = known.get("rope_type") != "dynamic"
        return int(max_length / known.get("factor", 1.0)) if stretched else max_length
    raise ModelError(
        "--rope_scaling needs the length the model was trained with, and its config.json does not say one. Add "
        '"original_max_position_embeddings" to the JSON of --rope_scaling.'
    )
