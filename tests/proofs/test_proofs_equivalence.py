"""What two trainings are compared by: differences are found, measured and located."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import architectures
import tiny
from swift.core.errors import UsageError
from swift.models.info import model_info
from swift.options import proving
from swift.options.model import ModelOptions
from swift.options.parse import parse
from swift.proofs import equivalence, shrink, variants
from swift.proofs.trace import BEGIN, END, GRADIENT, OPTIMIZER, Trace

LIMITS = equivalence.LIMITS["float32"]


def record(folder: Path, trace: Trace, end: float = 2.0, **tensors: torch.Tensor) -> equivalence.Record:
    """A training that moved its two parameters from 1 to `end`."""
    folder.mkdir()
    trace.write(folder / "trace-0.json")
    values = {"a": torch.full((4,), end), "b": torch.full((2,), 2.0)}
    save_file({name: torch.ones_like(value) for name, value in values.items()}, folder / BEGIN)
    save_file({**values, **tensors}, folder / END)
    for file in (GRADIENT, OPTIMIZER):
        save_file(values, folder / file)
    return equivalence.Record(folder)


def trace(losses: tuple[float, ...] = (3.0, 2.0), first: int = 1, **changes: object) -> Trace:
    steps = len(losses)
    values = {"norms": [1.0] * steps, "rates": [0.1] * steps, "tokens": [[first + i, 7] for i in range(steps)]}
    return Trace(first=first, losses=list(losses), **{**values, **changes})


def test_the_first_step_and_the_parameter_that_differ_are_named(tmp_path):
    base = record(tmp_path / "base", trace())
    other = record(tmp_path / "other", trace((3.0, 2.5)), end=2.5)
    found = {difference.what: difference for difference in equivalence.same_steps(base, other, LIMITS)}
    assert found["rows of each step"].holds
    assert (found["loss"].found, found["loss"].where) == (0.25, "step 2: 2 and 2.5")
    weights = found["weights after 2 steps"]
    assert weights.found == pytest.approx(1 / math.sqrt(6))  # |4 x 0.5| of |6 x 1|
    assert weights.where == "a: 1 of 2"
    assert not weights.holds


def test_rows_of_a_step_are_those_of_all_processes_in_any_order(tmp_path):
    whole = record(tmp_path / "one", trace(tokens=[[1, 2, 3], [4, 5]]))
    parted = record(tmp_path / "two", trace(tokens=[[3], [5]]))
    trace(tokens=[[2, 1], [4]]).write(parted.folder / "trace-1.json")
    [rows, *_] = equivalence.same_steps(whole, parted, LIMITS)
    assert rows.holds
    trace(tokens=[[2, 1], [9]]).write(parted.folder / "trace-1.json")
    [rows, *_] = equivalence.same_steps(whole, parted, LIMITS)
    assert (rows.found, rows.where) == (1, "step 2")


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_loss_that_is_no_number_never_holds(tmp_path, wrong):
    base = record(tmp_path / "base", trace())
    other = record(tmp_path / "other", trace((3.0, wrong)))
    loss = next(d for d in equivalence.same_steps(base, other, LIMITS) if d.what == "loss")
    assert not loss.holds
    assert loss.where.startswith("step 2")


def test_a_parameter_that_one_training_lacks_never_holds(tmp_path):
    base, other = record(tmp_path / "base", trace()), record(tmp_path / "other", trace(), c=torch.ones(1))
    weights = list(equivalence.same_steps(base, other, LIMITS))[-1]
    assert (weights.holds, weights.where) == (False, "only one of them has c")


def test_a_resumed_training_must_see_the_same_rows_in_the_same_order(tmp_path):
    whole = record(tmp_path / "whole", trace((3.0, 2.0, 1.0)))
    before, after = record(tmp_path / "before", trace((3.0, 2.0))), record(tmp_path / "after", trace((1.0,), first=3))
    assert all(d.holds for d in equivalence.resumed(whole, before, after, equivalence.SAME))
    other = record(tmp_path / "other", trace((1.0,), first=3, tokens=[[7, 3]]))
    wrong = [d for d in equivalence.resumed(whole, before, other, equivalence.SAME) if not d.holds]
    assert [(d.what, d.where) for d in wrong] == [("rows and their order", "step 3")]
    again = record(tmp_path / "again", trace((1.0,), first=1))
    assert not next(equivalence.resumed(whole, before, again, equivalence.SAME)).holds


def test_a_report_without_a_comparison_does_not_hold():
    report = equivalence.Report("batch", "sft", "the CPU", "float32")
    assert not report.holds
    report.findings.append(equivalence.Finding("a", "b", left_out="no"))
    assert not report.holds
    report.findings.append(equivalence.Finding("a", "b", (equivalence.Difference("loss", 0, 0),)))
    assert report.holds
    report.findings.append(equivalence.Finding("c", "b", error="it burst"))
    assert not report.holds


@pytest.mark.parametrize("family", architectures.FAMILIES)
def test_a_small_copy_keeps_architecture_and_vocabulary(tmp_path, family):
    from transformers import AutoModelForCausalLM

    (tmp_path / "large").mkdir()
    config = architectures.model(family).config
    config.architectures = [type(architectures.model(family)).__name__]
    config.save_pretrained(tmp_path / "large")
    info = model_info(ModelOptions(model=str(tmp_path / "large"), torch_dtype="float32"))
    count = shrink.shrink(info, tmp_path / "small")
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert small.num_parameters() == count
    assert type(small).__name__ == config.architectures[0]
    assert small.config.get_text_config().vocab_size == 100
    again = shrink.shrink(info, tmp_path / "again")
    assert again == count


def test_dropout_of_the_config_is_taken_away_in_a_view_that_shares_the_weights(tmp_path):
    folder = tiny.checkpoint(tmp_path / "model", attention_dropout=0.1)
    assert shrink.still(model_info(ModelOptions(model=str(folder))), tmp_path / "view") == ["attention_dropout"]
    assert json.loads((tmp_path / "view" / "config.json").read_text())["attention_dropout"] == 0
    assert json.loads((folder / "config.json").read_text())["attention_dropout"] == 0.1
    assert (tmp_path / "view" / "model.safetensors").resolve() == folder / "model.safetensors"
    calm = tiny.checkpoint(tmp_path / "calm")
    assert shrink.still(model_info(ModelOptions(model=str(calm))), tmp_path / "none") == []


def test_what_compares_rows_of_a_batch_is_said_to_depend_on_it(monkeypatch):
    words = ["--model", "m", "--dataset", "d", "--task_type", "embedding"]
    setting = variants.Setting(4, 2, None)
    monkeypatch.setenv("INFONCE_USE_BATCH", "true")
    left = [v.left_out for v in variants.batch_variants(parse("sft", [*words, "--loss_type", "infonce"]), setting)]
    assert sum("in-batch negatives" in reason for reason in left) >= 4
    monkeypatch.setenv("INFONCE_USE_BATCH", "false")
    left = [v.left_out for v in variants.batch_variants(parse("sft", [*words, "--loss_type", "infonce"]), setting)]
    assert not any("in-batch negatives" in reason for reason in left)


def test_only_a_few_rows_of_each_data_set_are_asked_for():
    assert [variants.few(name) for name in ("a.jsonl", "b.jsonl#7", "hf::c:x#5000")] == [
        "a.jsonl#64", "b.jsonl#7", "hf::c:x#64",
    ]  # fmt: skip


def test_the_words_of_prove_are_taken_out_and_the_others_are_left():
    words = ["merge", "pt", "--tiny", "--model", "m", "--steps=7", "--json", "f.json", "--padding_free", "true"]
    asked = proving.read(words, "en")
    assert asked == proving.Proving(
        ("merge",), "pt", ("--model", "m", "--padding_free", "true"), tiny=True, steps=7, json="f.json"
    )
    assert proving.read(["all"], "en").proofs == ("batch", "resume", "merge")
    with pytest.raises(UsageError):
        proving.read(["--model", "m"], "en")
