"""Checkpoints that are whole or not there: damage is found, a full disk harms nothing, the newest good one is taken."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import runs
import test_trainers_streaming as streams
from transformers import TrainerCallback

from swift.core.errors import RunError
from swift.data.collate import Padded
from swift.trainers.checkpoints import MANIFEST, Place, damage, delete, seal, start, tidy
from swift.trainers.claims import FILE_NAME, Claim, is_held
from swift.trainers.outputs import Continuation, checkpoints, new_folder, resumable

SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, Path]:
    """The runs whose checkpoints are damaged: of a whole model, of an adapter, of a stream; each with two checkpoints."""
    base = tmp_path_factory.mktemp("saved")
    made = {
        "full": runs.train(base / "full", max_steps=2, **SAVING),
        "lora": runs.train(base / "lora", model=runs.lora(), max_steps=2, **SAVING),
        "stream": runs.train(
            base / "stream", train=streams.stream(streams.rows(base / "rows.jsonl")), max_steps=2, **SAVING
        ),
    }
    return {name: run.session.folder for name, run in made.items()}


def cut(file: Path) -> None:
    with file.open("rb+") as opened:
        opened.truncate(file.stat().st_size - 1)


def flip(file: Path) -> None:
    """Change one bit in the middle."""
    contents = bytearray(file.read_bytes())
    contents[len(contents) // 2] ^= 4
    file.write_bytes(contents)


# -------------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parameter("resume_from_checkpoint")
@pytest.mark.parametrize("kind", ["full", "lora", "stream"])
@pytest.mark.parametrize("harm", [cut, flip, Path.unlink], ids=["cut", "flipped", "removed"])
def test_harm_to_any_file_is_found_before_training_and_an_older_checkpoint_is_taken(saved, tmp_path, told, kind, harm):
    run = tmp_path / "run"
    shutil.copytree(saved[kind], run)
    newest = run / "checkpoint-2"
    names = [file.relative_to(newest).as_posix() for file in newest.rglob("*") if file.is_file()]
    expected = {"full": "model.safetensors", "lora": "adapter_model.safetensors", "stream": "stream.json"}[kind]
    assert {expected, MANIFEST, "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json",
            "training_args.bin"} <= set(names)  # fmt: skip
    for name in names:
        before = (newest / name).read_bytes()
        harm(newest / name)
        assert any(name in words for words in damage(newest)), name
        assert resumable(str(run)) == run / "checkpoint-1", name
        with pytest.raises(RunError) as refused:
            resumable(str(newest))
        assert name in str(refused.value)
        assert str(run / "checkpoint-1") in str(refused.value)
        assert any(line.startswith(f"passing over {newest}") and name in line for line in told)
        (newest / name).write_bytes(before)
        told.clear()
    assert resumable(str(run)) == newest
    assert told == []


def test_a_change_of_any_byte_of_the_manifest_is_found(saved):
    file = saved["lora"] / "checkpoint-1" / MANIFEST
    before = file.read_bytes()
    for place in range(0, len(before), 7):
        for bit in range(8):
            changed = bytearray(before)
            changed[place] ^= 1 << bit
            file.write_bytes(changed)
            assert damage(file.parent), (place, bit)
    file.write_bytes(before)
    assert damage(file.parent) == []


def test_what_is_damaged_says_what_was_expected(saved, tmp_path):
    checkpoint = Path(shutil.copytree(saved["lora"] / "checkpoint-2", tmp_path / "checkpoint-2"))
    size = (checkpoint / "optimizer.pt").stat().st_size
    cut(checkpoint / "optimizer.pt")
    flip(checkpoint / "adapter_model.safetensors")
    weights, optimizer = damage(checkpoint)
    assert optimizer == f"optimizer.pt has {size - 1} bytes and should have {size}"
    assert "adapter_model.safetensors has other contents than were written" in weights
    proof = json.loads((checkpoint / MANIFEST).read_text())["files"]["adapter_model.safetensors"]["sha256"]
    assert proof[:12] in weights


def test_files_that_somebody_added_do_no_harm(saved, tmp_path):
    checkpoint = Path(shutil.copytree(saved["lora"] / "checkpoint-2", tmp_path / "checkpoint-2"))
    (checkpoint / "notes.txt").write_text("the good one")
    assert damage(checkpoint) == []


def test_a_checkpoint_of_another_program_has_no_manifest_and_can_be_continued_with_a_warning(saved, tmp_path, told):
    run = Path(shutil.copytree(saved["full"], tmp_path / "run"))
    for checkpoint in checkpoints(run):
        (checkpoint / MANIFEST).unlink()
    assert resumable(str(run)).name == "checkpoint-2"
    assert any("has no manifest.json" in line for line in told)
    (run / "checkpoint-2" / "optimizer.pt").unlink()
    assert resumable(str(run)).name == "checkpoint-1"


def test_a_folder_of_runs_gives_the_newest_good_checkpoint_of_the_newest_run_that_has_one(saved, tmp_path, told):
    for version, kind in (("v9-x", "full"), ("v10-x", "lora"), ("v11-x", None)):
        if kind:
            shutil.copytree(saved[kind], tmp_path / version)
        else:
            (tmp_path / version).mkdir()
    assert resumable(str(tmp_path)) == tmp_path / "v10-x" / "checkpoint-2"
    for step in (1, 2):
        flip(tmp_path / "v10-x" / f"checkpoint-{step}" / "optimizer.pt")
    assert resumable(str(tmp_path)) == tmp_path / "v9-x" / "checkpoint-2"
    shutil.rmtree(tmp_path / "v9-x")
    with pytest.raises(RunError, match=r"no checkpoint there can be continued:\n.*checkpoint-2.*\n.*checkpoint-1"):
        resumable(str(tmp_path))


# ------------------------------------------------------------------------------------------------------------- writing


def test_a_checkpoint_appears_whole_and_leaves_nothing_beside_it(tmp_path):
    runs.train(tmp_path, max_steps=2, **SAVING)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-2"]
    assert all(damage(path) == [] for path in checkpoints(tmp_path))
    assert not list(tmp_path.glob(".checkpoint-*"))


def test_a_checkpoint_that_was_there_is_replaced_by_a_whole_one(tmp_path):
    first = runs.train(tmp_path, max_steps=1, **SAVING)
    (tmp_path / "checkpoint-1" / "of-the-first").write_text("")
    runs.train(tmp_path, max_steps=1, seed=7, learning_rate=0.1, **SAVING)
    assert damage(first.outcome.last) == []
    assert not (tmp_path / "checkpoint-1" / "of-the-first").exists()


def test_leftovers_of_a_killed_run_are_removed_and_what_had_made_room_comes_back(tmp_path, told):
    place = Place.of(tmp_path, 3)
    start(place)
    (place.partial / "a").write_text("1")
    seal(place, 3, each_node=False)
    start(place)
    (place.partial / "a").write_text("2")  # killed before it is sealed
    place.final.rename(tmp_path / ".checkpoint-3.old")  # and another one between two renamings
    assert resumable_names(tmp_path) == []
    tidy(tmp_path)
    assert resumable_names(tmp_path) == ["checkpoint-3"]
    assert (place.final / "a").read_text() == "1"
    assert damage(place.final) == []
    assert not list(tmp_path.glob(".checkpoint-*"))
    delete(place.final)
    assert not list(tmp_path.iterdir())


def resumable_names(folder: Path) -> list[str]:
    return [path.name for path in checkpoints(folder)]


def limited(folder: Path, limit: int, background: bool, end: Any) -> None:
    """Train in a process that can write no larger file than `limit`, from the second checkpoint on."""

    class Shrink(TrainerCallback):
        def on_step_begin(self, _, state, *__, **___):
            if state.global_step == 1:
                while not (folder / "checkpoint-1").exists():  # it is written while training goes on
                    time.sleep(0.01)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    try:
        run = runs.prepare(folder, max_steps=3, use_flash_ckpt=background, **SAVING)
        run.trainer.add_callback(Shrink())
        run.session.run(run.trainer, None, {})
    except RunError as error:
        end.send(str(error))
    else:
        end.send("nothing was wrong")


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("limit", [4_000, 200_000])
def test_a_full_disk_ends_the_run_with_the_reason_and_leaves_the_checkpoint_before_intact(tmp_path, background, limit):
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=limited, args=(tmp_path, limit, background, theirs))
    process.start()
    said = ours.recv() if ours.poll(120) else "nothing"
    process.join()
    assert "checkpoint-2 could not be written" in said
    assert "GiB free" in said
    assert f"{tmp_path / 'checkpoint-1'} is whole" in said
    assert resumable(str(tmp_path)) == tmp_path / "checkpoint-1"
    assert not list(tmp_path.glob(".checkpoint-*"))


# -------------------------------------------------------------------------------------------------------------- claims


def hold(folder: Path, end: Any) -> None:
    with Claim(folder).take():
        end.send(os.getpid())
        end.recv()


def test_a_second_run_in_a_folder_is_refused_by_name_until_the_first_has_ended(tmp_path, told):
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path, theirs))
    process.start()
    pid = ours.recv()
    assert is_held(tmp_path)
    with pytest.raises(RunError, match=rf"is being written by process {pid} on "):
        Claim(tmp_path).take()
    process.kill()
    process.join()
    assert not is_held(tmp_path)
    with Claim(tmp_path).take():
        assert json.loads((tmp_path / FILE_NAME).read_text())["pid"] == os.getpid()
    assert any(f"was held by process {pid}" in line and "has ended" in line for line in told)


def test_children_neither_hold_the_folder_nor_keep_it(tmp_path):
    """A process that prepares batches may outlive a killed training by a few seconds."""
    ours, theirs = multiprocessing.Pipe()
    with Claim(tmp_path).take():
        child = multiprocessing.get_context("fork").Process(target=theirs.recv)
        child.start()
    with Claim(tmp_path).take():
        pass
    child.kill()
    child.join()
    ours.close()


@pytest.mark.parameter("add_version")
def test_runs_that_begin_in_the_same_second_get_folders_of_their_own(tmp_path):
    from datetime import datetime

    now = datetime(2031, 2, 3, 4, 5, 6)
    made = [new_folder(tmp_path, now) for _ in range(3)]
    assert [folder.name.partition("-")[0] for folder in made] == ["v0", "v1", "v2"]
    assert all(folder.is_dir() for folder in made)


# ------------------------------------------------------------------------------------------------- what is gone on from


@pytest.mark.parameter("resume_only_model")
def test_weights_alone_go_on_at_their_step_and_row_with_a_new_optimizer(tmp_path):
    settings: dict[str, Any] = {
        "max_steps": 8,
        "save_steps": 5,
        "save_strategy": "steps",
        "lr_scheduler_type": "linear",
    }
    whole = runs.train(tmp_path / "whole", **settings)
    checkpoint = tmp_path / "whole" / "checkpoint-5"
    alone = runs.train(tmp_path / "alone", resume=Continuation(checkpoint, weights_only=True), **settings)
    steps = [entry["step"] for entry in alone.history if "loss" in entry]
    assert steps == list(range(1, 9))
    assert alone.logged("learning_rate") == whole.logged("learning_rate")
    assert alone.logged("loss")[5] == whole.logged("loss")[5]  # the same weights, the same rows
    assert not runs.equal(alone.weights(), whole.weights())  # Adam knows no past gradients
    state = next(iter(alone.trainer.optimizer.state_dict()["state"].values()))
    assert int(state["step"]) == 3


@pytest.mark.parameter("ignore_data_skip")
def test_without_skipping_data_a_run_begins_anew_from_the_weights(tmp_path):
    settings: dict[str, Any] = {"max_steps": 4, "save_steps": 2, "save_strategy": "steps"}
    first = runs.train(tmp_path / "first", **settings)
    again = Continuation(tmp_path / "first" / "checkpoint-4", weights_only=True, anew=True)
    anew = runs.train(tmp_path / "anew", resume=again, **settings)
    plain = runs.train(tmp_path / "plain", model=first.trainer.model, **settings)
    assert [entry["step"] for entry in anew.history if "loss" in entry] == [1, 2, 3, 4]
    assert anew.logged("loss") == plain.logged("loss")
    assert runs.equal(anew.weights(), plain.weights())


@pytest.mark.parameter("save_only_model")
@pytest.mark.parameter("resume_only_model")
@pytest.mark.parametrize("streamed", [False, True])
def test_a_checkpoint_of_weights_alone_can_be_gone_on_from_as_such(tmp_path, streamed):
    def train(name: str, **more: Any) -> runs.Run:
        rows = streams.stream(streams.rows(tmp_path / "rows.jsonl")) if streamed else None
        return runs.train(tmp_path / name, train=rows, max_steps=4, save_only_model=True, **SAVING, **more)

    train("first")
    assert resumable(str(tmp_path / "first"), weights_only=True).name == "checkpoint-4"
    with pytest.raises(RunError, match="add --resume_only_model true"):
        resumable(str(tmp_path / "first" / "checkpoint-2"))
    going = train("second", resume=Continuation(tmp_path / "first" / "checkpoint-2", weights_only=True))
    assert [entry["step"] for entry in going.history if "loss" in entry] == [1, 2, 3, 4]


# ---------------------------------------------------------------------------------------------- steps of another size


class Watched:
    """A collator that keeps the rows it is given."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, ...]] = []

    def __call__(self, samples: Any) -> Any:
        self.rows += [tuple(sample.input_ids) for sample in samples]
        return Padded(0)(samples)


