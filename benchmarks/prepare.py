"""How fast rows become samples, measured against the tokenizer alone on the same text.

python benchmarks/prepare.py TOKENIZER ROWS.jsonl [PROCESSES ...]

TOKENIZER is a folder with a tokenizer and a chat template, ROWS a file in the messages format. Every figure is that of
a fresh process; seconds are of the wall, and of all processors together in brackets. Without other numbers 1 and 2
processes prepare; `kept` is a second run with `--load_from_cache_file true`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from transformers import AutoTokenizer

from swift.chat.render import Renderer
from swift.core.logs import get_logger
from swift.data.encode import load_samples
from swift.options.data import DataOptions
from swift.options.template import TemplateOptions


def bare(folder: str, rows: str) -> tuple[int, float, float]:
    """The tokenizer on the rendered text, a thousand rows at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    conversations = [json.loads(line)["messages"] for line in Path(rows).read_text(encoding="utf-8").splitlines()]
    texts = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in conversations]
    began, used = time.perf_counter(), processor_time()
    tokens = 0
    for start in range(0, len(texts), 1000):
        ids = tokenizer(texts[start : start + 1000], add_special_tokens=False, return_attention_mask=False)["input_ids"]
        tokens += sum(map(len, ids))
    return tokens, time.perf_counter() - began, processor_time() - used


def prepared(folder: str, rows: str, processes: int, *, kept: bool = False) -> tuple[int, float, float]:
    """From the file to samples."""
    template = TemplateOptions()
    renderer = Renderer(AutoTokenizer.from_pretrained(folder), template)
    options = DataOptions(dataset=[rows], dataset_num_proc=processes, load_from_cache_file=kept)
    began, used = time.perf_counter(), processor_time()
    tokens = sum(load_samples(options, template, renderer).train.lengths)
    return tokens, time.perf_counter() - began, processor_time() - used


def processor_time() -> float:
    """Of this process and those it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def one(kind: str, folder: str, rows: str) -> None:
    """Print one figure."""
    get_logger().setLevel("ERROR")
    if kind == "bare":
        tokens, seconds, used = bare(folder, rows)
    elif kind == "kept":
        tokens, seconds, used = prepared(folder, rows, 1, kept=True)
    else:
        tokens, seconds, used = prepared(folder, rows, int(kind))
    print(f"{kind:>5}: {tokens} tokens, {seconds:.2f} s ({used:.2f} s), {tokens / seconds:,.0f} tokens/s", flush=True)


def main(folder: str, rows: str, *processes: str) -> None:
    """Every figure in a process of its own."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "MODELSCOPE_CACHE": cache}
        for kind in ("bare", *(processes or ("1", "2")), "kept", "kept"):
            line = [sys.executable, __file__, "--one", kind, folder, rows]
            subprocess.run(line, env=environment, check=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(*sys.argv[2:])
    else:
        main(*sys.argv[1:])
