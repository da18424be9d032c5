"""This file knows how to put into words what the values of an option must be: "a whole number greater than 0"."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from swift.options.declare import Choices
from swift.options.wording import say

KINDS = {bool: "e_bool", int: "e_int", float: "e_float", dict: "e_json"}


def expected(info: FieldInfo, language: str) -> str:
    """What the values of an option are, in words: "a whole number greater than 0"."""
    return _expected(info.annotation, info.metadata, language)


def _expected(annotation: Any, metadata: Sequence[Any], language: str) -> str:
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return _expected(inner, [*more, *metadata], language)
    if any(isinstance(m, BeforeValidator) for m in metadata):
        return say("e_json_or_name" if str in get_args(annotation) else "e_json", language)
    names = next((list(m.table) for m in metadata if isinstance(m, Choices)), None)
    if get_origin(annotation) is Literal:
        names = [str(name) for name in get_args(annotation)]
    if names is not None:
        return say("e_choices", language, names=", ".join(names))
    if get_origin(annotation) is list:
        inner = get_args(annotation) or (str,)
        return say("e_list", language, items=_expected(inner[0], [], language))
    arms = [arm for arm in get_args(annotation) if arm is not type(None)] if _is_union(annotation) else []
    if arms:
        texts = list(dict.fromkeys(_expected(arm, metadata, language) for arm in arms))
        *others, last = texts
        if not others:
            return last
        return say("e_or", language, first=say("e_comma", language).join(others), second=last)
    kind = say(KINDS.get(get_origin(annotation) or annotation, "e_str"), language)
    return _bounded(kind, metadata, language)


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _bounded(kind: str, metadata: Sequence[Any], language: str) -> str:
    bounds: dict[str, Any] = {}
    for m in metadata:
        if isinstance(m, Gt):
            bounds["gt"] = m.gt
        elif isinstance(m, Ge):
            bounds["ge"] = m.ge
        elif isinstance(m, Le):
            bounds["le"] = m.le
        elif isinstance(m, Lt):
            bounds["lt"] = m.lt
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    if low is not None and high is not None:
        return say("e_between", language, kind=kind, low=_plain(low), high=_plain(high))
    if "gt" in bounds:
        return say("e_gt", language, kind=kind, bound=_plain(low))
    if "ge" in bounds:
        return say("e_ge", language, kind=kind, bound=_plain(low))
    if high is not None:
        return say("e_le", language, kind=kind, bound=_plain(high))
    return kind


def _plain(bound: Any) -> str:
    return f"{bound:g}" if isinstance(bound, (int, float)) else str(bound)
