"""This file knows how a medium is brought in: from where the door allows it, and within limits of size and time.

A host is asked at an address that was checked, so it does not matter what its name means a moment later; every address to
which it sends us on is checked like the first.
"""

from __future__ import annotations

import base64
import binascii
import os
import socket
import ssl
import stat
import threading
import time
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from swift.serve.media import Door, Kind, forbidden, kind_of
from swift.serve.refusals import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

SENT_ON = (301, 302, 303, 307, 308)


@dataclass(frozen=True)
class MediaLimits:
    """How large a medium may be in bytes, how many seconds it may take, and how often a host may send us on."""

    size: int
    seconds: float
    redirects: int = 3


def read_medium(reference: str, door: Door, limits: MediaLimits) -> bytes:
    """The bytes of a medium: of an address, a file, a `data:` address or base64.

    Raises Refusal: 403 when it may not be read, 413 when it is too large, 400 when it cannot be had.
    """
    kind = kind_of(reference)
    if kind is Kind.ADDRESS:
        return _fetched(reference, door, limits)
    if kind is Kind.PATH:
        return _read_file(door.real_path(reference), limits.size)
    return _decoded(reference, limits.size)


# ------------------------------------------------------------------------------------------------------------- in place


def _decoded(reference: str, size: int) -> bytes:
    about, _, text = reference.partition(",") if reference.startswith("data:") else (";base64", "", reference)
    if not about.endswith(";base64"):
        raise _unavailable("its `data:` address is not in base64")
    if len(text) // 4 * 3 > size + 2:
        raise _too_large(size)
    try:
        return _fitting(base64.b64decode(text, validate=True), size)
    except (binascii.Error, ValueError):
        raise _unavailable("it is no base64, no address and no path") from None


def _read_file(path: Path, size: int) -> bytes:
    """A regular file, and no link, device or pipe that has taken its place since it was checked."""
    try:
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(number, "rb") as file:
            if not stat.S_ISREG(os.fstat(number).st_mode):
                raise forbidden("it is no file")
            return _fitting(file.read(size + 1), size)
    except OSError:
        raise _unavailable("there is no such file") from None


# ----------------------------------------------------------------------------------------------------------- by network


def _fetched(url: str, door: Door, limits: MediaLimits) -> bytes:
    deadline = time.monotonic() + limits.seconds
    for _ in range(limits.redirects + 1):
        if kind_of(url) is not Kind.ADDRESS:
            raise forbidden("its host sends us to what is no address")
        addresses = door.addresses(url)
        try:
            with _asked(urlsplit(url), addresses, deadline) as response:
                if response.status not in SENT_ON:
                    return _body(response, limits.size, deadline)
                url = urljoin(url, response.getheader("location") or "")
        except (OSError, HTTPException, ValueError) as error:
            late = time.monotonic() >= deadline
            why = f"it takes more than {limits.seconds:g} seconds" if late else f"its host says: {error}"
            raise _unavailable(why) from None
    raise _unavailable(f"its host sends us on more than {limits.redirects} times")


@contextmanager
def _asked(url: SplitResult, addresses: Sequence[str], deadline: float) -> Iterator[HTTPResponse]:
    """The answer to a GET, whose connection is cut at the deadline, however slowly its bytes come."""
    host, port = url.hostname or "", url.port or (443 if url.scheme == "https" else 80)
    connection, wire = HTTPConnection(host, port), _connected(addresses, port, deadline)
    if url.scheme == "https":
        connection = HTTPSConnection(host, port)
        wire = ssl.create_default_context().wrap_socket(wire, server_hostname=host, do_handshake_on_connect=False)
    clock = threading.Timer(max(deadline - time.monotonic(), 0), _cut, [wire])
    clock.daemon = True
    clock.start()
    try:
        with wire:
            if isinstance(wire, ssl.SSLSocket):
                wire.do_handshake()
            connection.sock = wire
            path = quote(url.path or "/", safe="/%:@!$&'()*+,;=~-._")
            query = f"?{quote(url.query, safe='/%:@!$&()*+,;=~-._?')}" if url.query else ""
            connection.request("GET", path + query, headers={"Accept-Encoding": "identity", "Connection": "close"})
            with connection.getresponse() as response:
                yield response
    finally:
        clock.cancel()


def _connected(addresses: Sequence[str], port: int, deadline: float) -> socket.socket:
    """A connection to the first of the addresses that takes one."""
    failed: OSError = OSError("it has no address")
    for address in addresses:
        try:
            return socket.create_connection((address, port), timeout=max(deadline - time.monotonic(), 0.001))
        except OSError as error:
            failed = error
    raise failed


def _cut(wire: socket.socket) -> None:
    with suppress(OSError):  # it is closed already
        wire.shutdown(socket.SHUT_RDWR)


def _body(response: HTTPResponse, size: int, deadline: float) -> bytes:
    if response.status != 200:
        raise _unavailable(f"its host answers with status {response.status}")
    if response.length is not None and response.length > size:
        raise _too_large(size)
    content = _fitting(response.read(size + 1), size)
    if response.length or time.monotonic() >= deadline:  # a connection that was cut reads like one that has ended
        raise OSError("the medium breaks off")
    return content


def _fitting(content: bytes, size: int) -> bytes:
    if len(content) > size:
        raise _too_large(size)
    return content


def _too_large(size: int) -> Refusal:
    return Refusal(413, f"The medium is larger than {size / (1 << 20):g} MiB.", code="media_too_large")


def _unavailable(why: str) -> Refusal:
    return Refusal(400, f"The medium is not read: {why:.300}.", code="media_unavailable")
