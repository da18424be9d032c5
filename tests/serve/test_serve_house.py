"""What the server asks of those who ask: a key, bodies within limits, patience; what it counts, and how it ends."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import openai
import pytest

import serving
from swift.core.errors import EngineError
from swift.serve import front
from swift.serve import server as network
from swift.serve.gate import Gate
from swift.serve.refusals import Refusal
from swift.serve.server import bind

HELLO = [{"role": "user", "content": "What is two and two?"}]
CHAT = {"messages": HELLO, "temperature": 0, "max_tokens": 8}


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A model that all servers of this file share."""
    model = serving.checkpoint(tmp_path_factory.mktemp("model") / "tiny")
    _, _, made = serving.front("--model", str(model))
    yield made
    made.served.model.close()


@pytest.fixture
def start(opened):
    """Starts servers of the same model with other words."""

    def started(*words: str):
        return serving.running("--model", str(opened.info.path), *words, opened=opened)

    return started


def post(server, body, path="/v1/chat/completions", **more) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json={"model": server.name, **body}, timeout=60, **more)


def talk(server, sent: bytes, pause: float = 0.0, rest: bytes = b"") -> bytes:
    """What a server says to bytes, when no more come, or after a pause some more."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as wire:
        wire.sendall(sent)
        if rest:
            time.sleep(pause)
            wire.sendall(rest)
        said = b""
        while chunk := wire.recv(65536):
            said += chunk
            if b"\r\n0\r\n\r\n" in said or (b"content-length" in said.lower() and b"close" not in said.lower()):
                break
        return said


def eventually(what, seconds: float = 15.0) -> bool:
    """Whether something becomes true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():
            return True
        time.sleep(0.02)
    return False


# --------------------------------------------------------------------------------------------------------------- the key


@pytest.mark.parameter("api_key")
def test_without_the_key_nothing_is_answered_but_whether_the_server_is_there(start, caplog):
    with start("--api_key", "s3cret-K") as server:
        for path in ("/health", "/ping"):
            assert httpx.get(server.url + path).status_code == 200
        assert httpx.post(server.url + "/ping").status_code == 200
        for path in ("/v1/models", "/metrics", "/docs", "/openapi.json", "/nowhere"):
            assert httpx.get(server.url + path).status_code == 401, path
        for wrong in ("x", "s3cret-", "s3cret-KK", "s3cret-k"):
            answer = post(server, CHAT, headers={"Authorization": f"Bearer {wrong}"})
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
        assert httpx.get(server.url + "/v1/models", headers={"Authorization": "Basic s3cret-K"}).status_code == 401
        with pytest.raises(openai.AuthenticationError):
            server.client(api_key="wrong").models.list()
        assert [each.id for each in server.client(api_key="s3cret-K").models.list()] == ["tiny"]
        assert post(server, CHAT, headers={"Authorization": "Bearer s3cret-K"}).status_code == 200
    assert "s3cret" not in caplog.text
    assert "s3cret" not in json.dumps(server.rows)


@pytest.mark.parameter("owned_by", "served_model_name")
def test_the_list_of_models_says_name_and_owner(start, opened, tmp_path):
    with start("--owned_by", "me") as server:
        (card,) = server.client().models.list().data
        assert (card.id, card.object, card.owned_by) == ("tiny", "model", "me")
        assert server.client().models.retrieve("tiny") == card
        with pytest.raises(openai.NotFoundError):
            server.client().models.retrieve("other")
    with serving.running("--model", str(opened.info.path), "--served_model_name", "other") as server:
        assert [card.id for card in server.client().models.list()] == ["other"]
        assert post(server, CHAT).json()["model"] == "other"
        assert httpx.post(f"{server.url}/v1/completions", json={"model": "tiny", "prompt": "x"}).status_code == 404


# -------------------------------------------------------------------------------------------------------------- the body


