"""Trainings on rows that are read while they go on: stopped and continued, on one process or two, to an end by epochs."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import runs
import torch
from transformers import TrainerCallback

import tiny
from swift.chat.render import Renderer
from swift.commands import sft
from swift.core.errors import DataError, RunError
from swift.data.collate import Flattened
from swift.data.encode import load_samples
from swift.data.stream import Stream, open_stream
from swift.options.data import DataOptions
from swift.options.parse import parse
from swift.options.template import TemplateOptions

WORKER = Path(__file__).with_name("streaming_worker.py")


def rows(file: Path, count: int = 50, broken: int = 9) -> Path:
    """Conversations, every ninth line of them cut."""
    lines = [json.dumps(row) for row in tiny.conversations(count)]
    file.write_text("\n".join(line[:-9] if i % broken == broken - 1 else line for i, line in enumerate(lines)))
    return file


def template() -> TemplateOptions:
    return TemplateOptions(max_length=128, truncation_strategy="delete")


def stream(*files: Path, packing_length: int | None = None, **options: Any) -> Stream:
    data = DataOptions(dataset=[str(file) for file in files], streaming=True, **options)
    return open_stream(data, template(), Renderer(tiny.tokenizer(), template()), packing_length=packing_length)


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*"))


# ------------------------------------------------------------------------------------------------------------ going on


@pytest.mark.parameter("streaming")
@pytest.mark.parameter("resume_from_checkpoint")
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["shuffled", "interleaved", "packed"])
def test_a_resumed_stream_is_the_uninterrupted_one_to_the_last_bit(tmp_path, kind, workers):
    files = rows(tmp_path / "a.jsonl"), rows(tmp_path / "b.jsonl", 31, 5)
    options: dict[str, Any] = {
        "shuffled": {"shuffle_buffer_size": 20},
        "interleaved": {"interleave_prob": [0.7, 0.3], "stopping_strategy": "all_exhausted", "shuffle_buffer_size": 8},
        "packed": {"packing_length": 128, "shuffle_buffer_size": 20},
    }[kind]
    settings: dict[str, Any] = {
        "max_steps": 9, "save_strategy": "steps", "save_steps": 5, "lr_scheduler_type": "cosine",
        "dataloader_num_workers": workers, "collate": Flattened() if kind == "packed" else None,
    }  # fmt: skip
    whole = runs.train(tmp_path / "whole", model=runs.lora(0.3), train=stream(*files, **options), **settings)
    checkpoint = tmp_path / "whole" / "checkpoint-5"
    assert (checkpoint / "stream.json").is_file()
    resumed = runs.train(tmp_path / "resumed", model=runs.lora(0.3), train=stream(*files, **options), resume=checkpoint,
                         **settings)  # fmt: skip
    assert runs.equal(resumed.weights(), whole.weights())
    for name in ("loss", "grad_norm", "learning_rate", "epoch"):
        assert resumed.logged(name) == whole.logged(name)
    reports = [run.trainer.follower.report for run in (whole, resumed)]
    assert reports[0].dropped == reports[1].dropped != {}
    assert (reports[0].read, reports[0].train) == (reports[1].read, reports[1].train)


def test_a_stream_in_order_trains_as_the_same_rows_prepared_beforehand(tmp_path):
    file = tiny.jsonl(tmp_path / "a.jsonl", tiny.conversations(24))
    data = DataOptions(dataset=[str(file)], dataset_shuffle=False)
    loaded = load_samples(data, template(), Renderer(tiny.tokenizer(), template()))
    eager = runs.train(tmp_path / "eager", train=loaded.train, train_dataloader_shuffle=False, max_steps=6,
                       per_device_train_batch_size=4, gradient_accumulation_steps=1)  # fmt: skip
    streamed = runs.train(tmp_path / "streamed", train=stream(file, dataset_shuffle=False), max_steps=6,
                          per_device_train_batch_size=4, gradient_accumulation_steps=1)  # fmt: skip
    assert streamed.logged("loss") == pytest.approx(eager.logged("loss"), rel=1e-5)
    assert runs.distance(streamed.weights(), eager.weights()) < 1e-5


def test_a_finished_run_trains_no_further(tmp_path):
    settings: dict[str, Any] = {"max_steps": 2, "save_strategy": "steps"}
    done = runs.train(tmp_path / "a", train=stream(rows(tmp_path / "a.jsonl")), **settings)
    again = runs.train(
        tmp_path / "b", train=stream(tmp_path / "a.jsonl"), resume=tmp_path / "a" / "checkpoint-2", **settings
    )
    assert again.trainer.state.global_step == 2
    assert runs.equal(again.weights(), done.weights())


def test_a_run_that_reads_in_another_way_does_not_go_on_from_a_checkpoint(tmp_path):
    settings: dict[str, Any] = {"max_steps": 1, "save_strategy": "steps"}
    runs.train(tmp_path / "a", **settings)
    with pytest.raises(RunError, match=r"has no stream\.json: it was saved by a run without --streaming"):
        runs.train(tmp_path / "b", train=stream(rows(tmp_path / "a.jsonl")), resume=tmp_path / "a" / "checkpoint-1")
    runs.train(tmp_path / "c", train=stream(tmp_path / "a.jsonl"), **settings)
    with pytest.raises(RunError, match="Add --streaming true"):
        runs.train(tmp_path / "d", resume=tmp_path / "c" / "checkpoint-1", **settings)


# ------------------------------------------------------------------------------------------------------- rows and ends


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_in_the_rows_comes_out_as_itself_and_after_the_steps_before_it(tmp_path, workers):
    file = rows(tmp_path / "a.jsonl", 12, broken=11)
    run = runs.prepare(tmp_path, train=stream(file, dataset_shuffle=False, strict=True), dataloader_num_workers=workers)
    with pytest.raises(DataError, match=r"a\.jsonl:11: is not valid JSON"):
        run.session.run(run.trainer, None, {})
    assert run.trainer.state.global_step == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_rows_left_out_are_told_as_they_come_and_summed_up_at_the_end(tmp_path, told, workers):
    run = runs.train(tmp_path, train=stream(rows(tmp_path / "a.jsonl", 18), dataset_shuffle=False), max_steps=8,
                     dataloader_num_workers=workers)  # fmt: skip
    first = next(i for i, line in enumerate(told) if "a.jsonl:9: is not valid JSON" in line)
    last = next(i for i, line in enumerate(told) if line.startswith("rows: 35 read, 3 left out; 32 samples"))
    assert first < last
    assert sum("a.jsonl:" in line for line in told) == 2
    bad = [json.loads(line) for line in (tmp_path / "bad_rows.jsonl").read_text().splitlines()]
    assert [row["line"] for row in bad] == [9, 18]
    assert run.trainer.state.epoch == pytest.approx(1.95, abs=0.1)


def test_rows_that_cannot_be_used_are_written_as_they_come_and_survive_a_run_that_is_killed(tmp_path):
    file = rows(tmp_path / "a.jsonl", 18)
    (tmp_path / "bad_rows.jsonl").write_text(json.dumps({"file": "val.jsonl", "line": 1, "reason": "is empty"}) + "\n")
    run = runs.prepare(tmp_path, train=stream(file, dataset_shuffle=False), max_steps=8)
    run.trainer.add_callback(Killed(3))
    with pytest.raises(MemoryError):
        run.session.run(run.trainer, None, {})
    bad = [json.loads(line) for line in (tmp_path / "bad_rows.jsonl").read_text().splitlines()]
    assert [(row["file"], row["line"]) for row in bad] == [("val.jsonl", 1), (str(file), 9)]
    assert bad[1]["reason"] == "is not valid JSON"
    runs.train(tmp_path, train=stream(file, dataset_shuffle=False), max_steps=8)
    bad = [json.loads(line) for line in (tmp_path / "bad_rows.jsonl").read_text().splitlines()]
    assert [row["line"] for row in bad] == [1, 9, 18]
    assert all(row["raw"] for row in bad[1:])


class Killed(TrainerCallback):
    """Ends a run as nothing else does, after so many steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.steps:
            raise MemoryError


