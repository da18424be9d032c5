"""This file knows what the server counts: for Prometheus, and for the line that `--log_interval` writes."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from swift.core.logs import get_logger
from swift.serve.gate import Gate

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
"""Borders of the histograms of time."""


@dataclass
class Span:
    """What happened since a moment: requests that were answered, tokens they held, and when it began."""

    samples: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    begun: float = field(default_factory=time.monotonic)

    def summary(self) -> str:
        """Tokens, requests and their speed, in one line."""
        seconds = max(time.monotonic() - self.begun, 1e-9)
        return (
            f"num_prompt_tokens: {self.prompt_tokens}, num_generated_tokens: {self.generated_tokens}, "
            f"num_samples: {self.samples}, runtime: {seconds:.2f} s, samples/s: {self.samples / seconds:.2f}, "
            f"tokens/s: {self.generated_tokens / seconds:.2f}"
        )


class Meters:
    """The counters of one server.

    paths: those that have a route; requests for others are counted together. gate: what knows who is inside.
    """

    def __init__(self, paths: Collection[str], gate: Gate) -> None:
        self._paths = frozenset(paths)
        self._gate = gate
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "swift_requests", "Requests by path and status.", ["path", "status"], registry=self._registry
        )
        self._prompt = Counter("swift_prompt_tokens", "Tokens that were read.", registry=self._registry)
        self._generated = Counter("swift_generated_tokens", "Tokens that were written.", registry=self._registry)
        self._left = Counter("swift_left", "Requests whose client left before the end.", registry=self._registry)
        self._first = Histogram(
            "swift_first_token_seconds", "Seconds to the first token.", buckets=SECONDS, registry=self._registry
        )
        self._whole = Histogram(
            "swift_request_seconds", "Seconds to the last token.", buckets=SECONDS, registry=self._registry
        )
        inside = Gauge("swift_requests_inside", "Requests that are answered or wait.", registry=self._registry)
        inside.set_function(lambda: gate.inside)
        self.interval = Span()
        self.total = Span()

    def answered(self, path: str, status: int) -> None:
        """A request has got its answer; status 0 is none, because the client left."""
        self._requests.labels(path if path in self._paths else "other", str(status)).inc()

    def first_token(self, seconds: float) -> None:
        """The first token of a reply has come."""
        self._first.observe(seconds)

    def left(self) -> None:
        """A client has left before the end."""
        self._left.inc()

    def done(self, prompt_tokens: int, generated_tokens: int, seconds: float) -> None:
        """The model has answered a request."""
        self._prompt.inc(prompt_tokens)
        self._generated.inc(generated_tokens)
        self._whole.observe(seconds)
        for span in (self.interval, self.total):
            span.samples += 1
            span.prompt_tokens += prompt_tokens
            span.generated_tokens += generated_tokens

    def report(self) -> None:
        """Log what happened since the last report, if anything did or goes on, and begin anew."""
        if self.interval.samples or self._gate.inside:
            get_logger().info("%s, requests inside: %d", self.interval.summary(), self._gate.inside)
        self.interval = Span()

    def text(self) -> bytes:
        """All counters, as Prometheus reads them."""
        return generate_latest(self._registry)
