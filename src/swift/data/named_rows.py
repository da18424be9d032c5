"""This file knows the rows of the data sets that have a name, where their columns alone do not say what they mean.

Each function takes a row as it is in the file and returns one in a form that is understood. A column that is missing is
a RowError: then it is not the data set it is called after.
"""

from __future__ import annotations

import re
from typing import Any

from swift.data.rows import RowError, shown

EMPTY_THINKING = "<think>\n\n</think>\n\n"
POSITIVE_FROM = 0.75
"""The similarity from which a pair of sentences counts as a match."""

_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_SENTIMENTS = ("negative", "positive")


def no_think_and_empty_think(row: dict[str, Any]) -> dict[str, Any]:
    """Self-cognition for models that think unless told not to: the query says so, the reply thinks nothing."""
    return {**empty_think(row), "query": f"{_text(row, 'query')} /no_think"}


def empty_think(row: dict[str, Any]) -> dict[str, Any]:
    """Self-cognition with replies that think nothing."""
    return {**row, "response": EMPTY_THINKING + _text(row, "response")}


def hh_rlhf(row: dict[str, Any]) -> dict[str, Any]:
    """Two transcripts, `chosen` and `rejected`, of the form `\\n\\nHuman: ...\\n\\nAssistant: ...`."""
    return {"messages": _transcript(row, "chosen"), "rejected_messages": _transcript(row, "rejected")}


def gsm8k(row: dict[str, Any]) -> dict[str, Any]:
    """A question and an answer whose last line is `#### number`; the number alone is the `solution`."""
    answer = _text(row, "answer")
    _, mark, number = answer.rpartition("####")
    if not mark:
        raise RowError("answer", "has no line of the form #### number", shown(answer))
    return {"query": _text(row, "question"), "response": answer, "solution": number.strip().replace(",", "")}


def countdown(row: dict[str, Any]) -> dict[str, Any]:
    """Numbers `nums` that shall be calculated to `target`; both stay columns, for the reward."""
    numbers, target = _value(row, "nums"), _value(row, "target")
    query = (
        f"Reach {target} with the numbers {', '.join(str(number) for number in numbers)}, using +, -, * and / and each "
        "number exactly once. Think within <think> </think>, then give the equation within <answer> </answer>, for "
        "example <answer>(1 + 2) / 3</answer>."
    )
    return {**row, "messages": _said(query)}


def jd_generation(row: dict[str, Any]) -> dict[str, Any]:
    """Whether a review is positive, as a question with a one-word answer."""
    label = _value(row, "label")
    if label not in (0, 1):
        raise RowError("label", "is neither 0 nor 1", shown(label))
    query = f"Sentence: {_text(row, 'sentence')}\nIs its sentiment {_SENTIMENTS[0]} or {_SENTIMENTS[1]}?"
    return {"query": query, "response": _SENTIMENTS[int(label)]}


def stsb_similarity(row: dict[str, Any]) -> dict[str, Any]:
    """Two sentences and their similarity, 0 to 1, for an embedding."""
    first, second, score = _sentence_pair(row)
    return {"messages": _said(first), "positive_messages": [_said(second)], "label": score}


def stsb_positive(row: dict[str, Any]) -> dict[str, Any] | None:
    """Two sentences that match; pairs less similar than `POSITIVE_FROM` are left out."""
    first, second, score = _sentence_pair(row)
    return {"messages": _said(first), "positive_messages": [_said(second)]} if score >= POSITIVE_FROM else None


def stsb_generate(row: dict[str, Any]) -> dict[str, Any]:
    """The similarity of two sentences as a question whose answer is a number."""
    return {"query": _similarity_question(row), "response": f"{_sentence_pair(row)[2]:.1f}"}


def stsb_regression(row: dict[str, Any]) -> dict[str, Any]:
    """The similarity of two sentences as a score."""
    return {"query": _similarity_question(row), "label": _sentence_pair(row)[2]}


def scidocs_reranking(row: dict[str, Any]) -> dict[str, Any]:
    """The title of a paper, `query`, with lists of titles that belong to it, `positive`, and that do not, `negative`."""
    documents = {
        f"{side}_messages": [[{"role": "assistant", "content": title}] for title in _value(row, side)]
        for side in ("positive", "negative")
    }
    return {"messages": _said(_text(row, "query")), **documents}


def _value(row: dict[str, Any], column: str) -> Any:
    if row.get(column) is None:
        raise RowError(column, "is missing, although the data set of this name has it", f"columns: {', '.join(row)}")
    return row[column]


def _text(row: dict[str, Any], column: str) -> str:
    value = _value(row, column)
    if not isinstance(value, str):
        raise RowError(column, "is no text", shown(value))
    return value


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _transcript(row: dict[str, Any], column: str) -> list[dict[str, str]]:
    pieces = _TURN.split(_text(row, column))
    if len(pieces) < 3 or pieces[0].strip():
        raise RowError(column, "is no transcript that begins with Human: or Assistant:", shown(pieces[0]))
    speakers = {"Human": "user", "Assistant": "assistant"}
    pairs = zip(pieces[1::2], pieces[2::2], strict=True)
    return [{"role": speakers[name], "content": text.strip()} for name, text in pairs]


def _sentence_pair(row: dict[str, Any]) -> tuple[str, str, float]:
    score = _value(row, "score")
    if not isinstance(score, (int, float)):
        raise RowError("score", "is no number", shown(score))
    return _text(row, "sentence1"), _text(row, "sentence2"), float(score)


def _similarity_question(row: dict[str, Any]) -> str:
    first, second, _ = _sentence_pair(row)
    return f"How similar are these two sentences, from 0.0 to 1.0?\nSentence 1: {first}\nSentence 2: {second}"
