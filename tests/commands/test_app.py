"""`swift app`: the page answers over HTTP and through gradio's own client, as a browser asks it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

import tiny
from made_adapters import trained
from openai_server import serving
from swift.chat.render import Renderer
from swift.engines.transformers import Transformers
from swift.options.template import TemplateOptions

pytestmark = [pytest.mark.extra, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of gradio's client
SOURCE = str(Path(__file__).parents[2] / "src")


def free_port():
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return made.getsockname()[1]


@pytest.fixture(scope="module")
def engine():
    return Transformers(tiny.model(), tiny.tokenizer())


def started(*words):
    """A process that shows the page."""
    environment = {**os.environ, "PYTHONPATH": SOURCE, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "swift", "app", *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@contextmanager
def shown(*words):
    """The address of a page, what its process says, and the process, which is ended as Ctrl-C does."""
    port = [] if "--server_port" in words else ["--server_port", str(free_port())]
    process = started("--server_name", "127.0.0.1", *port, *words)
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if found := re.search(r"the page is at (\S+)", line):
                yield found[1], lines, process
                return
        raise AssertionError("".join(lines))
    finally:
        process.send_signal(signal.SIGINT)
        lines += process.stdout.readlines()
        process.stdout.close()
        assert process.wait(20) is not None


@contextmanager
def page(engine, *words, **how):
    """The address of a page over a server, what the server was asked, and what the page's process says."""
    with (
        serving(engine, Renderer(tiny.tokenizer(), TemplateOptions()), **how) as (url, asked),
        shown("--base_url", url, *words) as (address, lines, _),
    ):
        yield address, asked, lines


def client(url):
    from gradio_client import Client

    return Client(url, verbose=False)


def texts(chat):
    return [
        (turn["role"], turn["content"] if isinstance(turn["content"], str) else turn["content"][0]["text"])
        for turn in chat
    ]


def said(asked):
    return [message["content"] for message in asked[-1][1]["messages"]]


@pytest.mark.parameter("base_url", "stream")
def test_a_question_is_answered_again_and_forgotten(engine):
    with page(engine, says=("Fo", "ur.")) as (url, asked, _):
        visitor = client(url)
        seen = [texts(chat)[-1][1] for _, chat in visitor.submit("What is two and two?", api_name="/send")]
        assert {"Fo", "Four."} <= set(seen), "it is shown while it grows"
        visitor.predict("Sure?", api_name="/send")
        assert said(asked) == ["What is two and two?", "Four.", "Sure?"]
        chat = visitor.predict(api_name="/regenerate")
        assert said(asked) == ["What is two and two?", "Four.", "Sure?"]
        assert texts(chat)[-1] == ("assistant", "Four.")
        assert len(chat) == 4
        client(url).predict("Who else is here?", api_name="/send")
        assert said(asked) == ["Who else is here?"], "another visitor has a conversation of their own"
        assert visitor.predict(api_name="/clear") == []
        visitor.predict("Hello", api_name="/send")
        assert said(asked) == ["Hello"]


def test_of_several_models_the_visitor_chooses_one(engine):
    with page(engine, says=("Hi",), models=("base", "pirate")) as (url, asked, _):
        visitor = client(url)
        visitor.predict("Hello", "base", api_name="/send")
        visitor.predict("Hello", "pirate", api_name="/send")
        visitor.predict("base", api_name="/regenerate")
        assert [body["model"] for _, body in asked] == ["base", "pirate", "base"]


def test_a_reply_that_is_stopped_stays_as_far_as_it_came(engine):
    with page(engine, says=("Once upon", 1.0, " a time", *[2.0, "."] * 5)) as (url, asked, _):
        visitor = client(url)
        job = visitor.submit("Tell me a story", api_name="/send")
        while not any("a time" in str(seen) for seen in job.outputs()):
            time.sleep(0.1)
        job.cancel()
        visitor.submit("Shorter!", api_name="/send")
        while len(asked) < 2:
            time.sleep(0.1)
        assert re.fullmatch(r"Once upon a time\.?", said(asked)[1])
        assert said(asked)[2] == "Shorter!"


