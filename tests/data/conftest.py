"""What the tests of data share: the messages that were logged."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from hypothesis import settings

from swift.core.logs import get_logger

# A busy machine is no failure, and what a run finds stays out of the checkout.
settings.register_profile("data", deadline=None, database=None)
settings.load_profile("data")


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """The messages that Swiftlet logs during the test."""
    collector = _Collector()
    get_logger().addHandler(collector)
    yield collector.messages
    get_logger().removeHandler(collector)
