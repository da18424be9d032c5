"""This file knows what is kept of requests: a line of the log, and a row of the file of results."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from swift.core.logs import get_logger

SHOWN = 1000
"""Characters of an answer that the log shows."""


class Journal:
    """Writes down every request that the model answered.

    verbose: whether the log gets a line. write: adds a row to the file of results; None keeps none.
    """

    def __init__(self, *, verbose: bool, write: Callable[[Mapping[str, Any]], None] | None = None) -> None:
        self._verbose = verbose
        self._write = write

    def note(self, request_id: str, request: Mapping[str, Any], response: Any, about: Mapping[str, Any]) -> None:
        """One request.

        request: as it was sent, without what it left unsaid. response: the texts or values of the answer. about: its
        tokens, its seconds, whether the client stayed.
        """
        if self._write is not None:
            self._write({"id": request_id, "response": response, "request": request, **about})
        if self._verbose:
            words = ", ".join(f"{name} {value}" for name, value in about.items())
            get_logger().info("%s: %s: %s", request_id, words, _shown(response))


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."
