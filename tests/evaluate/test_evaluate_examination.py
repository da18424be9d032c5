"""Benchmarks that come to nothing are named with the reason, and cost nothing else."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from swift.core.errors import MissingPackage
from swift.evaluate.examination import LOG, Examination, Task, check_benchmarks
from swift.options.parse import parse
from swift.proofs.variants import prepared_for_proof

absent = pytest.mark.skipif(find_spec("evalscope") is not None, reason="EvalScope is here")


@absent
@pytest.mark.parameter("eval_use_evalscope")
def test_without_evalscope_its_installation_is_named():
    with pytest.raises(
        MissingPackage, match=r"--eval_use_evalscope true needs the package evalscope.*swiftlet\[eval\]"
    ):
        check_benchmarks(["gsm8k"])


@pytest.mark.slow
def test_an_examiner_that_dies_leaves_a_reason_for_every_benchmark(tmp_path):
    with Examination(Task(("gsm8k", "arc"), "model", 4, 0, hub="nowhere", limit=-1), tmp_path / "eval") as examination:
        while (asked := examination.questions(1.0)) is not None:
            assert asked == []
    assert examination.marks.scores == {}
    assert examination.marks.failures.keys() == {"gsm8k", "arc"}
    assert all(LOG in why for why in examination.marks.failures.values())


@pytest.mark.slow
def test_an_examination_that_is_left_early_leaves_no_process_behind(tmp_path):
    with Examination(Task(("gsm8k",), "model", 4, 0), tmp_path / "eval") as examination:
        process = examination.process
        assert process.poll() is None
    assert process.returncode is not None


def test_a_proof_asks_no_benchmarks():
    words = [
        "--model",
        "owner/name",
        "--dataset",
        "owner/rows",
        "--eval_use_evalscope",
        "true",
        "--eval_dataset",
        "gsm8k",
    ]
    command = prepared_for_proof(parse("sft", words), 2)
    assert not command.evaluation.eval_use_evalscope
    assert command.training.eval_strategy == "no"