@pytest.mark.parameter("temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens", "stop_words", "api_key")
@pytest.mark.parameter("served_model_name", "system", "studio_title", "server_name", "server_port")
def test_the_server_is_asked_and_the_page_looks_as_the_options_say(engine):
    port = free_port()
    words = ["--temperature", "0.5", "--top_p", "0.9", "--top_k", "7", "--repetition_penalty", "1.1", "--max_new_tokens", "5",
             "--stop_words", "END", "--api_key", "secret", "--served_model_name", "second", "--system", "Be kind.",
             "--studio_title", "My studio", "--server_port", str(port)]  # fmt: skip
    with page(engine, *words, says=("Hi",), key="secret", models=("first", "second")) as (url, asked, _):
        assert url == f"http://127.0.0.1:{port}/"
        assert httpx.get(url, trust_env=False).status_code == 200
        assert httpx.get(f"{url}config", trust_env=False).json()["title"] == "My studio"
        visitor = client(url)
        visitor.predict("Hello", api_name="/send")
        body = {name: value for name, value in asked[-1][1].items() if name not in ("messages", "stream")}
        assert body == {
            "model": "second", "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "top_k": 7, "repetition_penalty": 1.1,
            "stop": ["END"],
        }  # fmt: skip
        assert said(asked) == ["Be kind.", "Hello"]
        visitor.predict("Be brief.", api_name="/set_system")
        visitor.predict("Hello", api_name="/send")
        assert said(asked) == ["Be brief.", "Hello"]


@pytest.mark.parameter("lang", "share", "stream")
def test_another_language_a_public_address_and_whole_replies(engine):
    with page(engine, "--lang", "zh", "--share", "true", "--stream", "false") as (url, asked, lines):
        config = httpx.get(f"{url}config", trust_env=False).json()
        assert "发送" in [each["props"].get("value") for each in config["components"]]
        client(url).predict("Hello", api_name="/send")
        assert asked[-1][1]["stream"] is False
    assert "Could not create share link" in "".join(lines)  # a public address is asked for; there is no network here


def test_a_server_that_fails_is_told_to_the_visitor_and_the_page_goes_on(engine):
    from gradio_client.exceptions import AppError

    with page(engine, lacks=("/v1/chat/completions",)) as (url, _, lines):
        visitor = client(url)
        with pytest.raises(AppError, match="answers 404"):
            visitor.predict("Hello", api_name="/send")
        assert visitor.predict(api_name="/clear") == []
    assert "share link" not in "".join(lines)
    assert "Traceback" not in "".join(lines)


@pytest.mark.parameter("adapters", "merge_lora")
def test_a_model_is_served_beside_the_page_and_ends_with_it(tmp_path):
    base = tiny.checkpoint(tmp_path / "base", seed=4, tie_word_embeddings=False)
    adapter = trained(base, tmp_path / "last")
    words = ["--model", str(base), "--adapters", f"last={adapter}", "--max_new_tokens", "4", "--temperature", "0"]
    with shown(*words) as (url, _, process):
        servers = children_of(process.pid)
        visitor = client(url)
        _, plain = visitor.predict("What is two and two?", "base", api_name="/send")
        visitor.predict(api_name="/clear")
        _, tuned = visitor.predict("What is two and two?", "last", api_name="/send")
        assert texts(plain)[1] != texts(tuned)[1]
    assert len(servers) == 1
    assert not Path(f"/proc/{servers[0]}").exists()


def children_of(pid):
    """The processes that a process has spawned to work beside it."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [child for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def test_a_port_that_is_taken_and_a_server_that_is_not_there_are_errors(engine):
    with socket.socket() as taken, serving(engine, None) as (url, _):
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        process = started("--base_url", url, "--server_name", "127.0.0.1", "--server_port", port)
        assert re.search(rf"--server_port {port}: .*Choose another port", process.communicate()[0])
    assert "does not answer" in started("--base_url", "http://127.0.0.1:9/v1").communicate()[0]
