"""This file knows `swift deploy`: a model behind the protocol of OpenAI."""

from __future__ import annotations

import multiprocessing
import multiprocessing.process
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from swift.chat.render import Renderer
from swift.commands.backends import Answering, Asking, check_backend, open_engine
from swift.commands.begin import begin, log_decisions
from swift.commands.infer_tasks import open_reader
from swift.commands.results import Results, result_path
from swift.commands.task_settings import settled_task
from swift.core.errors import EngineError, UsageError
from swift.core.logs import get_logger
from swift.engines.transformers import AUTOMATIC_BATCH, Transformers
from swift.engines.vllm_reasoning import ReasoningParser
from swift.hub.models import access
from swift.models.families import layout_for
from swift.models.info import ModelInfo, model_info, read_json
from swift.models.load import load_model
from swift.models.processor import load_tokenizer
from swift.models.vocabulary import with_room
from swift.options.adapters import split_name, unnamed
from swift.options.commands import Deploy
from swift.options.declare import Origin, Source
from swift.options.parse import parse
from swift.options.saved import checkpoint_folder
from swift.serve.app import House, build_app
from swift.serve.conversations import Conversations
from swift.serve.desk import Served
from swift.serve.gate import Gate
from swift.serve.journal import Journal
from swift.serve.reader import Reader
from swift.serve.renderers import Renderers
from swift.serve.scoring import ScoringQueue
from swift.serve.server import bind, serve
from swift.serve.writer import Writer
from swift.tuners.attach import load_adapters, load_named_adapters
from swift.tuners.merge import merge

ALL_INTERFACES = ("0.0.0.0", "::", "")
TEXTS_AT_ONCE = 64
"""Texts that a model which reads is handed at a time."""


def run(command: Deploy) -> None:
    """Serve until a signal comes: the first lets requests go on to their end, the second ends them."""
    bind(command.deploy.host, command.deploy.port).close()  # before minutes go by with loading
    command = begin(command, command.general)
    check_backend(command)
    _warn_of_open_doors(command)
    opened = open_model(command)
    path = result_path(
        command.infer.result_path, checkpoint_folder(command.values()), opened.info.name, "deploy_result"
    )
    get_logger().info("requests and answers are written to %s", path)
    gate = Gate(command.deploy.max_requests)
    try:
        with Results(path) as results:
            journal = Journal(verbose=bool(command.deploy.verbose), write=lambda row: results.write([row]))
            app = build_app(opened.served, house_of(command, journal), gate)
            listener = bind(command.deploy.host, command.deploy.port)
            get_logger().info("%s is served at %s", opened.served.name, _address(listener))
            serve(app, listener, gate)
    finally:
        opened.served.model.close()


def house_of(command: Deploy, journal: Journal) -> House:
    """How the server keeps itself, as the options say."""
    options = command.deploy
    return House(
        key=options.api_key, owned_by=options.owned_by, max_body=options.max_body_size << 20,
        log_interval=options.log_interval, journal=journal,
    )  # fmt: skip


@dataclass(frozen=True)
class Opened:
    """A model that can be served, and what it says of itself."""

    served: Served
    info: ModelInfo


def open_model(command: Deploy) -> Opened:
    """The model of a command, ready to be asked."""
    if command.template.truncation_strategy == "split":
        raise UsageError("--truncation_strategy split is for training; a prompt can be cut with left or right.")
    bare = command.model.model_copy(update={"adapters": unnamed(command.model.adapters)})
    info = model_info(bare, access(command.general))
    if command.model.task_type != "causal_lm":
        return _open_reader(command, info)
    return _open_writer(command, info)


def _open_writer(command: Deploy, info: ModelInfo) -> Opened:
    """A model that writes. Adapters with a name are chosen by requests; those without are always in effect."""
    tokenizer = load_tokenizer(info, command.model.new_special_tokens)
    layout = layout_for(info, command.template, tokenizer)
    applied, named = _parted(command.model.adapters, info)
    name = command.vllm.vllm_reasoning_parser
    parser = None if name is None else ReasoningParser(name, tokenizer)
    renderers = Renderers(lambda options: Renderer(tokenizer, options, layout=layout), command.template, parser)
    stops = renderers.chat().stop_token_ids
    if command.infer.infer_backend == "transformers":
        model = with_room(load_model(info, command.model, command.quantization, training=False), tokenizer)
        merges = command.merge.merge_lora or (applied and named)
        model = merge(model, applied) if merges and applied else load_adapters(model, applied)
        engine: Answering = Transformers(
            load_named_adapters(model, named), tokenizer, max_batch_size=_batch_size(command), stop_token_ids=stops,
            context_length=info.max_length, adapters=tuple(named),
        )  # fmt: skip
    else:
        engine = open_engine(Asking(command, info, tokenizer, stops, named, max_logprobs=command.deploy.max_logprobs))
    writer = Writer(
        engine, tokenizer, renderers, Conversations(),
        template=command.template, generation=command.generation, max_logprobs=command.deploy.max_logprobs,
    )  # fmt: skip
    return Opened(Served(_name(command, info), writer, tuple(named), engine.context_length), info)


