"""The folder of a run: versions, checkpoints, pointers to them, the journal, and stopping half-way."""

from __future__ import annotations

import json
import os
import signal
from datetime import datetime
from pathlib import Path

import pytest
import runs
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

import tiny
from swift.core.errors import RunError
from swift.options.tracking import TrackingOptions
from swift.trainers.callbacks import superfluous
from swift.trainers.curves import smooth
from swift.trainers.outputs import make_folder, next_version, resumable
from swift.trainers.progress import duration
from swift.trainers.session import statistics

SAVING = {"save_strategy": "steps", "save_steps": 1}


@pytest.mark.parameter("add_version")
def test_versions_count_up_from_the_highest_and_carry_the_time(tmp_path):
    now = datetime(2031, 2, 3, 4, 5, 6)
    assert next_version(tmp_path, now).name == "v0-20310203-040506"
    for name in ("v3-x", "v10-y", "version", "v99"):
        (tmp_path / name).mkdir()
    assert next_version(tmp_path, now).name == "v11-20310203-040506"


@pytest.mark.parameter("output_dir")
def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    assert make_folder(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"--output_dir .*file/run cannot be written to"):
        make_folder(tmp_path / "file" / "run")


# --------------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parameter("save_strategy")
@pytest.mark.parameter("save_steps")
def test_when_checkpoints_are_saved(tmp_path):
    def steps(name: str, **options):
        folder = tmp_path / name
        runs.train(folder, max_steps=5, **options)
        return sorted(int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*"))

    assert steps("no", save_strategy="no") == []
    assert steps("steps", save_strategy="steps", save_steps=2) == [2, 4, 5]
    assert steps("share", save_strategy="steps", save_steps=0.5) == [3, 5]
    assert steps("epoch", save_strategy="epoch") == [4, 5]


def test_a_checkpoint_can_be_used_by_itself_and_computes_what_the_trained_model_does(tmp_path):
    run = runs.train(tmp_path, **SAVING)
    assert run.outcome is not None
    folder = run.outcome.last
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([[5, 9, 30]])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, run.trainer.model.eval()(ids, use_cache=False).logits)
    assert AutoTokenizer.from_pretrained(folder).chat_template == tiny.CHATML
    assert (folder / "generation_config.json").is_file()


def test_an_adapter_checkpoint_holds_the_adapter_and_what_is_needed_to_talk_to_it(tmp_path):
    run = runs.train(tmp_path, model=runs.lora(), max_steps=1, **SAVING)
    names = {path.name for path in run.outcome.last.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "chat_template.jinja",
            "generation_config.json", "trainer_state.json", "optimizer.pt"} <= names  # fmt: skip
    assert "model.safetensors" not in names