@pytest.mark.parameter("max_body_size")
def test_a_body_that_is_too_large_is_refused_before_it_is_read(start):
    with start("--max_body_size", "1") as server:
        assert post(server, {**CHAT, "user": "x" * (1 << 20)}).status_code == 413
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n"
        began = time.monotonic()
        assert b" 413 " in talk(server, head, rest=b"{")
        chunk = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        assert b" 413 " in talk(server, head + chunk, rest=chunk + b"0\r\n\r\n")
        assert time.monotonic() - began < 15
        assert post(server, CHAT).status_code == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400), (b"{", 400), (b"[]", 400), (b"null", 400), (b"\xff\xfe", 400), (b'{"model": "tiny"}', 400),
        (b'{"model": NaN}', 400), (b"[" * 100_000, 400), (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, 400),
        (b'{"model": "tiny", "prompt": "x", "n": 1e400}', 400), (b'{"model": "\\ud800", "prompt": "x"}', 400),
        (b'{"model": "tiny", "prompt": "x", "seed": 99999999999999999999}', 400),
        (b'{"model": "tiny", "prompt": "x", "temperature": Infinity}', 400),
        (b'{"model": "nobody", "prompt": "x"}', 404), (b'{"model": "tiny", "prompt": "x"}', 200),
    ],
)  # fmt: skip
def test_whatever_the_body_the_answer_is_quick_and_in_the_form_of_the_protocol(shared, body, status):
    began = time.monotonic()
    answer = httpx.post(f"{shared.url}/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    if status != 200:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert len(answer.content) < 2000
        assert time.monotonic() - began < 2


@pytest.fixture(scope="module")
def shared(opened):
    with serving.running("--model", str(opened.info.path), opened=opened) as made:
        yield made


def test_other_kinds_of_bodies_routes_and_methods_are_refused(shared):
    url = f"{shared.url}/v1/completions"
    assert httpx.post(url, data={"a": "b"}).status_code == 415
    assert httpx.post(url, content=b"{}", headers={"Content-Encoding": "gzip"}).status_code == 415
    assert httpx.get(url).status_code == 405
    assert httpx.get(f"{shared.url}/v2/none").json()["error"]["code"] == "no_such_route"
    assert httpx.delete(f"{shared.url}/v1/models").status_code == 405
    assert b" 400 " in talk(shared, b"nonsense\r\n\r\n")


def test_a_body_that_does_not_come_and_a_head_that_does_not_end_are_given_up(start, monkeypatch):
    monkeypatch.setattr(front.BodyLimits.__init__, "__defaults__", (0.3, 1.0))
    monkeypatch.setattr(network, "HEAD_SECONDS", 0.5)
    with start() as server:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
        assert b" 408 " in talk(server, head + b"{")
        assert talk(server, b"GET /health HTTP/1.1\r\nHo") == b""
        assert talk(server, b"") == b""
        first = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as wire:
            wire.sendall(first)
            assert b" 200 " in wire.recv(65536)
            wire.sendall(first[:10])
            assert wire.recv(65536) == b"", "the second head has to end as well"


# ------------------------------------------------------------------------------------------------------ many at a time


@pytest.mark.parameter("max_requests")
def test_one_too_many_is_told_to_come_back_and_does_so(start):
    with start("--max_requests", "1") as server:
        with server.client().chat.completions.create(
            model=server.name, messages=HELLO, max_tokens=1500, stream=True
        ) as stream:
            next(iter(stream))
            answer = post(server, CHAT)
            assert answer.status_code == 429
            assert int(answer.headers["retry-after"]) > 0
            assert answer.json()["error"]["type"] == "rate_limit_error"
            assert httpx.get(f"{server.url}/health").status_code == 200
        assert server.client(max_retries=5).chat.completions.create(model=server.name, **CHAT).choices


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_place(start, stream):
    with start("--max_requests", "1") as server:
        body = json.dumps({"model": server.name, "messages": HELLO, "max_tokens": 1900, "stream": stream}).encode()
        with socket.create_connection(("127.0.0.1", server.port)) as wire:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            wire.sendall(head.encode() + body)
            assert eventually(lambda: server.gate.inside == 1)
            if stream:
                wire.recv(100)
        assert eventually(lambda: server.gate.inside == 0, 5)
        assert post(server, CHAT).status_code == 200
        left = [row for row in server.rows if row.get("left")]
        assert len(left) == 1
        assert left[0]["completion_tokens"] < 1900


def test_a_reader_that_stands_still_is_cut_off_and_holds_nobody_up(start, monkeypatch):
    monkeypatch.setattr(network, "WRITE_SECONDS", 0.5)
    with start() as server:
        body = json.dumps({"model": server.name, "prompt": "x", "max_tokens": 1900, "stream": True, "n": 4,
                           "logprobs": 20, "temperature": 1}).encode()  # fmt: skip
        with socket.socket() as wire:
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            wire.connect(("127.0.0.1", server.port))
            head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            wire.sendall(head.encode() + body)
            assert eventually(lambda: server.gate.inside == 1)
            assert post(server, CHAT).status_code == 200
            assert eventually(lambda: server.gate.inside == 0, 60)


def test_clients_that_write_and_read_a_byte_at_a_time_hold_nobody_up(start):
    body = json.dumps({"model": "tiny", "prompt": "x", "max_tokens": 1900, "stream": True, "temperature": 1}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    is_over = threading.Event()

    def dribble(wires: list[socket.socket]) -> None:
        place = 0
        while not is_over.wait(0.2) and place < len(body) - 1:
            for wire in wires[:40]:
                wire.sendall(body[place : place + 1])
            for wire in wires[40:]:
                wire.recv(1)
            place += 1

    with start("--max_requests", "8") as server, ExitStack() as open_wires:
        wires = []
        for sent in [head] * 40 + [head + body] * 4:
            wire = open_wires.enter_context(socket.socket())
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            wire.settimeout(20)
            wire.connect(("127.0.0.1", server.port))
            wire.sendall(sent)
            wires.append(wire)
        slow = threading.Thread(target=dribble, args=[wires])
        slow.start()
        try:
            assert eventually(lambda: server.gate.inside == 4)
            statuses = [post(server, CHAT).status_code for _ in range(20)]
            assert server.gate.inside <= 4, "who still writes has no place"
        finally:
            is_over.set()
            slow.join(30)
    assert statuses == [200] * 20


@pytest.mark.slow
def test_two_hundred_streams_do_not_mix_and_leave_nothing_open(start):
    import asyncio

    async def one(client, server, number):
        text = "".join("abcdefghij"[int(digit)] for digit in f"{number:04d}")
        body = {"model": server.name, "messages": HELLO, "max_tokens": 40, "stream": True,
                "structured_outputs_regex": f"say {text}"}  # fmt: skip
        said = ""
        async with client.stream("POST", f"{server.url}/v1/chat/completions", json=body) as answer:
            assert answer.status_code == 200
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    said += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
        assert said == f"say {text}"

    async def everybody(server):
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        async with httpx.AsyncClient(timeout=120, limits=limits) as client:
            await asyncio.gather(*(one(client, server, number) for number in range(200)))

    def files() -> int:
        return len([*Path("/proc/self/fd").iterdir()])

    with start() as server:
        post(server, CHAT)
        before = files()
        asyncio.run(everybody(server))
        assert eventually(lambda: server.gate.inside == 0)
        assert eventually(lambda: files() <= before), f"{files()} files are open, and {before} were"


# ------------------------------------------------------------------------------------------------------------- the end


def test_a_server_that_ends_lets_requests_go_on_and_takes_no_more(start):
    with start() as server:
        with server.client().chat.completions.create(
            model=server.name, messages=HELLO, max_tokens=400, temperature=0, stream=True
        ) as stream:
            chunks = iter(stream)
            next(chunks)
            server.gate.close()
            assert httpx.get(f"{server.url}/health").status_code == 503
            answer = post(server, CHAT)
            assert answer.status_code == 503
            assert answer.headers["connection"] == "close"
            assert list(chunks)[-1].choices[0].finish_reason in ("length", "stop")
        assert eventually(lambda: not _listens(server.port), 10)


def _listens(port: int) -> bool:
    with socket.socket() as wire:
        return wire.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parameter("port", "host")
def test_a_port_that_is_taken_is_named(start):
    with start() as server, pytest.raises(EngineError, match=f"--port {server.port} cannot be served on --host"):
        bind("127.0.0.1", server.port)
    with pytest.raises(EngineError, match=r"--host no\.such\.host\.invalid"):
        bind("no.such.host.invalid", 8000)


def test_a_gate_counts():
    gate = Gate(1)
    with gate.entered(), pytest.raises(Refusal, match="1 requests"), gate.entered():
        pass
    assert gate.inside == 0
    gate.close()
    with pytest.raises(Refusal, match="shutting down"), gate.entered():
        pass
    assert gate.is_drained


# ------------------------------------------------------------------------------------------------------- what is counted


def test_requests_are_written_down_and_counted(start):
    with start() as server:
        before = httpx.get(f"{server.url}/metrics").text
        assert "swift_requests_inside 0.0" in before
        reply = post(server, CHAT).json()
        post(server, {"messages": HELLO, "temperature": 9000})
        (row,) = server.rows
        assert row["id"] == reply["id"]
        assert row["request"] == {"model": "tiny", **CHAT}
        assert row["response"][0]["content"] == reply["choices"][0]["message"]["content"]
        assert row["prompt_tokens"] == reply["usage"]["prompt_tokens"]
        assert 0 < row["first_token_seconds"] <= row["seconds"]
        told = httpx.get(f"{server.url}/metrics").text
        assert 'swift_requests_total{path="/v1/chat/completions",status="200"} 1.0' in told
        assert 'swift_requests_total{path="/v1/chat/completions",status="400"} 1.0' in told
        assert f"swift_generated_tokens_total {reply['usage']['completion_tokens']}.0" in told
        httpx.get(f"{server.url}/{'x' * 50}")
        assert 'path="other",status="404"' in httpx.get(f"{server.url}/metrics").text


def test_the_routes_are_described(shared):
    about = httpx.get(f"{shared.url}/openapi.json").json()
    assert "messages" in about["components"]["schemas"]["ChatRequest"]["properties"]
    body = about["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/ChatRequest"}
    assert httpx.get(f"{shared.url}/docs").status_code == 200


@pytest.mark.parameter("log_interval")
def test_the_log_of_an_interval_says_what_was_done(start, caplog, monkeypatch):
    import logging

    monkeypatch.setattr(logging.getLogger("swift"), "propagate", True)
    caplog.set_level("INFO")
    with start("--log_interval", "1") as server:
        post(server, CHAT)
        assert eventually(lambda: "num_samples: 1" in caplog.text, 5)
    assert "in all:" in caplog.text
    assert threading.active_count() < 50
