"""`swift deploy` as a user starts it: its port, its adapters, its log, its files, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import torch
from openai import APIError, OpenAI
from peft import LoraConfig, get_peft_model

import serving
from swift import cli
from swift.commands.deploy import free_port, run_deploy
from swift.core.errors import EngineError, UsageError
from swift.options.parse import parse

HELLO = [{"role": "user", "content": "What is two and two?"}]
ASK = {"messages": HELLO, "temperature": 0, "max_tokens": 10}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return serving.checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def adapters(model) -> list[Path]:
    """Two adapters of the model that change what it says."""
    from transformers import AutoModelForCausalLM

    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        config = LoraConfig(
            r=4, lora_alpha=32, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False
        )
        adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
        adapted.save_pretrained(model.parent / f"adapter{seed}")
        made.append(model.parent / f"adapter{seed}")
    return made


@contextmanager
def started(*words: str, folder: Path):
    """The process of a server that answers, and its port; it is gone at the end."""
    port = free_port()
    line = [sys.executable, "-m", "swift", "deploy", "--host", "127.0.0.1", "--port", str(port), *words]
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(line, stdout=log, stderr=log, cwd=folder, env={**os.environ})
    try:
        end = time.monotonic() + 120
        while time.monotonic() < end and process.poll() is None:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        yield process, port
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)


def asked(client: OpenAI, model: str) -> str:
    return client.chat.completions.create(model=model, **ASK).choices[0].message.content


@pytest.mark.slow
@pytest.mark.parameter("result_path", "verbose", "host", "port")
def test_a_server_answers_writes_down_and_ends_in_good_order(model, tmp_path):
    with started("--model", str(model), "--result_path", "rows.jsonl", folder=tmp_path) as (process, port):
        with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0) as client:
            said = asked(client, "tiny")
            stream = client.chat.completions.create(model="tiny", **{**ASK, "max_tokens": 1200}, stream=True)
            chunks = iter(stream)
            next(chunks)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            assert httpx.get(f"http://127.0.0.1:{port}/health").status_code == 503
            assert list(chunks)[-1].choices[0].finish_reason
        assert process.wait(30) == 0
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows[0]["response"][0]["content"] == said
    assert len(rows) == 2
    log = (tmp_path / "log.txt").read_text()
    assert "no more requests are taken; 1 go on" in log
    assert f"http://127.0.0.1:{port}/v1" in log
    assert "completion_tokens 10" in log
    assert "Traceback" not in log


@pytest.mark.slow
@pytest.mark.parameter("verbose")
def test_the_second_signal_ends_what_still_runs_and_a_quiet_server_is_quiet(model, tmp_path):
    with (
        started("--model", str(model), "--verbose", "false", folder=tmp_path) as (process, port),
        OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0) as client,
    ):
        asked(client, "tiny")
        stream = client.chat.completions.create(model="tiny", **{**ASK, "max_tokens": 2000, "n": 16}, stream=True)
        next(iter(stream))
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
        with pytest.raises(APIError, match="ended before the answer was complete"):
            list(stream)
        assert process.wait(20) == 130
    log = (tmp_path / "log.txt").read_text()
    assert "completion_tokens" not in log
    assert "Traceback" not in log
    assert "1 are cut off" in log
    (written,) = (tmp_path / "result" / "tiny" / "deploy_result").glob("*.jsonl")
    assert written.read_text().count("\n") >= 1


@pytest.mark.parameter("adapters")
@pytest.mark.parameter("merge_lora")
def test_adapters_are_chosen_by_their_names(model, adapters):
    first, second = adapters
    with serving.running("--model", str(model)) as server:
        base = asked(server.client(), "tiny")
    alone = []
    for adapter in adapters:
        with serving.running("--model", str(model), "--adapters", str(adapter)) as server:
            alone.append(asked(server.client(), "tiny"))
    assert len({base, *alone}) == 3, "the adapters say something else"
    with serving.running("--model", str(model), "--adapters", f"one={first}", f"two={second}") as server:
        client = server.client()
        cards = client.models.list().data
        assert [card.id for card in cards] == ["tiny", "one", "two"]
        assert [card.model_dump().get("parent") for card in cards] == [None, "tiny", "tiny"]
        for _ in range(2):
            assert [asked(client, name) for name in ("tiny", "one", "two")] == [base, *alone]
    with serving.running(
        "--model", str(model), "--adapters", str(first), f"two={second}", "--merge_lora", "true"
    ) as server:
        assert asked(server.client(), "tiny") == alone[0]
        assert asked(server.client(), "two") not in (base, *alone), "it stands on the merged one"


def test_an_adapter_with_a_name_brings_its_model_and_its_settings(model, adapters, tmp_path):
    (adapters[0] / "args.json").write_text(json.dumps({"model": str(model), "system": "Say little."}))
    try:
        command = parse("deploy", ["--adapters", f"one={adapters[0]}"])
        assert command.template.system == "Say little."
        assert command.model.model == str(model)
    finally:
        (adapters[0] / "args.json").unlink()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--require_auth", "true"), "--require_auth true needs --api_key"),
        (("--adapters", "a=.", "a=."), "given twice"),
        (("--adapters", "tiny=."), "is that of the model"),
        (("--task_type", "embedding", "--adapters", "a=."), "names are for --task_type causal_lm"),
        (("--task_type", "embedding", "--temperature", "1"), "--temperature has no effect"),
        (("--media_hosts", "*"), "not available yet"),
        (("--val_dataset", "x"), "no effect here"),
        (("--port", "70000"), "--port"),
    ],
)
@pytest.mark.parameter("require_auth")
def test_what_a_server_cannot_be_told_is_said_at_once(model, words, why):
    with pytest.raises(UsageError, match=why):
        parse("deploy", ["--model", str(model), *words])


def test_names_of_adapters_are_for_servers(model):
    with pytest.raises(UsageError, match="names are for swift deploy"):
        parse("infer", ["--model", str(model), "--adapters", "a=."])


@pytest.mark.parameter("port")
def test_a_port_that_is_taken_is_an_error_before_anything_is_loaded(model, capsys):
    with socket.socket() as wire:
        wire.bind(("127.0.0.1", 0))
        wire.listen()
        port = wire.getsockname()[1]
        words = ["deploy", "--model", str(model), "--host", "127.0.0.1", "--port", str(port)]
        assert cli.main(words) == 1
    said = capsys.readouterr().err
    assert f"--port {port} cannot be served on --host 127.0.0.1" in said
    assert "Loading" not in said


@pytest.mark.slow
def test_a_server_can_be_run_from_python(model):
    words = ["--model", str(model), "--host", "127.0.0.1"]
    with run_deploy(words, return_url=True, timeout=120) as url, OpenAI(base_url=url, api_key="x") as client:
        assert asked(client, "tiny")
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/models")
    with pytest.raises(EngineError, match="ended with code"), run_deploy(["--model", str(model.parent)]):
        pass


@pytest.mark.parameter("max_batch_size")
def test_a_server_answers_together_unless_it_is_told_how_many(model):
    for words, expected in (((), 32), (("--max_batch_size", "3"), 3), (("--max_batch_size", "1"), 1)):
        _, _, opened = serving.front("--model", str(model), *words)
        assert opened.served.model.engine.max_batch_size == expected
        opened.served.model.close()


@pytest.mark.parameter("max_length", "truncation_strategy")
def test_a_long_prompt_is_refused_or_cut_as_the_options_say(model):
    long = [{"role": "user", "content": "word " * 200}]
    with serving.running("--model", str(model), "--max_length", "50") as server:
        answer = httpx.post(f"{server.url}/v1/chat/completions", json={"model": "tiny", "messages": long})
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "context_length_exceeded"
    with serving.running("--model", str(model), "--max_length", "50", "--truncation_strategy", "left") as server:
        reply = server.client().chat.completions.create(model="tiny", messages=long, max_tokens=2)
        assert reply.usage.prompt_tokens == 50
