"""Tests of how a body that cannot be used is refused."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from swift.serve.protocol import ChatRequest, CompletionRequest
from swift.serve.refusals import of_validation

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


def refusal(kind, body):
    with pytest.raises(ValidationError) as error:
        kind.model_validate_json(json.dumps(body))
    return of_validation(error.value)


@pytest.mark.parametrize(
    ("given", "place", "words"),
    [
        ({"stop": [""]}, "stop.0", "at least 1 character"),
        ({"stop": 5}, "stop", "a valid string"),
        ({"tool_choice": "x"}, "tool_choice", "'none', 'auto' or 'required'"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function", "is missing"),
        ({"n": 0, "stop": [""]}, "n", "greater than or equal to 1 (and 1 more)"),
        ({"logit_bias": {"5": "x"}}, "logit_bias.5", "a valid number"),
    ],
)
def test_a_refusal_names_the_place_and_the_nearest_form(given, place, words):
    told = refusal(ChatRequest, CHAT | given)
    assert told.param == place
    assert str(told).startswith(f"`{place}`")
    assert words in str(told)
    assert ("more" in words) == ("more" in str(told))


@pytest.mark.parametrize(
    ("prompt", "place", "words"),
    [
        ([-1], "prompt.0", "greater than or equal to 0"),
        ([], "prompt", "at least 1 item"),
        ([[1, -2]], "prompt.0.1", "greater than or equal to 0"),
        (["a", 1], "prompt.1", "valid"),
        (5, "prompt", "a valid string"),
    ],
)
def test_a_prompt_in_none_of_its_forms(prompt, place, words):
    told = refusal(CompletionRequest, {"model": "m", "prompt": prompt})
    assert told.param == place
    assert words in str(told)
    assert "more" not in str(told)
