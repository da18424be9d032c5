"""`swift parity` against servers in processes of their own: `swift deploy`, and vLLM with nothing of ours in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

import tiny
from swift import run_deploy
from swift.commands import export, parity, sft
from swift.commands.deploy import free_port
from swift.options.parse import parse

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*")]
IDS = "token ids of prompts on the server"
CHATS, OURS = "chats on the server", "our token ids on the server"
ROWS = [
    {"messages": [{"role": role, "content": content} for role, content in turns]}
    for turns in (
        [("user", "What is two and two?"), ("assistant", "Four.")],
        [
            ("system", "You add numbers."),
            ("user", "1 and 1?"),
            ("assistant", "Two."),
            ("user", "2?"),
            ("assistant", "4"),
        ],
        [
            ("user", "Q"),
            ("assistant", "<think>\nlong thoughts\n</think>\n\nA."),
            ("user", "你好"),
            ("assistant", "Yes."),
        ],
        [("user", "  Blanks around and\n\nlines  "), ("assistant", "<think>\nHm.\n</think>\n\nGood-bye.")],
    )
]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A base model without a template of its own, as it was pretrained, and rows."""
    folder = tmp_path_factory.mktemp("served")
    tiny.checkpoint(folder / "Qwen3-0.6B-Base", seed=3, chat_template=None, head_dim=32)
    tiny.jsonl(folder / "rows.jsonl", ROWS * 2)
    return folder


def trained(place: Path, tuner: str) -> Path:
    last = sft.run(parse("sft", [
        "--model", str(place / "Qwen3-0.6B-Base"), "--dataset", str(place / "rows.jsonl"), "--output_dir",
        str(place / tuner), "--max_steps", "20", "--split_dataset_ratio", "0", "--dataloader_num_workers", "0",
        "--report_to", "none", "--learning_rate", "3e-2", "--torch_dtype", "float32", "--tuner_type", tuner,
        *(["--target_modules", "all-linear"] if tuner == "lora" else []),
    ]))  # fmt: skip
    assert isinstance(last, Path)
    return last


@pytest.fixture(scope="module")
def adapter(place) -> Path:
    return trained(place, "lora")


def compared(place: Path, url: str, *words: str) -> tuple[int, dict]:
    """The exit code, and what was found, by what was compared."""
    report = place / "found.json"
    line = ["--url", url, "--torch_dtype", "float32", "--dataset", str(place / "rows.jsonl"), "--rows", "4", "--tokens",
            "8", "--report", str(report)]  # fmt: skip
    code = parity.run(parse("parity", [*line, *words]))
    found = json.loads(report.read_text(encoding="utf-8"))["comparisons"]
    return code, {each["what"].partition(":")[2].strip() or each["what"]: each for each in found}


def holds(code: int, found: dict) -> None:
    assert code == 0, found
    assert found[IDS]["found"] == "4 of 4 equal"
    assert all(found[name]["holds"] and found[name]["found"] for name in (IDS, CHATS, OURS))


def differs(code: int, found: dict) -> None:
    assert code == 1
    assert found[IDS]["holds"], "it is the weights that differ"
    for name in (CHATS, OURS):
        assert "the server says" in "".join(found[name]["wrong"]) or "apart" in "".join(found[name]["wrong"])
    assert "The server may not have loaded the adapter" in "".join(found[OURS]["wrong"])


@pytest.mark.parameter("url")
def test_our_server_answers_what_was_trained_and_is_told_apart_when_it_does_not(place, adapter):
    base = place / "Qwen3-0.6B-Base"
    words = ["--model", str(base), "--adapters", f"tuned={adapter}", "--torch_dtype", "float32", "--host", "127.0.0.1"]
    with run_deploy([*words, "--verbose", "false"], return_url=True, timeout=300) as url:
        holds(*compared(place, url, "--adapters", str(adapter), "--served_model_name", "tuned"))
        differs(*compared(place, url, "--adapters", str(adapter), "--served_model_name", base.name))


# ----------------------------------------------------------------------------------------------------------- plain vLLM


@contextmanager
def plain_vllm(place: Path, *words: str):
    """vLLM's own server, told of nothing but a folder; its address."""
    port = free_port()
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | settings
    line = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port),
            "--dtype", "float32", "--enforce-eager", "--max-num-seqs", "8", *words]  # fmt: skip
    log = place / "vllm.log"
    with log.open("w", encoding="utf-8") as told:
        server = subprocess.Popen(line, env=environment, cwd=place, stdout=told, stderr=told)
        try:
            _await(server, f"http://127.0.0.1:{port}/health", log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _await(server: subprocess.Popen, url: str, log: Path) -> None:
    deadline = time.monotonic() + 400
    while True:
        try:
            with urlopen(url, timeout=5):
                return
        except (URLError, OSError):
            assert server.poll() is None, log.read_text(encoding="utf-8")[-3000:]
            assert time.monotonic() < deadline, log.read_text(encoding="utf-8")[-3000:]
            time.sleep(0.5)


@pytest.mark.vllm
@pytest.mark.timeout(900)
@pytest.mark.parameter("url")
def test_plain_vllm_serves_a_saved_adapter_and_is_told_apart_without_it(place, adapter):
    base = place / "Qwen3-0.6B-Base"
    lora = ["--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"tuned={adapter}"]
    template = ["--chat-template", str(adapter / "chat_template.jinja")]  # that of the base model is another
    with plain_vllm(place, "--model", str(base), "--served-model-name", "base", *lora, *template) as url:
        for thinks in ("true", "false"):
            words = ["--adapters", str(adapter), "--enable_thinking", thinks]
            holds(*compared(place, url, *words, "--served_model_name", "tuned"))
        differs(*compared(place, url, "--adapters", str(adapter), "--served_model_name", "base"))


@pytest.mark.vllm
@pytest.mark.timeout(900)
@pytest.mark.parameter("url")
@pytest.mark.parametrize("kind", ["full", "merged"])
def test_plain_vllm_serves_what_is_saved(place, kind, request, tmp_path):
    if kind == "full":
        folder = trained(place, "full")
    else:
        folder = tmp_path / "merged"
        line = [
            "--adapters",
            str(request.getfixturevalue("adapter")),
            "--merge_lora",
            "true",
            "--output_dir",
            str(folder),
        ]
        export.run(parse("export", line))
    with plain_vllm(place, "--model", str(folder)) as url:
        for thinks in ("true", "false"):
            holds(*compared(place, url, "--model", str(folder), "--enable_thinking", thinks))