@pytest.mark.parameter("dataloader_num_workers")
def test_one_process_reads_a_stream_however_many_are_asked_for(tmp_path, told):
    run = runs.prepare(tmp_path, train=stream(rows(tmp_path / "a.jsonl")), dataloader_num_workers=3)
    assert run.trainer.get_train_dataloader().num_workers == 1
    assert any("--dataloader_num_workers 3" in line for line in told)


@pytest.mark.parameter("max_epochs")
@pytest.mark.parametrize("strategy", ["steps", "epoch"])
@pytest.mark.parametrize("streamed", [True, False])
def test_a_run_ends_after_so_many_epochs_with_one_evaluation_and_one_checkpoint(tmp_path, strategy, streamed):
    file = tiny.jsonl(tmp_path / "a.jsonl", tiny.conversations(16))
    train = stream(file) if streamed else runs.samples(16)
    run = runs.train(tmp_path, train=train, val=runs.samples(3), max_steps=50, max_epochs=2, save_strategy=strategy,
                     eval_strategy=strategy, save_steps=30, eval_steps=30)  # fmt: skip
    assert run.trainer.state.global_step == 8
    assert checkpoints(tmp_path) == ([8] if strategy == "steps" else [4, 8])
    assert [entry["step"] for entry in run.history if "eval_loss" in entry] == checkpoints(tmp_path)


def test_an_epoch_that_is_never_reached_is_told(tmp_path, told):
    runs.train(tmp_path, max_steps=2, max_epochs=5)
    assert any(line.startswith("--max_epochs 5 had no effect") for line in told)


