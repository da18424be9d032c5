"""A server for tests: the real app on a real port of this machine, in a thread of the test's own process."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tiny
from swift.commands.deploy import house_of, open_model
from swift.options.parse import parse
from swift.serve.app import build_app
from swift.serve.gate import Gate
from swift.serve.journal import Journal
from swift.serve.server import bind, serve


def checkpoint(folder: Path, **changes: Any) -> Path:
    """A model whose greedy replies have many different tokens."""
    more = {"tie_word_embeddings": False, "initializer_range": 0.3, "max_position_embeddings": 2048, **changes}
    return tiny.checkpoint(folder, **{"seed": 3, **more})


def speaking(folder: Path, text: str, **changes: Any) -> Path:
    """A model whose likeliest reply is this text: each of its tokens, which must differ, calls for the next one."""
    import torch

    tokenizer = tiny.tokenizer()
    [first], [last] = tokenizer.encode("\n"), tokenizer.encode("<|im_end|>")
    chain = [first, *tokenizer.encode(text), last]
    assert len(set(chain)) == len(chain), "a token that comes twice has no one successor"
    model = tiny.model(tie_word_embeddings=False, max_position_embeddings=2048, **changes)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        embedding, output = model.model.embed_tokens.weight, model.lm_head.weight
        embedding.copy_(torch.nn.functional.normalize(torch.randn_like(embedding), dim=-1))
        output.zero_()
        for token, successor in itertools.pairwise(chain):
            output[successor] = embedding[token]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@dataclass
class Running:
    """A server that runs: where it is, what it wrote down, who is inside."""

    url: str
    name: str
    gate: Gate
    port: int
    opened: Any
    rows: list[dict] = field(default_factory=list)
    closing: ExitStack = field(default_factory=ExitStack)

    def client(self, **more: Any) -> Any:
        """A client of the openai package, which is closed with the server."""
        from openai import OpenAI

        given = {"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0, "timeout": 60, **more}
        return self.closing.enter_context(OpenAI(**given))


def front(*words: str, rows: list[dict] | None = None, opened: Any = None) -> tuple[Any, Gate, Any]:
    """The app of a command line, its gate, and the model behind it."""
    command = parse("deploy", words)
    opened = open_model(command) if opened is None else opened
    gate = Gate(command.deploy.max_requests)
    journal = Journal(verbose=False, write=None if rows is None else rows.append)
    return build_app(opened.served, house_of(command, journal), gate), gate, opened


@contextmanager
def running(*words: str, opened: Any = None) -> Iterator[Running]:
    """`swift deploy` with these words while the block runs. A model that is `opened` already is left open."""
    rows: list[dict] = []
    app, gate, model = front(*words, rows=rows, opened=opened)
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    thread = threading.Thread(target=serve, args=(app, listener, gate), daemon=True)
    thread.start()
    try:
        made = Running(f"http://127.0.0.1:{port}", model.served.name, gate, port, model, rows)
        with made.closing:
            yield made
    finally:
        gate.close()
        thread.join(30)
        if opened is None:
            model.served.model.close()
    assert not thread.is_alive(), "the server did not end"
