"""This file knows one request from its arrival to its end: its id, its time, and that it is counted once."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from pydantic import BaseModel

from swift.serve.journal import Journal
from swift.serve.meters import Meters


@dataclass(frozen=True)
class Ledger:
    """Where requests are counted and written down."""

    meters: Meters
    journal: Journal


class Visit:
    """A request that the model is asked for.

    id: `kind-` and 32 hexadecimal digits. created: when it came, in seconds since 1970.
    """

    def __init__(self, kind: str, request: BaseModel, ledger: Ledger) -> None:
        self.id = f"{kind}-{uuid4().hex}"
        self.created = int(time.time())
        self._request = request
        self._ledger = ledger
        self._begun = time.monotonic()
        self._first: float | None = None

    def first(self) -> None:
        """The first token is there."""
        if self._first is None:
            self._first = time.monotonic() - self._begun
            self._ledger.meters.first_token(self._first)

    def end(self, response: Any, prompt_tokens: int, generated_tokens: int, *, is_whole: bool = True) -> None:
        """All is answered, or with `is_whole` false as much as the client stayed for."""
        seconds = time.monotonic() - self._begun
        self._ledger.meters.done(prompt_tokens, generated_tokens, seconds)
        if not is_whole:
            self._ledger.meters.left()
        about: dict[str, Any] = {"prompt_tokens": prompt_tokens, "completion_tokens": generated_tokens}
        if self._first is not None:
            about["first_token_seconds"] = round(self._first, 4)
        about["seconds"] = round(seconds, 4)
        if not is_whole:
            about["left"] = True
        self._ledger.journal.note(self.id, self._asked(), response, about)

    def _asked(self) -> Mapping[str, Any]:
        return self._request.model_dump(mode="json", exclude_unset=True, by_alias=True)
