"""The door of media: what may be read, how it is fetched, and what a model that reads text says of all of it."""

from __future__ import annotations

import base64
import os
import re
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

import serving
from swift.serve.fetching import MediaLimits, read_medium
from swift.serve.media import Door
from swift.serve.refusals import Refusal

LIMITS = MediaLimits(size=1000, seconds=5.0)
OPEN = Door(hosts=("*",), allows_private=True)


class Host(BaseHTTPRequestHandler):
    """A host of media: each path is a way to answer."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers["Host"]))
        where = self.path.partition("?")[2]
        if self.path.startswith("/to"):
            self.send_response(302)
            self.send_header("Location", where)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size = {"/large": 5000, "/short": 100, "/slow": 100}.get(self.path, 4)
        self.send_response(404 if self.path == "/none" else 200)
        if self.path not in ("/endless", "/lied"):
            self.send_header("Content-Length", str(size))
        self.end_headers()
        slow = {"/slow": 0.1, "/endless": 0.0, "/lied": 0.0}.get(self.path)
        try:
            if slow is None:
                self.wfile.write(b"good" if self.path != "/large" else b"x" * 5000)
            else:
                for _ in range(100 if self.path == "/slow" else 3000):
                    self.wfile.write(b"x")
                    time.sleep(slow)
        except OSError:
            pass
        self.close_connection = True

    def log_message(self, format, *args) -> None:
        pass


@pytest.fixture(scope="module")
def host():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Host)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def url(host):
    host.asked.clear()
    return f"http://127.0.0.1:{host.server_port}"


@contextmanager
def names(monkeypatch, meanings: dict[str, list[str]]):
    """Names of hosts that mean, each time they are looked up, the next of their addresses."""
    real = socket.getaddrinfo

    def looked_up(host, port, *args, **kwargs):
        left = meanings.get(host)
        if left is None:
            return real(host, port, *args, **kwargs)
        address = left.pop(0) if len(left) > 1 else left[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port or 0))]

    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", looked_up)
        yield


def refused(reference: str, door: Door = OPEN, limits: MediaLimits = LIMITS) -> Refusal:
    with pytest.raises(Refusal) as caught:
        read_medium(reference, door, limits)
    return caught.value


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("http://127.0.0.1/x.png", "private"), ("http://localhost/x.png", "private"), ("http://[::1]/x.png", "private"),
        ("http://169.254.169.254/meta", "private"), ("http://[::ffff:10.0.0.1]/x", "private"),
        ("http://0x7f000001/x", "private"), ("http://2130706433/x", "private"), ("http://0/x", "private"),
        ("http://[fe80::1]/x", "private"), ("http://100.64.0.1/x", "private"), ("http://224.0.0.1/x", "private"),
        ("http://good@127.0.0.1/x", "private"), ("http://no.such.host.invalid/x", "not known"),
        ("file:///etc/passwd", "kind"), ("ftp://x/y", "kind"), ("gopher://x/y", "kind"), ("http://", "allowed"),
        ("/etc/passwd", "no folder"), ("../../etc/passwd", "no folder"), ("~root/x", "no folder|cannot be read"),
        ("/dev/zero", "no folder"), ("x\0y", "cannot be read"),
    ],
)  # fmt: skip
def test_what_must_not_be_read_is_not(reference, why):
    refusal = refused(reference, Door(hosts=("*",)))
    assert refusal.status == 403
    assert re.search(why, str(refusal)), str(refusal)


def test_only_hosts_that_are_allowed_are_asked(url, host, monkeypatch):
    door = Door(hosts=("media.test", ".example.test"), allows_private=True)
    here = {
        name: ["127.0.0.1"] for name in ("media.test", "a.example.test", "example.test", "evil.test", "xmedia.test")
    }
    with names(monkeypatch, here):
        for name in ("media.test", "MEDIA.test.", "a.example.test"):
            assert read_medium(f"http://{name.lower().rstrip('.')}:{host.server_port}/x", door, LIMITS) == b"good"
        asked = list(host.asked)
        for name in ("example.test", "evil.test", "xmedia.test", "media.test@evil.test", "media.test.evil.test"):
            assert refused(f"http://{name}:{host.server_port}/x", door).status == 403
    assert host.asked == asked
    assert asked[0] == ("/x", f"media.test:{host.server_port}"), "the name goes with the request"


def test_a_name_that_changes_its_meaning_after_it_was_checked_leads_nowhere_else(url, host, monkeypatch):
    public = "8.8.8.8"
    with names(monkeypatch, {"rebound.test": [public, "127.0.0.1"]}), monkeypatch.context() as patch:
        connected: list[str] = []

        def connect(address, timeout):
            connected.append(address[0])
            raise OSError("nobody goes there in a test")

        patch.setattr(socket, "create_connection", connect)
        refused(f"http://rebound.test:{host.server_port}/x", Door(hosts=("*",)))
    assert connected == [public]
    assert host.asked == []


def test_every_address_that_a_host_sends_us_on_to_is_checked(url, host, monkeypatch, tmp_path):
    (tmp_path / "secret").write_text("s")
    door = Door(hosts=("media.test",), folders=(tmp_path,), allows_private=True)
    with names(monkeypatch, {"media.test": ["127.0.0.1"], "evil.test": ["127.0.0.1"]}):
        here = f"http://media.test:{host.server_port}"
        assert read_medium(f"{here}/to?/x", door, LIMITS) == b"good", "within a host"
        assert refused(f"{here}/to?http://evil.test:{host.server_port}/x", door).status == 403
        assert refused(f"{here}/to?http://127.0.0.1:{host.server_port}/x", door).status == 403
        assert refused(f"{here}/to?file://{tmp_path}/secret", door).status == 403
        assert "sends us on more than 3" in str(refused(f"{here}/to?/to", door))
    with names(monkeypatch, {"public.test": ["8.8.8.8"]}), monkeypatch.context() as patch:
        real = socket.create_connection
        port = host.server_port
        patch.setattr(socket, "create_connection", lambda address, timeout: real(("127.0.0.1", port), timeout))
        refusal = refused(f"http://public.test/to?http://127.0.0.1:{port}/x", Door(hosts=("*",)))
    assert refusal.status == 403
    assert "private" in str(refusal)
    assert host.asked[-1][0].startswith("/to"), "nobody went on"


@pytest.mark.parametrize(
    ("path", "status", "why"),
    [("/large", 413, "larger"), ("/endless", 413, "larger"), ("/none", 400, "404"), ("/short", 400, "breaks off")],
)
def test_what_is_too_large_or_not_whole_is_not_taken(url, path, status, why):
    refusal = refused(url + path)
    assert (refusal.status, why in str(refusal)) == (status, True), str(refusal)


def test_a_host_that_answers_slowly_is_left_in_time(url):
    began = time.monotonic()
    assert "0.5 seconds" in str(refused(f"{url}/slow", limits=MediaLimits(size=1000, seconds=0.5)))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        there = f"http://127.0.0.1:{silent.getsockname()[1]}/x"
        assert "0.5 seconds" in str(refused(there, limits=MediaLimits(size=1000, seconds=0.5)))
    assert time.monotonic() - began < 5


def test_files_are_read_within_their_folders_only(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (inside / "x").write_bytes(b"good")
    (inside / "large").write_bytes(b"x" * 1001)
    (outside / "y").write_bytes(b"secret")
    (inside / "link").symlink_to(outside / "y")
    os.mkfifo(inside / "pipe")
    door = Door(folders=(inside,))
    assert read_medium(str(inside / "x"), door, LIMITS) == b"good"
    assert read_medium(str(inside / ".." / "inside" / "x"), door, LIMITS) == b"good"
    for path in (inside / "link", inside / ".." / "outside" / "y", outside / "y", f"{inside}-x/y", inside / "pipe"):
        assert refused(str(path), door).status == 403, path
    assert refused(str(inside / "large"), door).status == 413
    assert refused(str(inside / "nothing"), door).status == 400
    assert refused(str(inside), door).status in (400, 403)


def test_what_stands_in_the_request_needs_no_permission():
    text = base64.b64encode(b"good" * 100).decode()
    for reference in (text, f"data:image/png;base64,{text}"):
        assert read_medium(reference, Door(), LIMITS) == b"good" * 100
    assert refused(f"data:image/png;base64,{base64.b64encode(b'x' * 2000).decode()}").status == 413
    assert refused("data:text/plain,hello").status == 400
    assert refused("data:x;base64,????").status == 400


@pytest.mark.parametrize(
    "more",
    [
        {"images": ["/etc/passwd"]}, {"videos": "http://no.such.host.invalid/x"}, {"audios": ["data:x;base64,AAAA"]},
        {"images": [{"path": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://10.0.0.1/x"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": "file:///x"}}]}]},
    ],
)  # fmt: skip
def test_a_model_of_texts_says_so_whatever_the_medium(server, more):
    body = {"model": server.name, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, **more}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["code"] == "no_media"
    assert "reads text" in error["message"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    model = serving.checkpoint(tmp_path_factory.mktemp("model") / "tiny")
    with serving.running("--model", str(model)) as made:
        yield made
