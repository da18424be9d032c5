"""Requests that were spoilt at random, sent to servers of every task: none may make one fail or hang.

    python benchmarks/fuzz_server.py [requests]          200,000 by default

The requests go through the app itself, without a network. A request that is answered by a status of 500 or more, by an
error event of that kind, or not within twenty seconds, ends the run and is shown.
"""

from __future__ import annotations

import asyncio
import collections
import random
import sys
import tempfile
import time
from pathlib import Path

import httpx
from transformers import Qwen3ForSequenceClassification

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import mutations  # noqa: E402 (of tests/, whose path is added above)
import serving  # noqa: E402 (the same)
import tiny  # noqa: E402 (the same)

AT_ONCE = 16
SECONDS = 20.0
REPORT = 10_000
READERS = {
    "/v1/embeddings": "embedding", "/v1/rerank": "reranker", "/rerank": "reranker", "/v1/score": "reranker",
    "/score": "embedding", "/classify": "seq_cls", "/v1/classify": "seq_cls",
}  # fmt: skip


def apps(folder: Path) -> dict[str, object]:
    """A server of each task."""
    serving.checkpoint(folder / "tiny", max_position_embeddings=512)
    made = {"causal_lm": serving.front("--model", str(folder / "tiny"), "--max_new_tokens", "4")[0]}
    words = ("--served_model_name", "tiny", "--model")
    made["embedding"] = serving.front(*words, str(folder / "tiny"), "--task_type", "embedding")[0]
    for task, labels in (("seq_cls", 3), ("reranker", 1)):
        config = tiny.model().config
        config.num_labels = labels
        Qwen3ForSequenceClassification(config).save_pretrained(folder / task)
        tiny.tokenizer().save_pretrained(folder / task)
        made[task] = serving.front(*words, str(folder / task), "--task_type", task)[0]
    return made


async def run(made: dict[str, object], count: int) -> collections.Counter[int]:
    statuses: collections.Counter[int] = collections.Counter()
    draw = random.Random(2026)
    clients = {
        task: httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://x")
        for task, app in made.items()
    }
    slowest, begun = 0.0, time.monotonic()

    async def worker(share: int) -> None:
        nonlocal slowest
        for _ in range(share):
            path, body = mutations.mutated(draw)
            task = READERS.get(path, "causal_lm") if draw.random() < 0.95 else draw.choice([*made])
            sent = time.monotonic()
            headers = {"content-type": "application/json"}
            answer = await asyncio.wait_for(clients[task].post(path, content=body, headers=headers), SECONDS)
            slowest = max(slowest, time.monotonic() - sent)
            statuses[answer.status_code] += 1
            if answer.status_code >= 500 or b'"server_error"' in answer.content:
                raise SystemExit(f"{task} {path}\n{body!r}\n{answer.status_code} {answer.text}")
            if statuses.total() % REPORT == 0:
                speed = statuses.total() / (time.monotonic() - begun)
                print(
                    f"{statuses.total()} requests, {speed:.0f}/s, slowest {slowest:.2f} s, {dict(statuses)}", flush=True
                )

    await asyncio.gather(*(worker(count // AT_ONCE) for _ in range(AT_ONCE)))
    return statuses


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    with tempfile.TemporaryDirectory() as folder:
        print(dict(asyncio.run(run(apps(Path(folder)), count))))


if __name__ == "__main__":
    main()
