"""This file knows the door through which media come into the server: which addresses and folders may be read."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
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

    def refuse(self, medium: object) -> None:
        """Raises Refusal for every medium: because it must not be fetched, else because no model here has a use for it."""
        if isinstance(medium, str):
            self.check(medium)
        raise Refusal(400, "Images, video and audio are not available yet: this model reads text.", code="no_media")

    def check(self, reference: str) -> None:
        """Raises Refusal (403) for an address or a path that is not allowed. Looks names of hosts up."""
        scheme = reference[:16].partition("://")[0].lower() if "://" in reference[:16] else ""
        if scheme in ("http", "https"):
            self._check_address(reference)
        elif scheme:
            raise _forbidden("addresses of this kind are not read")
        elif not reference.startswith("data:") and _is_path(reference):
            self._check_path(reference)

    def _check_address(self, url: str) -> None:
        try:
            host = (urlsplit(url).hostname or "").lower().rstrip(".")
        except ValueError:
            host = ""
        if not host or not any(_is_host(host, allowed) for allowed in self.hosts):
            raise _forbidden("its host is not among those that are allowed")
        if not self.allows_private and not all(_is_public(address) for address in _addresses(host)):
            raise _forbidden("its host is in a private network")

    def _check_path(self, reference: str) -> None:
        try:
            real = Path(reference).expanduser().resolve()
        except (OSError, ValueError, RuntimeError):
            raise _forbidden("its path cannot be read") from None
        if not any(real.is_relative_to(folder.resolve()) for folder in self.folders):
            raise _forbidden("its path is in no folder that is allowed")


def _is_path(reference: str) -> bool:
    return len(reference) <= LONGEST_PATH or reference.startswith(("/", "./", "../", "~"))


def _is_host(host: str, allowed: str) -> bool:
    return allowed == ANY or host == allowed or (allowed.startswith(".") and host.endswith(allowed))


def _addresses(host: str) -> Sequence[str]:
    """All addresses of a host. Raises Refusal when it has none."""
    try:
        return [str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError):
        raise _forbidden("its host is not known") from None


def _is_public(address: str) -> bool:
    """Whether an address is one of the open internet, and not of a private network, this machine or a neighbour."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return found.is_global and not found.is_multicast


def _forbidden(why: str) -> Refusal:
    return Refusal(403, f"The medium is not read: {why}.", code="media_forbidden")