def _open_reader(command: Deploy, info: ModelInfo) -> Opened:
    """A model that classifies, embeds or ranks."""
    changes, sources = settled_task(command.model, command.template, info)
    changes["max_batch_size"] = _batch_size(command)
    command = command.replace(changes, {**sources, "max_batch_size": Source(Origin.RULE, "a server reads in batches")})
    log_decisions(command.model_copy(update={"sources": sources}))
    reads = open_reader(command, info)
    config = read_json(info.path / "config.json")
    classes = {int(number): str(name) for number, name in (config.get("id2label") or {}).items()}
    reader = Reader(
        reads, ScoringQueue(reads.engine.outputs, TEXTS_AT_ONCE), Conversations(), classes=classes,
        vocabulary=reads.engine.vocabulary, length=reads.limit,
    )  # fmt: skip
    return Opened(Served(_name(command, info), reader, (), reads.limit), info)


def _parted(adapters: Sequence[str], info: ModelInfo) -> tuple[list[Path], dict[str, Path]]:
    """The folders of adapters without a name, and of those with one."""
    pairs = [(split_name(text)[0], folder) for text, folder in zip(adapters, info.adapters, strict=True)]
    return [folder for name, folder in pairs if name is None], {name: folder for name, folder in pairs if name}


def _batch_size(command: Deploy) -> int:
    """`--max_batch_size`, and more than its default where nobody has given it: a server is asked by many."""
    source = command.sources.get("max_batch_size", Source(Origin.DEFAULT))
    if source.origin is Origin.DEFAULT:
        get_logger().info("max_batch_size = %d  (a server answers requests together)", AUTOMATIC_BATCH)
        return AUTOMATIC_BATCH
    return command.infer.max_batch_size


def _name(command: Deploy, info: ModelInfo) -> str:
    return info.name if command.deploy.served_model_name is None else command.deploy.served_model_name


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


def _warn_of_open_doors(command: Deploy) -> None:
    if command.deploy.api_key is None and command.deploy.host in ALL_INTERFACES:
        get_logger().warning(
            "Everybody who reaches this machine can ask: --host %s without --api_key. Give a key, or --host 127.0.0.1.",
            command.deploy.host,
        )


# ------------------------------------------------------------------------------------------------------------ from Python


@contextmanager
def run_deploy(args: Sequence[str] | Deploy, *, return_url: bool = False, timeout: float | None = None) -> Iterator:
    """A server in a process of its own while the block runs: its port, or with `return_url` its address.

    args: the words of a command line, or a command; without a port of their own they get one that is free.
    timeout: seconds it may take until it answers; None waits as long as the process lives.
    Raises EngineError when it ends before it answers.
    """
    command: Deploy = parse("deploy", args, runs=True) if not isinstance(args, Deploy) else args
    if not command.sources["port"].asked_for:
        command = command.replace({"port": free_port()}, {"port": Source(Origin.RULE, "a free one")})
    child = multiprocessing.get_context("spawn").Process(target=run, args=(command,), name="swift deploy")
    child.start()
    host = "127.0.0.1" if command.deploy.host in ALL_INTERFACES else command.deploy.host
    url = f"http://{host}:{command.deploy.port}"
    try:
        _await(child, f"{url}/health", timeout)
        yield f"{url}/v1" if return_url else command.deploy.port
    finally:
        child.terminate()
        child.join(30)
        if child.is_alive():
            child.kill()
            child.join()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with bind("127.0.0.1", 0) as listener:
        return int(listener.getsockname()[1])


def _await(child: multiprocessing.process.BaseProcess, url: str, timeout: float | None) -> None:
    """Wait until the server answers."""
    begun = time.monotonic()
    while True:
        try:
            with urlopen(url, timeout=5):
                return
        except (URLError, OSError):
            pass
        if not child.is_alive():
            raise EngineError(f"swift deploy ended with code {child.exitcode} before it answered: see above why.")
        if timeout is not None and time.monotonic() - begun > timeout:
            raise EngineError(f"swift deploy did not answer within {timeout:g} seconds.")
        time.sleep(0.1)
