"""This file knows how the server says no: with a status, and an error as the protocol of OpenAI writes it."""

from __future__ import annotations

from itertools import takewhile

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from swift.serve.answers import ErrorAnswer, ErrorInfo

KINDS: dict[int, str] = {
    400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 408: "timeout_error",
    429: "rate_limit_error", 503: "overloaded_error",
}  # fmt: skip
"""Status -> kind of error; of others below 500 the first, of those above `server_error`."""
RETRY_SECONDS = 1
"""After how long a client that was turned away may ask again."""
SHOWN = 300
"""Characters of a field or a reason that are repeated."""


class Refusal(Exception):  # noqa: N818 (an answer, and no fault of the program)
    """A request that is not answered as it was meant.

    status: of HTTP. param: the field at fault. code: a word that programs can look for.
    closes: whether the connection must not be used again, because not all of the request was read.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, closes: bool = False
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.closes = closes

    @property
    def body(self) -> str:
        """The error as JSON."""
        kind = KINDS.get(self.status, KINDS[400] if self.status < 500 else "server_error")
        return ErrorAnswer(error=ErrorInfo(message=str(self), type=kind, param=self.param, code=self.code)).as_json()

    @property
    def headers(self) -> dict[str, str]:
        """What the client has to know beside the error."""
        headers = {"content-type": "application/json"}
        if self.status in (429, 503):
            headers["retry-after"] = str(RETRY_SECONDS)
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        if self.closes:
            headers["connection"] = "close"
        return headers


def of_validation(error: ValidationError) -> Refusal:
    """The first thing that is wrong with a body, and where it stands. Values that were sent are not repeated."""
    found = error.errors(include_input=False, include_url=False, include_context=False)
    first, more = _nearest(found)
    place = _shortened(".".join(str(part) for part in first["loc"][:16] if not _is_form(part)))
    if first["type"] == "json_invalid":
        return Refusal(400, f"The body is no valid JSON: {_shortened(first['msg'])}.", code="invalid_json")
    if first["type"] == "extra_forbidden":
        return Refusal(400, f"Unrecognized request argument supplied: {place}", param=place, code="unknown_parameter")
    if first["type"] == "missing":
        return Refusal(400, f"`{place}` is missing.", param=place, code="missing_required_parameter")
    words = _shortened(first["msg"].removeprefix("Value error, "))
    rest = f" (and {more} more)" if more else ""
    text = f"`{place}`: {words}{rest}." if place else f"{words}{rest}."
    return Refusal(400, text, param=place or None, code="invalid_value")


def _nearest(found: list[ErrorDetails]) -> tuple[ErrorDetails, int]:
    """The first thing that is wrong, and in how many more places something is.

    What may have several forms has an error for each; that of the form it comes nearest to counts: a value out of
    bounds rather than one of another type, and the one furthest inside.
    """
    field = _field(found[0])
    same = [each for each in found if _field(each) == field]
    told = max(same, key=lambda each: (not each["type"].endswith(("_type", "literal_error")), len(each["loc"])))
    return told, len({_field(each) for each in found}) - 1


def _field(error: ErrorDetails) -> tuple[int | str, ...]:
    """Where the error stands, up to the value that may have several forms."""
    return tuple(takewhile(lambda part: not _is_form(part), error["loc"]))


def _is_form(part: int | str) -> bool:
    """Whether this part of a place is no key, but the name that pydantic gives to one of several forms."""
    return isinstance(part, str) and (part in ("str", "NamedTool") or part.endswith("]"))


def _shortened(words: str) -> str:
    return words if len(words) <= SHOWN else words[:SHOWN] + " ..."
