"""The generated page of parameters: current, and honest about what works."""

from __future__ import annotations

import pytest

from swift.commands import manual


def test_the_page_is_what_would_be_written():
    assert manual.main(["--check"]) == 0, "run python -m swift.commands.manual"


def test_every_parameter_that_works_has_a_test_that_shows_its_effect(capsys):
    counts = manual.counts()
    with capsys.disabled():
        print(f"\nparameters of the manual: {counts}")
    assert counts.get("works, no effect test yet", 0) == 0
    assert counts["works"] > 100


def test_what_hangs_on_a_feature_to_come_is_not_said_to_work():
    text = manual.page()
    row = next(line for line in text.splitlines() if line.startswith("| `thread_count`"))
    assert row.endswith("| not yet |")
    row = next(line for line in text.splitlines() if line.startswith("| `lora_rank`"))
    assert "works (" in row


@pytest.mark.parametrize(("flag", "wanted", "available"), [
    ("tuner_type", ("lora",), True),
    ("tuner_type", ("reft",), True),
    ("use_flash_ckpt", (), True),
    ("push_to_hub", (), True),
    ("report_to", ("swanlab",), True),
    ("val_dataset", (), True),
    ("quant_method", ("bnb",), True),
    ("quant_method", ("gptq",), False),
    ("quant_bits", (4,), True),
    ("command", ("sft", "rlhf"), True),
    ("command", ("deploy",), True),
    ("command", ("app",), True),
    ("command", ("web-ui",), False),
])  # fmt: skip
def test_which_values_are_available_follows_the_declarations(flag, wanted, available):
    assert manual.is_available(flag, wanted) is available
