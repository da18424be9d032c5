"""This file knows how Swiftlet speaks: one logger, heard from the first process only, and its level."""

from __future__ import annotations

import logging
import sys

from swift.core import environment

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class _FromRankZero(logging.Filter):
    """Lets through what the first process says, and warnings of all others."""

    def filter(self, record: logging.LogRecord) -> bool:
        return environment.rank() == 0 or record.levelno >= logging.WARNING


class _Format(logging.Formatter):
    """`[swift] message`, with the level and the rank only where they say something."""

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno <= logging.INFO else f" {record.levelname.lower()}:"
        rank = f" rank {environment.rank()}" if environment.world_size() > 1 and record.levelno > logging.INFO else ""
        return f"[swift{rank}]{level} {record.getMessage()}"


class _ToStandardError(logging.Handler):
    """Writes to whatever standard error is at the time, so that it can be redirected after the first message."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(self.format(record) + "\n")
        sys.stderr.flush()


def get_logger() -> logging.Logger:
    """The logger of Swiftlet. It writes to standard error, so that replies on standard output stay clean."""
    logger = logging.getLogger("swift")
    if not logger.handlers:
        handler = _ToStandardError()
        handler.addFilter(_FromRankZero())
        handler.setFormatter(_Format())
        logger.addHandler(handler)
        logger.propagate = False
        level = (environment.LOG_LEVEL.get() or "INFO").upper()
        logger.setLevel(level if level in LEVELS else "INFO")
        if level not in LEVELS:
            logger.warning("LOG_LEVEL is %s, and must be one of %s: INFO is taken", level, ", ".join(LEVELS))
    return logger
