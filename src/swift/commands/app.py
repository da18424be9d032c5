"""This file knows `swift app`: a chat page over a model that is served, here or elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from swift.chat.template import system_text
from swift.commands.deploy import run_deploy
from swift.core.errors import UsageError
from swift.core.extras import need
from swift.core.logs import get_logger
from swift.engines.asking import Server
from swift.options.commands import App
from swift.options.declare import Origin, Source
from swift.options.generation import GenerationOptions
from swift.webui.chat_page import ChatPage
from swift.webui.talk import Partner


def run(command: App) -> None:
    """Show the page until Ctrl-C."""
    with opened(command) as page:
        page.block_thread()


@contextmanager
def opened(command: App) -> Iterator[Any]:
    """The page, launched; what belongs to it is let go of in the end."""
    need("gradio", "swift app")
    with _answering(command) as url:
        server = Server(url, command.deploy.api_key)
        page = None
        try:
            page = _page(command, server).build()
            _launch(command, page)
            get_logger().info("the page is at %s", page.local_url)
            yield page
        finally:
            if page is not None:
                page.close()
            server.close()


@contextmanager
def _answering(command: App) -> Iterator[str]:
    """The address of the server that answers: the one that is named, else one of our own, in a process beside this.

    Ours can be reached from this machine alone unless `--host` says otherwise: visitors see the page.
    """
    if command.app.base_url is not None:
        yield command.app.base_url
        return
    if not command.sources["host"].asked_for:
        command = command.replace(
            {"host": "127.0.0.1"}, {"host": Source(Origin.RULE, "the page is what visitors reach")}
        )
    with run_deploy(command, return_url=True) as url:
        yield url


def _launch(command: App, page: Any) -> None:
    """Serve the page, in threads. Raises UsageError for a port that is taken."""
    try:
        page.launch(
            server_name=command.web.server_name, server_port=command.web.server_port, share=command.web.share,
            prevent_thread_lock=True, quiet=True, footer_links=[],
        )  # fmt: skip
    except OSError as error:
        raise UsageError(
            f"--server_port {command.web.server_port}: the page cannot be served on {command.web.server_name}: "
            f"{' '.join(str(error).split())} Choose another port."
        ) from None


def _page(command: App, server: Server) -> ChatPage:
    models = _models(command, server)
    generation = command.generation
    stream = True if generation.stream is None else generation.stream
    partner = Partner(server, models, settings_of(generation), stream=stream)
    return ChatPage(partner, command.app.studio_title or models[0], _system(command), command.web.lang)


def _system(command: App) -> str:
    """The system text of the box. A model that is served here has its own, which holds while the box is empty."""
    system = system_text(command.template.system) or ""
    return system if command.app.base_url is not None else ""


def settings_of(generation: GenerationOptions) -> dict[str, Any]:
    """The generation options as fields of OpenAI's request; what was not given is left to the server."""
    given = {
        "max_tokens": generation.max_new_tokens, "temperature": generation.temperature, "top_p": generation.top_p,
        "top_k": generation.top_k, "repetition_penalty": generation.repetition_penalty,
        "stop": generation.stop_words or None,
    }  # fmt: skip
    return {name: value for name, value in given.items() if value is not None}


def _models(command: App, server: Server) -> list[str]:
    """The names of the models that can be asked: the one that is told, else all that the server lists."""
    listed = server.models()
    wanted = command.deploy.served_model_name if command.sources["served_model_name"].asked_for else None
    if not listed or (wanted is not None and wanted not in listed):
        raise UsageError(f"--base_url {command.app.base_url}: the server has {', '.join(listed) or 'no model'}.")
    return [wanted] if wanted is not None else listed
