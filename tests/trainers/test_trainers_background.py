"""Checkpoints that are written while training goes on are those that would have been written at once."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import runs
import test_trainers_streaming as streams
import torch
from transformers import TrainerCallback

from swift.core.errors import RunError
from swift.trainers.background import Saver, Snapshot, unchanging
from swift.trainers.checkpoints import MANIFEST, damage
from swift.trainers.outputs import checkpoints, resumable

SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}


def proofs(checkpoint: Path) -> dict[str, str]:
    """The contents of the files of a checkpoint that depend on the training alone."""
    files = json.loads((checkpoint / MANIFEST).read_text())["files"]
    return {name: proof["sha256"] for name, proof in files.items()
            if name not in ("training_args.bin", "trainer_state.json")}  # fmt: skip


@pytest.mark.parameter("use_flash_ckpt")
@pytest.mark.parametrize("kind", ["full", "lora", "stream"])
def test_what_is_written_while_training_goes_on_is_what_is_written_at_once(tmp_path, kind):
    made = {}
    for background in (False, True):
        train = streams.stream(streams.rows(tmp_path / "rows.jsonl")) if kind == "stream" else None
        model = runs.lora(0.2) if kind == "lora" else None
        made[background] = runs.train(tmp_path / str(background), model=model, train=train, use_flash_ckpt=background,
                                      max_steps=7, **SAVING)  # fmt: skip
    assert runs.equal(made[True].weights(), made[False].weights())
    for step in (2, 4, 6, 7):
        one, other = (tmp_path / str(background) / f"checkpoint-{step}" for background in (False, True))
        assert damage(other) == []
        assert proofs(one) == proofs(other)
    assert made[True].outcome.last == tmp_path / "True" / "checkpoint-7"
    assert not list((tmp_path / "True").glob(".checkpoint-*"))


@pytest.mark.parameter("use_flash_ckpt")
def test_a_run_goes_on_from_what_was_written_meanwhile_to_the_last_bit(tmp_path):
    settings = {"max_steps": 7, "use_flash_ckpt": True, **SAVING}
    whole = runs.train(tmp_path / "a", model=runs.lora(0.2), **settings)
    on = runs.train(tmp_path / "b", model=runs.lora(0.2), resume=tmp_path / "a" / "checkpoint-4", **settings)
    assert runs.equal(on.weights(), whole.weights())


@pytest.mark.parameter("save_total_limit")
@pytest.mark.parameter("create_checkpoint_symlink")
def test_limits_and_links_count_only_what_is_whole(tmp_path):
    counts = []

    class Counts(TrainerCallback):
        def on_step_end(self, *_, **__):
            counts.append(len(checkpoints(tmp_path)))

    run = runs.prepare(tmp_path, max_steps=9, use_flash_ckpt=True, save_total_limit=2, create_checkpoint_symlink=True,
                       save_strategy="steps", save_steps=1)  # fmt: skip
    run.trainer.add_callback(Counts())
    outcome = run.session.run(run.trainer, None, {})
    assert max(counts) <= 3  # two, and the one that is coming
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-8", "checkpoint-9"]
    assert (tmp_path / "last").resolve() == outcome.last == tmp_path / "checkpoint-9"


def test_a_checkpoint_that_is_being_written_when_training_fails_is_finished(tmp_path):
    class Fails(TrainerCallback):
        def on_step_begin(self, _, state, *__, **___):
            if state.global_step == 2:
                raise ZeroDivisionError

    run = runs.prepare(tmp_path, max_steps=9, use_flash_ckpt=True, **SAVING)
    run.trainer.add_callback(Fails())
    with pytest.raises(ZeroDivisionError):
        run.session.run(run.trainer, None, {})
    assert resumable(str(tmp_path)) == tmp_path / "checkpoint-2"


# ------------------------------------------------------------------------------------------------------------ the parts


def test_work_in_the_background_comes_one_after_the_other_and_its_failure_is_raised_once():
    saver, order, gate = Saver(background=True), [], threading.Event()

    def slow() -> None:
        gate.wait()
        order.append("slow")

    def fails() -> None:
        raise RunError("the disk is full")

    saver.submit(slow)
    assert order == []
    threading.Timer(0.05, gate.set).start()
    saver.submit(fails)
    assert order == ["slow"]
    with pytest.raises(RunError, match="the disk is full"):
        checked(saver)
    saver.wait()
    saver.finish()


def checked(saver: Saver) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        saver.check()


def test_a_copy_stays_what_it_was_keeps_what_is_tied_and_uses_its_memory_again():
    weight, frozen = torch.ones(3, 4), torch.ones(2)
    tree = {"a": weight, "tied": weight, "frozen": frozen, "deep": [{"b": (torch.arange(3), 5, None)}]}
    snapshot = Snapshot()
    snapshot.reserve(tree, frozenset({frozen.data_ptr()}))()
    reserved = {name: buffer.data_ptr() for name, buffer in snapshot._buffers.items()}
    assert sorted(reserved) == ["/a", "/deep/0/b/0"]
    copy = snapshot.take(tree, frozenset({frozen.data_ptr()}))
    weight.zero_()
    assert torch.equal(copy["a"], torch.ones(3, 4))
    assert copy["a"] is copy["tied"]
    assert copy["frozen"].data_ptr() == frozen.data_ptr()
    assert torch.equal(copy["deep"][0]["b"][0], torch.arange(3))
    assert copy["deep"][0]["b"][1:] == (5, None)
    again = snapshot.take(tree)
    assert again["a"].data_ptr() == copy["a"].data_ptr() == reserved["/a"]
    assert not again["a"].any()


def test_what_no_step_changes_is_what_is_frozen_and_not_with_the_optimizer():
    model = runs.lora()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad])
    kept = unchanging(model, optimizer)
    assert all((p.data_ptr() in kept) != p.requires_grad for p in model.parameters())
    everything = torch.optim.SGD(list(model.parameters()))
    assert unchanging(model, everything) == frozenset()
