"""Requests that are sound, and ways to spoil them: for tests and for `benchmarks/fuzz_server.py`."""

from __future__ import annotations

import json
import random
from typing import Any

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"enum": [1, None]}}, "required": ["a"]}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": "x"}'}}
CHATS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "hi"}]},
    {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}], "stream": True, "n": 2,
     "stream_options": {"include_usage": True}},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "logprobs": True, "top_logprobs": 2},
    {"messages": [{"role": "user", "content": "hi"}], "tools": [TOOL], "tool_choice": "auto", "max_tokens": 3},
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "tool_calls": [CALL]},
                  {"role": "tool", "tool_call_id": "c", "content": "r"}], "tools": [TOOL]},
    {"messages": [{"role": "user", "content": "hi"}], "response_format": {"type": "json_object"}, "seed": 3},
    {"messages": [{"role": "user", "content": "hi"}],
     "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}},
    {"messages": [{"role": "user", "content": "hi"}], "structured_outputs_regex": "a[bc]+d", "stop": ["b", "zz"]},
    {"messages": [{"role": "user", "content": "hi"}], "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1,
     "presence_penalty": 1.0, "frequency_penalty": -1.0, "repetition_penalty": 1.1, "num_beams": 1},
    {"messages": [{"role": "user", "content": "hi"}], "chat_template_kwargs": {"enable_thinking": False}, "user": "u"},
]  # fmt: skip
TEXTS: list[dict[str, Any]] = [
    {"prompt": "hi"}, {"prompt": ["a", "b"], "echo": True, "n": 2}, {"prompt": [5, 6, 7], "logprobs": 2, "stop": "x"},
    {"prompt": [[5, 6], [7]], "stream": True, "max_tokens": 3}, {"prompt": "x", "echo": True, "max_tokens": 0},
]  # fmt: skip
OTHERS: dict[str, list[dict[str, Any]]] = {
    "/v1/embeddings": [{"input": "x"}, {"input": [[1, 2], [3]], "encoding_format": "base64", "dimensions": 4}],
    "/v1/rerank": [{"query": "q", "documents": ["a", {"text": "b"}], "top_n": 1}],
    "/rerank": [{"query": "q", "documents": ["a"], "return_documents": True}],
    "/v1/score": [{"text_1": "a", "text_2": ["b", "c"]}],
    "/score": [{"text_1": ["a"], "text_2": ["b"]}],
    "/v1/classify": [{"input": ["a", "b"]}],
    "/classify": [{"messages": [{"role": "user", "content": "x"}]}],
}
BODIES: dict[str, list[dict[str, Any]]] = {"/v1/chat/completions": CHATS, "/v1/completions": TEXTS, **OTHERS}
MODEL = "tiny"
SOUND = {path: {"model": MODEL, **bodies[0]} for path, bodies in BODIES.items()}
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**70), 1e308, 1e-308, 0.1, "", "x", "\x00", "é\u2028", "\ud800",
    "<|im_end|>", "<think>", "<image>", "x" * 5000, [], {}, [[]], [None], {"a": {}}, "tool", "assistant", "(((", "[a-",
    {"type": "object", "properties": []}, {"$ref": "#"}, {"$ref": "#/$defs/x"}, {"type": "integer", "minimum": "x"},
    {"anyOf": []}, {"type": "array", "items": {"$ref": "#"}, "minItems": 3}, {"pattern": "(?=x)"},
    {"type": "image_url", "image_url": {"url": "http://127.0.0.1/x"}},
]  # fmt: skip


def mutated(draw: random.Random) -> tuple[str, bytes]:
    """A route, and a body that was sound before something happened to its values or to its bytes."""
    path = draw.choice([*BODIES] + ["/v1/chat/completions"] * 6 + ["/v1/completions"] * 3)
    body = {"model": MODEL, **json.loads(json.dumps(draw.choice(BODIES[path])))}
    for _ in range(draw.choice((0, 1, 1, 1, 2, 4))):
        body = _changed(body, draw)
    text = json.dumps(body, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")
    return path, _spoilt(text, draw) if draw.random() < 0.4 else text


def _changed(value: Any, draw: random.Random, depth: int = 0) -> Any:
    """A value with one part of it replaced, left out, doubled or buried."""
    if not isinstance(value, (dict, list)) or not value or (depth and draw.random() < 0.2):
        return _buried(value, draw) if draw.random() < 0.02 else draw.choice(ODD)
    if isinstance(value, dict):
        key = draw.choice([*value])
        if draw.random() < 0.15:
            return {**value, draw.choice(["x", "", "role", "content", "tools", "stop", "n"]): draw.choice(ODD)}
        if draw.random() < 0.15:
            return {name: each for name, each in value.items() if name != key}
        return {**value, key: _changed(value[key], draw, depth + 1)}
    place = draw.randrange(len(value))
    if draw.random() < 0.2:
        return value + [value[place]] * draw.choice((1, 3, 40))
    return [*value[:place], _changed(value[place], draw, depth + 1), *value[place + 1 :]]


def _buried(value: Any, draw: random.Random) -> Any:
    for _ in range(draw.choice((10, 150, 250))):
        value = [value] if draw.random() < 0.5 else {"a": value}
    return value


def _spoilt(text: bytes, draw: random.Random) -> bytes:
    """Bytes that are changed, taken out, put in, cut off or repeated."""
    body = bytearray(text)
    for _ in range(draw.choice((1, 1, 2, 5, 20))):
        place = draw.randrange(len(body) + 1) if body else 0
        kind = draw.randrange(5)
        if kind == 0 and place < len(body):
            body[place] = draw.randrange(256)
        elif kind == 1:
            del body[place : place + draw.choice((1, 2, 8))]
        elif kind == 2:
            body[place:place] = bytes(draw.randrange(256) for _ in range(draw.choice((1, 4))))
        elif kind == 3:
            body[place:place] = draw.choice(
                (b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\u0000", b"1e999", b"null", b"-")
            )
        elif draw.random() < 0.2:
            del body[place:]
    return bytes(body)
