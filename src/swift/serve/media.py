"""This file knows the door through which media come into the server: which addresses and folders may be read.

Models that are served read text, so whatever comes is refused, and nothing of it is looked at (`no_media`).
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from urllib.parse import urlsplit

from swift.serve.refusals import Refusal

ANY = "*"
"""Stands for every host."""
LONGEST_PATH = 200
"""Characters of a path; what is longer, and begins as no path does, is base64."""


@dataclass(frozen=True)
class Door:
    """What may come in.

    hosts: names of hosts, `.example.com` with all below it, or `*`. folders: those that files may lie in.
    allows_private: whether a host may have an address of a private network, or of this machine.

    What stands in the request itself (`data:`, base64) needs no permission: nothing is fetched for it.
    """

    hosts: tuple[str, ...] = ()
    folders: tuple[Path, ...] = ()
    allows_private: bool = False

    def addresses(self, url: str) -> Sequence[str]:
        """The addresses of an URL's host, which is looked up now. Raises Refusal (403) unless all may be asked."""
        try:
            host = (urlsplit(url).hostname or "").lower().rstrip(".")
        except ValueError:
            host = ""
        if not host or not any(_is_host(host, allowed) for allowed in self.hosts):
            raise forbidden("its host is not among those that are allowed")
        found = _addresses(host)
        if not self.allows_private and not all(_is_public(address) for address in found):
            raise forbidden("its host is in a private network")
        return found

    def real_path(self, reference: str) -> Path:
        """Where a path leads, links followed. Raises Refusal (403) unless that lies in a folder that may be read."""
        try:
            real = Path(reference).expanduser().resolve()
        except (OSError, ValueError, RuntimeError):
            raise forbidden("its path cannot be read") from None
        if not any(real.is_relative_to(folder.resolve()) for folder in self.folders):
            raise forbidden("its path is in no folder that is allowed")
        return real


class Kind(Enum):
    """What a reference to a medium is."""

    ADDRESS = "address"
    PATH = "path"
    DATA = "data"


def kind_of(reference: str) -> Kind:
    """What a reference is. Raises Refusal (403) for addresses that nothing is read from, such as `file://`."""
    scheme = reference[:16].partition("://")[0].lower() if "://" in reference[:16] else ""
    if scheme in ("http", "https"):
        return Kind.ADDRESS
    if scheme:
        raise forbidden("addresses of this kind are not read")
    if reference.startswith("data:"):
        return Kind.DATA
    is_path = len(reference) <= LONGEST_PATH or reference.startswith(("/", "./", "../", "~"))
    return Kind.PATH if is_path else Kind.DATA


def no_media() -> Refusal:
    """What to say of media to a model that reads text. Nothing of them is looked at."""
    return Refusal(
        400, "This model reads text: images, video and audio are not available yet.", param="messages", code="no_media"
    )  # fmt: skip


def _is_host(host: str, allowed: str) -> bool:
    return allowed == ANY or host == allowed or (allowed.startswith(".") and host.endswith(allowed))


def _addresses(host: str) -> Sequence[str]:
    """All addresses of a host. Raises Refusal when it has none."""
    try:
        return [str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError):
        raise forbidden("its host is not known") from None


def _is_public(address: str) -> bool:
    """Whether an address is one of the open internet, and not of a private network, this machine or a neighbour."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return found.is_global and not found.is_multicast


def forbidden(why: str) -> Refusal:
    """What to say of a medium that may not be read."""
    return Refusal(403, f"The medium is not read: {why}.", code="media_forbidden")