def test_a_pass_ends_within_a_step_and_the_next_one_fills_it(tmp_path):
    """10 rows in steps of 4: the first pass ends with the third step, the second with the fifth."""
    file = tiny.jsonl(tmp_path / "a.jsonl", tiny.conversations(10))
    run = runs.train(tmp_path, train=stream(file), max_steps=50, max_epochs=2, save_strategy="epoch")
    assert run.trainer.state.global_step == 5
    assert checkpoints(tmp_path) == [3, 5]
    assert run.trainer.follower.report.train == 20


# ----------------------------------------------------------------------------------------------------- a whole command


@pytest.mark.parameter("streaming")
@pytest.mark.parametrize("packing", ["false", "true"])
def test_a_command_streams_evaluates_saves_and_goes_on(tmp_path, told, packing):
    tiny.checkpoint(tmp_path / "model")
    file = rows(tmp_path / "rows.jsonl")
    val = tiny.jsonl(tmp_path / "val.jsonl", tiny.conversations(3))

    def train(*words: str) -> Path | int | None:
        line = ["--model", str(tmp_path / "model"), "--dataset", str(file), "--val_dataset", str(val), "--streaming", "true",
                "--output_dir", str(tmp_path / "out"), "--max_length", "128", "--report_to", "none", "--packing", packing,
                "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2", "--save_steps", "2",
                "--logging_steps", "1", *words]  # fmt: skip
        return sft.run(parse("sft", line))

    first = train("--max_steps", "2")
    assert isinstance(first, Path)
    last = train("--max_steps", "4", "--resume_from_checkpoint", str(first))
    assert isinstance(last, Path)
    assert last.name == "checkpoint-4"
    entries = [json.loads(line) for line in (last.parent / "logging.jsonl").read_text().splitlines()]
    assert [entry["global_step/max_steps"] for entry in entries if "loss" in entry] == ["3/4", "4/4"]
    assert any("eval_loss" in entry for entry in entries)
    assert entries[-1]["train_dataset"].startswith("a stream of --dataset")
    assert any("the first sample" in line for line in told)


# ------------------------------------------------------------------------------------------------------- two processes


@pytest.mark.slow
def test_two_processes_train_on_a_stream_what_one_trains(tmp_path):
    rows(tmp_path / "rows.jsonl")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}", str(WORKER)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{WORKER.parents[1]}:{WORKER.parent}:{os.environ.get('PYTHONPATH', '')}",
    }
    done = subprocess.run([*line, str(tmp_path)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads((tmp_path / f"result-{rank}.json").read_text()) for rank in (0, 1)]
    alone = runs.train(tmp_path / "alone", train=stream(tmp_path / "rows.jsonl", shuffle_buffer_size=20), max_steps=50,
                       per_device_train_batch_size=2, gradient_accumulation_steps=4, max_epochs=2)  # fmt: skip
    for result in results:
        assert result["loss"] == pytest.approx(alone.logged("loss"), rel=1e-4)
        assert result["step"] == alone.trainer.state.global_step
        assert result["same_after_resume"]
    weights = [torch.load(tmp_path / f"weights-{rank}.pt") for rank in (0, 1)]
    assert runs.equal(*weights)
    assert runs.distance(weights[0], alone.weights()) < 5e-4
    report = alone.trainer.follower.report
    told = f"rows: {sum(result['read'] for result in results)} read"
    assert told in done.stderr
    assert sum(result["train"] for result in results) == report.train
    # the two that were stopped are continued by one
    settings: dict[str, Any] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "max_steps": 9}
    going_on = stream(tmp_path / "rows.jsonl", shuffle_buffer_size=20)
    by_one = runs.train(tmp_path / "by-one", train=going_on, resume=tmp_path / "pair" / "checkpoint-5", **settings)
    straight = stream(tmp_path / "rows.jsonl", shuffle_buffer_size=20)
    whole = runs.train(tmp_path / "straight", train=straight, **settings)
    assert by_one.logged("loss") == pytest.approx(whole.logged("loss"), rel=1e-4)


@pytest.mark.slow
def test_the_process_that_reads_lives_on_until_training_ends_after_ctrl_c(tmp_path):
    """Ctrl-C reaches all processes of a terminal; the one that makes batches must not die of it."""
    from transformers import TrainerCallback

    class Interrupts(TrainerCallback):
        def on_step_begin(self, _, state, *__, **___):
            if state.global_step == 2:
                for pid in children():
                    os.kill(pid, signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

    run = runs.prepare(tmp_path, train=stream(rows(tmp_path / "a.jsonl")), dataloader_num_workers=1, max_steps=20,
                       save_strategy="steps")  # fmt: skip
    run.trainer.add_callback(Interrupts())
    outcome = run.session.run(run.trainer, None, {})
    assert outcome.interrupted
    assert checkpoints(tmp_path) == [3]
    assert (tmp_path / "checkpoint-3" / "stream.json").is_file()


def children() -> list[int]:
    """The processes that this one has started."""
    return [int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]
