"""A small real server of OpenAI's protocol over a model in this process, for tests of what asks such servers."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from swift.chat.messages import Conversation, Message
from swift.chat.render import Prompt
from swift.engines.base import Sampling


@dataclass
class Served:
    """What is served. key: what callers must show. lacks: paths that are not there. asked: the requests that came in.

    says: the text of streamed replies, in pieces, and seconds between them; None asks the model.
    """

    engine: object
    renderer: object
    models: tuple = ("tiny",)
    key: str | None = None
    lacks: tuple = ()
    says: tuple | None = None
    asked: list = field(default_factory=list)

    def prompt(self, body):
        return self.renderer.prompt(Conversation(tuple(Message(m["role"], m["content"]) for m in body["messages"])))

    def reply(self, prompt, body):
        sampling = Sampling(max_new_tokens=body.get("max_tokens") or 8, temperature=0.0, logprobs=True)
        return self.engine.generate([prompt], sampling)[0][0]

    def tokenize(self, body):
        return {"tokens": self.prompt(body).input_ids}

    def chat(self, body):
        prompt = self.prompt(body)
        reply = self.reply(prompt, body)
        said = [{"token": each.token, "logprob": each.logprob} for each in reply.logprobs]
        message = {"role": "assistant", "content": reply.text}
        choice = {"index": 0, "message": message, "logprobs": {"content": said}}
        return {"choices": [choice], "usage": {"prompt_tokens": len(prompt.input_ids)}}

    def continuation(self, body):
        said = self.reply(Prompt("", body["prompt"]), body).logprobs
        tokens = {"tokens": [each.token for each in said], "token_logprobs": [each.logprob for each in said]}
        return {"choices": [{"logprobs": tokens}], "usage": {"prompt_tokens": len(body["prompt"])}}

    def pieces(self, body):
        text = self.reply(self.prompt(body), body).text if self.says is None else None
        return self.says if text is None else (text[:3], text[3:])


POSTS = {"/tokenize": Served.tokenize, "/v1/chat/completions": Served.chat, "/v1/completions": Served.continuation}


class Handler(BaseHTTPRequestHandler):
    served: Served

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer(200, {"object": "list", "data": [{"id": name} for name in self.served.models]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.served.asked.append((self.path, body))
        if self.served.key is not None and self.headers.get("Authorization") != f"Bearer {self.served.key}":
            self.answer(401, {"error": {"message": "wrong key"}})
        elif self.path not in POSTS or self.path in self.served.lacks:
            self.answer(404, {"error": {"message": "no such path"}})
        elif body.get("stream"):
            self.stream(self.served.pieces(body))
        else:
            self.answer(200, POSTS[self.path](self.served, body))

    def stream(self, pieces):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for piece in pieces:
            if isinstance(piece, float):
                time.sleep(piece)
                continue
            delta = piece if isinstance(piece, dict) else {"content": piece}
            event = {"choices": [{"index": 0, "delta": delta}]}
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serving(engine, renderer, **how):
    """Serve an engine behind a renderer; the address, with /v1, and the requests that came in."""
    served = Served(engine, renderer, **how)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"served": served}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", served.asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