@pytest.mark.parameter("resume_from_checkpoint")
@pytest.mark.parametrize(("steps", "rows", "again"), [(3, 8, 4), (3, 2, 0), (5, 8, 4), (4, 8, 0)])
def test_a_run_in_steps_of_another_size_goes_on_behind_the_rows_it_has_seen(tmp_path, told, steps, rows, again):
    """16 rows in steps of 4, stopped after some steps, then in steps of 8 or 2: what is left comes, and nothing else."""

    def train(name: str, step_rows: int, **more: Any) -> tuple[runs.Run, list[tuple[int, ...]]]:
        watched = Watched()
        run = runs.train(tmp_path / name, collate=watched, per_device_train_batch_size=step_rows,
                         gradient_accumulation_steps=1, num_train_epochs=2.0, save_strategy="steps", save_steps=steps,
                         **{"max_steps": -1, **more})  # fmt: skip
        return run, watched.rows

    _, order = train("whole", 4)
    run, seen = train("other", rows, resume=tmp_path / "whole" / f"checkpoint-{steps}")
    assert len(order) == 32
    assert seen[-(32 - steps * 4 + again) :] == order[steps * 4 - again :]
    left = (32 - steps * 4 + again) // rows
    assert run.trainer.state.global_step == steps + left
    assert run.trainer.state.max_steps == steps + left
    assert any(
        f"had 4: going on behind {steps * 4 % 16} rows" in line and f"{again} come again" in line for line in told
    )
    # and once more, from a checkpoint of that run, as if it had not been stopped
    on, _ = train("on", rows, resume=resumable(str(tmp_path / "other")))
    assert runs.equal(on.weights(), run.weights())


def test_as_many_steps_as_were_asked_for_are_made_whatever_their_size(tmp_path):
    settings: dict[str, Any] = {"gradient_accumulation_steps": 1, "save_strategy": "steps", "save_steps": 4}
    runs.train(tmp_path / "a", per_device_train_batch_size=8, max_steps=4, **settings)
    on = runs.train(tmp_path / "b", per_device_train_batch_size=2, max_steps=40, resume=tmp_path / "a" / "checkpoint-4",
                    **settings)  # fmt: skip
    assert on.trainer.state.global_step == 40


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train": runs.samples(20)}, "there were 16 rows and are 20"),
        ({"seed": 43}, "--data_seed was 42 and is 43"),
        ({"train_dataloader_shuffle": False}, "--train_dataloader_shuffle was True and is False"),
    ],
)
def test_other_rows_or_another_order_are_refused_and_say_so(tmp_path, changes, words):
    runs.train(tmp_path / "a", max_steps=1, **SAVING)
    with pytest.raises(RunError, match=f"because {words}.*--ignore_data_skip true"):
        runs.train(tmp_path / "b", max_steps=2, resume=tmp_path / "a" / "checkpoint-1", **changes)
