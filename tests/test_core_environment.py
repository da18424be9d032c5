"""Variables of the environment: what they can hold, and what is said when they hold something else."""

from __future__ import annotations

import logging

import pytest

from swift.core import environment
from swift.core.errors import UsageError
from swift.core.logs import get_logger


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1", True), ("True", True), ("on", True), ("0", False), ("no", False), ("", True)],
)
def test_a_switch_is_on_or_off_and_empty_is_its_default(monkeypatch, text, expected):
    monkeypatch.setenv("INFONCE_USE_BATCH", text)
    assert environment.INFONCE_USE_BATCH.flag() is expected


def test_a_switch_without_a_default_is_off():
    assert environment.Variable("NEVER_SET_ANYWHERE", "").flag() is False


def test_a_misspelt_switch_is_refused_and_not_taken_for_off(monkeypatch):
    monkeypatch.setenv("INFONCE_USE_BATCH", "ture")
    with pytest.raises(UsageError, match="INFONCE_USE_BATCH must be true or false"):
        environment.INFONCE_USE_BATCH.flag()


def test_an_unknown_level_is_said_and_info_is_taken(monkeypatch, capsys):
    logger = logging.getLogger("swift")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", logger.propagate)
    monkeypatch.setattr(logger, "level", logger.level)
    monkeypatch.setenv("LOG_LEVEL", "loud")
    assert get_logger().level == logging.INFO
    assert "LOG_LEVEL is LOUD, and must be one of DEBUG" in capsys.readouterr().err
