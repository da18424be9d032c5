"""This file knows how the app meets the network: its port, connections that dawdle, and how it ends.

The first SIGTERM or SIGINT lets what runs go on to its end, while new requests get 503; the second ends at once.
"""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import sys
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from swift.core.errors import EngineError
from swift.core.logs import get_logger
from swift.serve.front import Front
from swift.serve.gate import Gate

if sys.platform != "win32":
    import resource

HEAD_SECONDS = 10.0
"""How long the head of a request may take."""
WRITE_SECONDS = 60.0
"""How long a client may read nothing of what is sent to it."""
KEEP_ALIVE_SECONDS = 75
BACKLOG = 2048
TO_DO = {
    errno.EADDRINUSE: "Stop what listens there, or give another --port.",
    errno.EACCES: "Give a --port above 1023.",
    errno.EPERM: "Give a --port above 1023.",
}
"""What helps against an error of a socket."""
NO_SUCH_HOST = "Give an address of this machine as --host: 127.0.0.1 for itself alone, 0.0.0.0 for all who reach it."


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises EngineError when the port is taken, or cannot be had; no other is tried."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        what_to_do = TO_DO.get(error.errno or 0, NO_SUCH_HOST)
        raise EngineError(
            f"--port {port} cannot be served on --host {host}: {error.strerror or error}. {what_to_do}"
        ) from None
    return listener


def serve(app: Front, listener: socket.socket, gate: Gate) -> None:
    """Answer until a signal ends it, or until the gate is closed and everybody has left.

    Raises KeyboardInterrupt when Ctrl-C has cut answers off.
    """
    if sys.platform != "win32":
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)  # every connection is an open file
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    config = uvicorn.Config(
        app, http=Connection, ws="none", lifespan="on", log_config=None, access_log=False, proxy_headers=False,
        server_header=False, timeout_keep_alive=KEEP_ALIVE_SECONDS, timeout_graceful_shutdown=1, backlog=BACKLOG,
    )  # fmt: skip
    server = Server(config, gate)
    server.run(sockets=[listener])
    if server.cut_by == signal.SIGINT:
        raise KeyboardInterrupt


class Server(uvicorn.Server):
    """uvicorn, which ends once the gate is drained. cut_by: the signal that ended what was inside; None when none did."""

    def __init__(self, config: uvicorn.Config, gate: Gate) -> None:
        super().__init__(config)
        self._gate = gate
        self.cut_by: int | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 (as a signal calls it)
        """Close the gate; when it is closed already, end what is inside."""
        if self._gate.is_closed:
            if not self._gate.is_drained and self.cut_by is None:
                self.cut_by = sig
                get_logger().info("%d are cut off", self._gate.inside)
            return
        self._gate.close()
        get_logger().info("no more requests are taken; %d go on to their end", self._gate.inside)

    async def on_tick(self, counter: int) -> bool:
        """Whether it is time to end; asked ten times a second."""
        if self.cut_by is not None:
            for task in self.server_state.tasks:
                task.cancel()
        if self.cut_by is not None or self._gate.is_drained:
            self.should_exit = True
        return await super().on_tick(counter)


class Connection(H11Protocol):
    """A connection that is closed when the head of a request does not come, or when nothing that is sent is read."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._head: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] (uvicorn narrows it as well)
        """The first head is awaited."""
        super().connection_made(transport)
        self._head = self.loop.call_later(HEAD_SECONDS, self._end)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is awaited any more."""
        self._head, self._stall = _cancelled(self._head), _cancelled(self._stall)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """A head that has begun has to come to its end."""
        super().data_received(data)
        is_idle = self.cycle is None or self.cycle.response_complete
        if not is_idle:
            self._head = _cancelled(self._head)
        elif self._head is None and not self.transport.is_closing():
            self._head = self.loop.call_later(HEAD_SECONDS, self._end)

    def pause_writing(self) -> None:
        """The client does not read as fast as it is written to."""
        super().pause_writing()
        self._stall = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """It has read on."""
        super().resume_writing()
        self._stall = _cancelled(self._stall)

    def _end(self) -> None:
        self._head = None
        self.transport.close()


def _cancelled(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
