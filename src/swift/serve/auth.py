"""This file knows who may ask: those who show the key of `--api_key`."""

from __future__ import annotations

import hashlib
import hmac

from swift.serve.refusals import Refusal

OPEN_PATHS = ("/health", "/ping")
"""What is told to everybody: whether the server is there."""


class Key:
    """The key of the server; None asks for none.

    Only a hash of it is kept, and hashes are compared in constant time, so that neither the time an answer takes nor
    the length of what was shown tells anything of it.
    """

    def __init__(self, key: str | None) -> None:
        self._hash = None if key is None else _hash(key.encode())

    def check(self, authorization: bytes | None) -> None:
        """Raises Refusal (401) unless the header says `Bearer` and the key."""
        if self._hash is None:
            return
        scheme, _, shown = (authorization or b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(_hash(shown.strip()), self._hash):
            raise Refusal(
                401, "The API key is missing or wrong. Send it as `Authorization: Bearer KEY`.",
                code="invalid_api_key", closes=True,
            )  # fmt: skip


def _hash(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()
