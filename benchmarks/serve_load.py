"""How `swift deploy` bears many clients: streams that must not mix, clients that leave, and tokens per second.

    python benchmarks/serve_load.py MODEL streams | cut | speed [swift [options of deploy]]

streams   1,000 streams at once, each of which has to say a number of its own; files open before and after
cut       500 clients that close their connection in the middle; places and files that stay taken afterwards
speed     16 clients with a stream each, 4 prompts one after the other, with default settings

The server is a process of its own. `swift` is another program that understands `deploy --model --port`, for comparison.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import contextmanager
from pathlib import Path

STREAMS, CUT, CLIENTS, PROMPTS = 1000, 500, 16, 4


@contextmanager
def server(model: str, program: str, *words: str):
    """The process of a server that answers, and its port."""
    with socket.socket() as wire:
        wire.bind(("127.0.0.1", 0))
        port = wire.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder, Path(folder, "log").open("w") as log:
        line = [*program.split(), "deploy", "--model", model, "--port", str(port), "--host", "127.0.0.1", *words]
        process = subprocess.Popen(line, stdout=log, stderr=log, cwd=folder)
        try:
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
                    break
                except OSError:
                    if process.poll() is not None:
                        raise SystemExit(Path(folder, "log").read_text()[-3000:]) from None
                    time.sleep(0.2)
            yield process.pid, port
        finally:
            process.terminate()
            process.wait(60)


async def events(port: int, body: dict) -> AsyncIterator[dict]:
    """The chunks of a streamed chat, over a connection of its own that is closed when the iterator is left."""
    text = json.dumps({"stream": True, **body}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(text)}\r\n\r\n".encode() + text)
        status = await reader.readline()
        if b" 200 " not in status:
            raise RuntimeError((status + await reader.read(500)).decode())
        while line := await reader.readline():
            if line.startswith(b"data: [DONE]"):
                return
            if line.startswith(b"data: "):
                yield json.loads(line[6:])
    finally:
        writer.close()


def asked(words: str, **more: object) -> dict:
    return {"messages": [{"role": "user", "content": words}], **more}


def files(pid: int) -> int:
    return len([*Path(f"/proc/{pid}/fd").iterdir()])


def inside(port: int) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("swift_requests_inside ")))


def name_of(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models") as answer:
        return json.load(answer)["data"][0]["id"]


async def settle(pid: int, port: int, before: int) -> float:
    """Seconds until nobody is inside and no more files are open than before."""
    begun = time.monotonic()
    while time.monotonic() - begun < 60 and (inside(port) or files(pid) > before + 1):  # one asks for the metrics
        await asyncio.sleep(0.1)
    return time.monotonic() - begun


async def streams(pid: int, port: int) -> None:
    name, before, firsts, wrong = name_of(port), files(pid), [], []

    async def one(number: int) -> None:
        begun, said = time.monotonic(), ""
        body = asked("Say it.", model=name, max_tokens=40, structured_outputs_regex=f"number {number:04d}")
        async for chunk in events(port, body):
            delta = chunk["choices"][0]["delta"].get("content") or ""
            if delta and not said:
                firsts.append(time.monotonic() - begun)
            said += delta
        if said != f"number {number:04d}":
            wrong.append((number, said))

    begun = time.monotonic()
    await asyncio.gather(*(one(number) for number in range(STREAMS)))
    seconds, most = time.monotonic() - begun, max(firsts)
    settled = await settle(pid, port, before)
    print(f"{STREAMS} streams: {len(wrong)} wrong, {seconds:.1f} s, first word after {statistics.median(firsts):.1f} s "
          f"(median), {most:.1f} s (last); files {before} before, {files(pid)} after {settled:.1f} s")  # fmt: skip


async def cut(pid: int, port: int) -> None:
    name, before = name_of(port), files(pid)

    async def one(number: int) -> None:
        chunks = events(port, asked("Tell me more.", model=name, max_tokens=1000))
        heard = 0
        async for _ in chunks:
            heard += 1
            if heard > 1 + number % 7:
                break
        await chunks.aclose()

    begun = time.monotonic()
    await asyncio.gather(*(one(number) for number in range(CUT)))
    left = time.monotonic() - begun
    settled = await settle(pid, port, before)
    print(f"{CUT} clients that left: {left:.1f} s until the last had left, {settled:.1f} s more until all was free; "
          f"files {before} before, {files(pid)} after, {inside(port):.0f} inside")  # fmt: skip


async def speed(_pid: int, port: int) -> None:
    name, tokens = name_of(port), 0

    async def one(number: int) -> None:
        nonlocal tokens
        for turn in range(PROMPTS):
            words = f"Tell me about {number} and {turn}." + " Take your time." * (number % 5)
            more = {"model": name, "max_tokens": 64, "temperature": 0, "stream_options": {"include_usage": True}}
            async for chunk in events(port, asked(words, **more)):
                if chunk.get("usage"):
                    last = chunk["usage"]["completion_tokens"]
            tokens += last

    await one(0)
    tokens, begun = 0, time.monotonic()
    await asyncio.gather(*(one(number) for number in range(CLIENTS)))
    seconds = time.monotonic() - begun
    print(f"{CLIENTS} clients, {tokens} tokens in {seconds:.1f} s: {tokens / seconds:.0f} tokens/s")


RUNS: dict[str, tuple[Callable[[int, int], Awaitable[None]], tuple[str, ...]]] = {
    "streams": (streams, ("--max_requests", "2000", "--verbose", "false", "--max_batch_size", "128")),
    "cut": (cut, ("--max_requests", "2000", "--verbose", "false")),
    "speed": (speed, ()),
}
"""What is run -> how, and with which options of the server."""


def main() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    model, what, *rest = sys.argv[1:]
    run, words = RUNS[what]
    program = rest[0] if rest else f"{sys.executable} -m swift"
    with server(str(Path(model).resolve()), program, *words, *rest[1:]) as (pid, port):
        print(f"load {os.getloadavg()[0]:.1f}")
        asyncio.run(run(pid, port))


if __name__ == "__main__":
    main()
