"""Large JSON schemas: they are compiled beside the streams of others, and within limits."""

from __future__ import annotations

import threading
import time

import httpx
import pytest

import serving
from swift.engines import compiling, structures


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    model = serving.checkpoint(tmp_path_factory.mktemp("model") / "tiny")
    with serving.running("--model", str(model)) as made:
        yield made


def schema(properties: int, mark: str = "k") -> dict:
    """An object of many properties; those of another mark have to be compiled anew."""
    patterns = {
        f"{mark}{i}": {"type": "string", "pattern": f"^[a-z{i % 10}]{{1,{50 + i % 50}}}$"} for i in range(properties)
    }
    return {"type": "object", "properties": patterns, "required": list(patterns)}


def ask(server, wanted: dict) -> httpx.Response:
    body = {"model": server.name, "messages": [{"role": "user", "content": "x"}], "max_tokens": 1, "temperature": 0,
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": wanted}}}  # fmt: skip
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120)


def test_streams_go_on_while_a_large_schema_is_compiled(server):
    times: list[float] = []
    is_over = threading.Event()

    def read() -> None:
        body = {"model": server.name, "prompt": "x", "max_tokens": 1900, "temperature": 1, "stream": True}
        while not is_over.is_set():
            with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as stream:
                for line in stream.iter_lines():
                    if line:
                        times.append(time.monotonic())
                    if is_over.is_set():
                        break

    reader = threading.Thread(target=read)
    reader.start()
    try:
        while len(times) < 20:
            time.sleep(0.01)
        began = time.monotonic()
        assert ask(server, schema(5000)).status_code == 200
        took = time.monotonic() - began
    finally:
        is_over.set()
        reader.join(60)
    during = [each for each in times if began < each < began + took]
    gaps = [after - before for before, after in zip([began, *during], [*during, began + took], strict=True)]
    assert took > 0.3, "too small a schema to hold anybody up"
    assert max(gaps) < took / 2, f"{len(during)} events in {took:.2f} s, and {max(gaps):.2f} s without one"


def test_a_structure_that_is_too_large_is_refused(server):
    answer = ask(server, {"enum": ["x" * structures.LARGEST]})
    assert answer.status_code == 400
    assert str(structures.LARGEST) in answer.json()["error"]["message"]
    long = {"model": server.name, "prompt": "x", "structured_outputs_regex": "(" * 9999}
    answer = httpx.post(f"{server.url}/v1/completions", json=long, timeout=60)
    assert answer.status_code == 400
    assert len(answer.content) < 1000, "an error does not repeat all that was sent"


def test_a_structure_that_takes_too_long_is_refused(server, monkeypatch):
    monkeypatch.setattr(compiling, "SECONDS", 0.05)
    answer = ask(server, schema(3000, "other"))
    assert answer.status_code == 400
    assert "0.05 seconds" in answer.json()["error"]["message"]
    monkeypatch.undo()
    assert ask(server, schema(3, "third")).status_code == 200, "the next one waits until the thread is free"