@pytest.mark.parameter("save_only_model")
def test_saving_only_the_model_leaves_out_the_optimizer_and_cannot_be_resumed(tmp_path):
    run = runs.train(tmp_path, save_only_model=True, max_steps=1, **SAVING)
    names = {path.name for path in run.outcome.last.iterdir()}
    assert not names & {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    with pytest.raises(RunError, match=r"lacks optimizer\.pt, scheduler\.pt.*--save_only_model"):
        resumable(str(run.outcome.last))


def test_a_run_folder_resumes_from_its_newest_whole_checkpoint(tmp_path):
    run = runs.train(tmp_path, max_steps=3, **SAVING)
    assert resumable(str(tmp_path)) == run.outcome.last
    (tmp_path / "checkpoint-3" / "trainer_state.json").unlink()
    assert resumable(str(tmp_path)).name == "checkpoint-2"


@pytest.mark.parametrize(("made", "message"), [(None, "is no folder"), ("empty", "lacks weights .*trainer_state.json")])
def test_what_is_no_checkpoint_says_what_it_lacks(tmp_path, made, message):
    folder = tmp_path / "x"
    if made:
        folder.mkdir()
    with pytest.raises(RunError, match=message):
        resumable(str(folder))


@pytest.mark.parameter("save_total_limit")
@pytest.mark.parameter("metric_for_best_model")
@pytest.mark.parameter("greater_is_better")
def test_neither_the_best_nor_the_last_checkpoint_is_ever_deleted(tmp_path):
    """With a learning rate this high the model gets worse with every step: the first checkpoint is the best."""
    val = {"val": runs.samples(4, seed=7), "eval_strategy": "steps", "eval_steps": 1, "learning_rate": 0.5, **SAVING}
    run = runs.train(tmp_path / "a", save_total_limit=1, max_steps=4, **val)
    losses = run.logged("eval_loss")
    assert losses[0] == min(losses)
    assert run.outcome.best.name == "checkpoint-1"
    assert sorted(path.name for path in (tmp_path / "a").glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-4"]
    worst = runs.train(tmp_path / "b", save_total_limit=1, max_steps=4, greater_is_better=True, **val)
    assert worst.trainer.state.best_metric == max(losses)
    accurate = runs.train(tmp_path / "c", max_steps=2, metric_for_best_model="token_acc", **{**val, "save_steps": 2.0})
    assert accurate.trainer.state.best_metric == min(accurate.logged("eval_token_acc"))


def test_the_oldest_go_first_and_the_kept_never():
    found = [Path(f"checkpoint-{step}") for step in (1, 2, 3, 4)]
    assert superfluous(found, 2, {found[3], None}) == found[:2]
    assert superfluous(found, 2, {found[3], found[0]}) == found[1:3]
    assert superfluous(found, 1, {found[3], found[0]}) == found[1:3]
    assert superfluous(found, 9, set()) == []


@pytest.mark.parameter("create_checkpoint_symlink")
def test_last_and_best_point_to_their_checkpoints_and_move_with_the_folder(tmp_path):
    val = {"val": runs.samples(4, seed=7), "eval_strategy": "steps", "eval_steps": 1, "learning_rate": 0.5}
    folder = tmp_path / "a"
    for _ in range(2):  # the second run finds the links of the first
        runs.train(folder, create_checkpoint_symlink=True, max_steps=2, **val, **SAVING)
    moved = folder.rename(tmp_path / "b")
    assert (moved / "last").resolve() == (moved / "checkpoint-2").resolve()
    assert (moved / "best").resolve() == (moved / "checkpoint-1").resolve()
    runs.train(tmp_path / "c", max_steps=1, **SAVING)
    assert not (tmp_path / "c" / "last").exists()


# --------------------------------------------------------------------------------------------------------- the journal


def test_each_line_of_the_journal_says_where_the_run_is_and_the_last_sums_it_up(tmp_path):
    val = {"val": runs.samples(3), "eval_strategy": "steps", "eval_steps": 2}
    run = runs.train(tmp_path, max_steps=4, **val, **SAVING)
    lines = run.journal()
    expected = {"loss", "token_acc", "grad_norm", "learning_rate", "epoch", "global_step/max_steps", "percentage",
                "elapsed_time", "remaining_time", "memory(GiB)", "train_speed(s/it)"}  # fmt: skip
    assert expected <= lines[0].keys()
    assert lines[0]["global_step/max_steps"] == "1/4"
    assert lines[0]["percentage"] == "25.00%"
    assert all(value == round(value, 8) for line in lines for value in line.values() if isinstance(value, float))
    evaluations = [line for line in lines if "eval_loss" in line]
    assert [line["global_step/max_steps"] for line in evaluations] == ["2/4", "4/4"]
    assert lines[-1]["last_model_checkpoint"] == str(tmp_path / "checkpoint-4")
    assert lines[-1]["global_step"] == 4
    assert len(lines[-1]["log_history"]) == len(run.history)


class Reader(TrainerCallback):
    """Counts the lines of the journal after every log, as somebody watching the file would."""

    def __init__(self, file: Path) -> None:
        self.file, self.lines = file, []

    def on_step_begin(self, *_, **__):
        self.lines.append(len(self.file.read_text().splitlines()) if self.file.exists() else 0)


class Crash(TrainerCallback):
    def on_step_end(self, _, state, *__, **___):
        if state.global_step == 3:
            raise ZeroDivisionError("the cat walked over the keyboard")


def test_the_journal_grows_while_training_and_is_summed_up_when_training_fails(tmp_path):
    run = runs.prepare(tmp_path, max_steps=9)
    reader = Reader(run.session.journal.file)
    run.trainer.add_callback(reader)
    run.trainer.add_callback(Crash())
    with pytest.raises(ZeroDivisionError):
        run.session.run(run.trainer, None, {"train_dataset": "16 samples"})
    assert reader.lines == [0, 1, 2]
    assert run.journal()[-1]["train_dataset"] == "16 samples"
    assert run.journal()[-1]["global_step"] == 3


@pytest.mark.parameter("report_to")
@pytest.mark.parameter("logging_dir")
def test_tensorboard_events_and_curves_go_where_they_should(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    val = {"val": runs.samples(3), "eval_strategy": "steps", "eval_steps": 2}
    runs.train(tmp_path / "a", tracking=TrackingOptions(report_to=["tensorboard"]), **val)
    events = EventAccumulator(str(tmp_path / "a" / "runs"))
    events.Reload()
    assert {"train/loss", "train/token_acc", "eval/loss", "eval/token_acc"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]
    drawn = {path.name for path in (tmp_path / "a" / "images").iterdir()}
    assert {"train_loss.png", "eval_loss.png", "train_learning_rate.png"} <= drawn
    elsewhere = TrackingOptions(report_to=["tensorboard"], logging_dir=str(tmp_path / "logs"))
    runs.train(tmp_path / "b", tracking=elsewhere, max_steps=1)
    assert list((tmp_path / "logs").glob("events.*"))
    runs.train(tmp_path / "c", tracking=TrackingOptions(report_to=["none"]), max_steps=1)
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"logging.jsonl"}


def test_smoothing_starts_at_the_first_value_and_keeps_a_constant():
    assert smooth([4.0, 4.0, 4.0], 0.9) == pytest.approx([4, 4, 4])
    assert smooth([1.0, 2.0], 0.5) == pytest.approx([1, (0.25 * 1 + 0.5 * 2) / 0.75])


def test_durations_and_lengths_are_told_in_words():
    assert [duration(s) for s in (0.4, 61, 3600, 90061)] == ["0s", "1m 1s", "1h 0m 0s", "1d 1h 1m 1s"]
    assert statistics([2, 4, 6]) == "4±1.63299 tokens, min=2, max=6, size=3"


# ---------------------------------------------------------------------------------------------------------- stopping


class Kill(TrainerCallback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, number: int, step: int) -> None:
        self.number, self.step = number, step

    def on_pre_optimizer_step(self, _, state, *__, **___):
        if state.global_step == self.step:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_stops_and_the_run_can_go_on_as_if_nothing_had_been(tmp_path, number):
    settings = {"max_steps": 6, "val": runs.samples(2), "eval_strategy": "epoch", "save_strategy": "epoch"}
    before = signal.getsignal(number)
    run = runs.prepare(tmp_path / "a", model=runs.lora(0.2), **settings)
    run.trainer.add_callback(Kill(number, step=2))
    outcome = run.session.run(run.trainer, None, {})
    assert (outcome.global_step, outcome.stopped_by, outcome.last) == (3, number, tmp_path / "a" / "checkpoint-3")
    assert outcome.interrupted is (number == signal.SIGINT)
    assert signal.getsignal(number) is before
    assert not run.logged("eval_loss")
    resumed = runs.train(tmp_path / "b", model=runs.lora(0.2), resume=outcome.last, **settings)
    whole = runs.train(tmp_path / "c", model=runs.lora(0.2), **settings)
    assert runs.equal(resumed.weights(), whole.weights())


def test_a_run_that_saves_nothing_saves_nothing_when_it_is_stopped(tmp_path):
    run = runs.prepare(tmp_path, save_strategy="no")
    run.trainer.add_callback(Kill(signal.SIGTERM, step=0))
    outcome = run.session.run(run.trainer, None, {})
    assert (outcome.global_step, outcome.last) == (1, None)
    assert not list(tmp_path.glob("checkpoint-*"))


class Impatient(TrainerCallback):
    """Presses Ctrl-C twice, a while apart."""

    def on_pre_optimizer_step(self, *_, **__):
        import time

        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # what a launcher passes on at once counts as the same
        time.sleep(1.1)
        os.kill(os.getpid(), signal.SIGINT)


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    run = runs.prepare(tmp_path)
    run.trainer.add_callback(Impatient())
    with pytest.raises(KeyboardInterrupt):
        run.session.run(run.trainer, None, {})
    assert run.journal()[-1]["global_step"] == 0
    assert json.loads(run.session.journal.file.read_text().splitlines()[-1])["last_model_checkpoint"] is None
