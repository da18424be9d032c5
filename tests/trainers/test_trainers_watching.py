"""Early stopping, callbacks and optimizers of one's own, and names that stand for nothing."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path

import pytest
import runs
import torch
from transformers import TrainerCallback

import tiny
from swift.callbacks import callbacks_map
from swift.commands.begin import load_plugin
from swift.core.errors import MissingPackage, RunError, UsageError
from swift.options.general import GeneralOptions
from swift.options.training import TrainingOptions
from swift.trainers.arguments import Arguments, training_arguments
from swift.trainers.optim_names import PACKAGES, TAKES

PLUGINS = Path(__file__).parents[2] / "examples" / "plugins"
EVERY_STEP = {
    "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 12,
    "val": runs.samples(4, seed=3),
}  # fmt: skip


def saved(folder: Path) -> list[int]:
    return sorted(int(path.name.partition("-")[2]) for path in folder.glob("checkpoint-*"))


def worsening(**settings):
    """A training that gets worse after its first steps: climbing, by a learning rate as large as that."""
    return {**EVERY_STEP, "learning_rate": 0.3, "optim": "sgd", "max_grad_norm": 1.0, **settings}


# ------------------------------------------------------------------------------------------------------- early stopping


class Scripted(TrainerCallback):
    """Gives evaluation the losses it is told to, so that what is best is known."""

    losses: tuple[float, ...] = ()

    def __init__(self, _args, trainer) -> None:
        trainer.compute_metrics = lambda _: {"loss": self.losses[trainer.state.global_step - 1]}


@pytest.fixture
def scripted():
    callbacks_map.add("scripted", Scripted, replace=True)

    def script(*losses: float) -> dict:
        Scripted.losses = losses
        return {**EVERY_STEP, "callbacks": ["scripted"]}

    return script


@pytest.mark.parameter("early_stop_interval")
def test_a_run_ends_when_the_best_metric_is_the_same_for_as_many_checkpoints(tmp_path, scripted):
    losses = scripted(5, 4, 4.5, 3, 3.1, 3.2, 3.3, 1, 1, 1, 1, 1)
    assert saved(runs.train(tmp_path / "a", **losses, early_stop_interval=3).session.folder) == [*range(1, 8)]
    assert saved(runs.train(tmp_path / "b", **losses, early_stop_interval=1).session.folder) == [1, 2, 3]
    assert saved(runs.train(tmp_path / "c", **losses, early_stop_interval=5).session.folder) == [*range(1, 13)]
    assert saved(runs.train(tmp_path / "d", **losses).session.folder) == [*range(1, 13)]


def test_checkpoints_without_an_evaluation_are_not_counted(tmp_path, scripted):
    settings = {**scripted(*[5.0] * 12), "eval_steps": 3, "early_stop_interval": 2}
    assert saved(runs.train(tmp_path, **settings).session.folder) == [*range(1, 10)]  # 3 is the best, 6 and 9 are not


@pytest.mark.parametrize("stop", [4, 5, 6])
def test_the_count_goes_on_in_a_resumed_run(tmp_path, scripted, stop):
    settings = {**scripted(5, 4, 4.5, 3, 3.1, 3.2, 3.3, 1, 1, 1, 1, 1), "early_stop_interval": 3}
    runs.train(tmp_path / "a", **settings)
    runs.train(tmp_path / "b", resume=tmp_path / "a" / f"checkpoint-{stop}", **settings)
    assert saved(tmp_path / "b") == [*range(stop + 1, 8)]


def test_a_run_that_was_stopped_early_goes_on_only_with_more_patience(tmp_path, scripted):
    settings = scripted(3, 3.1, 3.2, 3.3, 1, 1, 1, 1, 1, 1, 1, 1)
    runs.train(tmp_path / "a", **settings, early_stop_interval=2)
    last = tmp_path / "a" / "checkpoint-3"
    with pytest.raises(RunError, match=r"Raise --early_stop_interval \(now 2\)"):
        runs.train(tmp_path / "b", resume=last, **settings, early_stop_interval=2)
    runs.train(tmp_path / "c", resume=last, **settings, early_stop_interval=3)
    assert saved(tmp_path / "c") == [4]
    runs.train(tmp_path / "d", resume=last, **settings)
    assert saved(tmp_path / "d") == [*range(4, 13)]


# ------------------------------------------------------------------------------------------------------------- plugins


@pytest.mark.parameter("optimizer")
def test_an_optimizer_of_ones_own_makes_its_steps_and_its_schedule(tmp_path):
    load_plugin(PLUGINS / "optimizer.py")
    run = runs.train(tmp_path, optimizer="sign", max_steps=4, learning_rate=0.125)
    assert run.logged("learning_rate") == [0.125, 0.0625, 0.03125, 0.015625]
    start = dict(tiny.model().named_parameters())
    for name, value in run.weights().items():
        steps = (value - start[name]) / 0.015625
        torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)
    assert run.trainer.model.lm_head.weight.sub(start["model.embed_tokens.weight"]).abs().max() <= 0.235


def test_an_optimizer_of_ones_own_may_leave_the_schedule_to_transformers(tmp_path):
    from swift.optimizers import OptimizerCallback, optimizers_map

    class Plain(OptimizerCallback):
        def create_optimizer(self):
            return torch.optim.Adamax(self.trainer.model.parameters(), lr=self.args.learning_rate)

    optimizers_map.add("plain", Plain, replace=True)
    run = runs.train(tmp_path, optimizer="plain", lr_scheduler_type="linear", learning_rate=0.4)
    assert isinstance(run.trainer.optimizer.optimizer, torch.optim.Adamax)
    assert run.logged("learning_rate") == pytest.approx([0.4, 0.3, 0.2, 0.1])


@pytest.mark.parameter("callbacks")
def test_a_callback_of_ones_own_adds_to_every_log_and_ends_the_run(tmp_path):
    load_plugin(PLUGINS / "callback.py")
    run = runs.train(tmp_path, callbacks=["enough"], max_steps=60, learning_rate=2e-2, train=runs.samples(2))
    logged = [entry for entry in run.journal() if "loss" in entry]
    assert logged[0]["perplexity"] == pytest.approx(2.718281828 ** logged[0]["loss"], rel=1e-6)
    assert 1 < len(logged) < 60
    assert logged[-1]["perplexity"] < 1.1 <= logged[-2]["perplexity"]


def test_what_every_run_does_may_be_asked_for(tmp_path, caplog):
    with caplog.at_level("INFO", logger="swift"):
        runs.train(tmp_path, callbacks=["graceful_exit"], max_steps=1)
    assert "graceful_exit: every run saves a checkpoint on SIGTERM" in caplog.text


def test_utilization_is_operations_over_time_over_what_the_device_can_do(tmp_path, monkeypatch):
    monkeypatch.setenv("DEVICE_TFLOPS", "0.5")
    began = time.monotonic()
    run = runs.train(tmp_path, callbacks=["perf_log"], max_steps=3, logging_steps=3, logging_first_step=False)
    elapsed = time.monotonic() - began
    (entry,) = [entry for entry in run.journal() if "MFU" in entry]
    inside = sum(value.numel() for name, value in run.weights().items() if "embed" not in name)
    assert run.trainer.state.total_flos > 6 * inside * 12 * 4  # 12 rows of at least 4 tokens
    assert run.trainer.state.total_flos / elapsed / 0.5e12 < entry["MFU"] < 1
    monkeypatch.setenv("DEVICE_TFLOPS", "fast")
    with pytest.raises(UsageError, match="DEVICE_TFLOPS=fast"):
        runs.prepare(tmp_path / "b", callbacks=["perf_log"])
    monkeypatch.delenv("DEVICE_TFLOPS")
    measured = runs.prepare(tmp_path / "c", callbacks=["perf_log"]).trainer.callback_handler.callbacks[0]
    assert 1e-4 < measured.peak < 1e3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "moun"}, "Unknown optimizer 'moun'. Did you mean muon"),
        ({"callbacks": ["graceful"]}, "Unknown callback 'graceful'. Did you mean graceful_exit"),
        ({"callbacks": ["early_stop"]}, "--early_stop_interval"),
        ({"optimizer": "galore"}, "--use_galore"),
        ({"optimizer": "lorap"}, "--lorap_lr_ratio"),
    ],
)
def test_names_that_stand_for_nothing_are_refused(tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        runs.train(tmp_path, **options)


# ------------------------------------------------------------------------------------------- --optim, and its arguments


def arguments(tmp_path, extra=None, **options) -> Arguments:
    return training_arguments(
        TrainingOptions(**{**runs.PLAIN, **options}), GeneralOptions(), output_dir=tmp_path, precision="no",
        extra=extra or {},
    )  # fmt: skip


def test_trackers_can_write_all_arguments(tmp_path):
    written = json.loads(arguments(tmp_path, optimizer="muon", callbacks=["graceful_exit"]).to_json_string())
    assert (written["optimizer"], written["callbacks"], written["galore"]["galore_rank"]) == (
        "muon",
        ["graceful_exit"],
        128,
    )


def optimizers_of_transformers() -> list[str]:
    from transformers.training_args import OptimizerNames

    return [name.value for name in OptimizerNames]


@pytest.mark.parameter("optim")
@pytest.mark.parametrize("name", optimizers_of_transformers())
def test_every_optimizer_of_transformers_trains_or_is_refused_before_the_model_is_loaded(tmp_path, name):
    extra = {"optim_target_modules": ["q_proj"]}
    layerwise = {"gradient_accumulation_steps": 1, "max_grad_norm": 0.0} if name.endswith("layerwise") else {}
    package = next((module for start, (module, _) in PACKAGES.items() if name.startswith(start)), None)
    if package is not None and importlib.util.find_spec(package) is None:
        with pytest.raises(MissingPackage, match=f"--optim {name} needs the package .* pip install"):
            arguments(tmp_path, extra, optim=name, **layerwise)
        return
    run = runs.train(tmp_path, optim=name, extra=extra, max_steps=2, **layerwise)
    assert runs.distance(run.weights(), dict(tiny.model().named_parameters())) > 1e-6


@pytest.mark.extra
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize(
    "name",
    ["adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "lion_32bit", "lion_8bit", "ademamix", "ademamix_8bit"],
)
def test_optimizers_of_bitsandbytes_train_and_resume(tmp_path, name):
    saving = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6, "optim": name}
    whole = runs.train(tmp_path / "a", **saving)
    again = runs.train(tmp_path / "b", resume=tmp_path / "a" / "checkpoint-3", **saving)
    assert runs.equal(whole.weights(), again.weights())
    assert runs.distance(whole.weights(), dict(tiny.model().named_parameters())) > 1e-6


def test_the_tables_of_optimizers_name_optimizers_of_transformers():
    names = optimizers_of_transformers()
    assert set(TAKES) <= set(names)
    assert all(any(name.startswith(start) for name in names) for start in PACKAGES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optim": "adamw_torch", "optim_args": "amsgrad=true"}, "--optim adamw_torch takes no further settings"),
        ({"optim": "sgd", "optim_args": "momentun=0.9"}, "Did you mean momentum.*dampening, momentum, nesterov"),
        ({"optim": "sgd", "optim_args": "nesterov=yes"}, "must be true or false"),
        ({"optim": "rmsprop", "optim_args": "alpha=a"}, "must be a number"),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycle": 2}}, "Did you mean num_cycles"),
        ({"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"min_lr": 2}}, "It takes none"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "min_lr"),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1.0}}, "must be smaller"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "num_decay_steps"),
    ],
)
def test_settings_that_nobody_reads_are_refused(tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        arguments(tmp_path, **options)


SCHEDULES = {
    "linear": {}, "cosine": {"num_cycles": 1.0}, "cosine_with_restarts": {"num_cycles": 2}, "polynomial": {"power": 2.0},
    "constant": {}, "constant_with_warmup": {}, "inverse_sqrt": {"timescale": 2},
    "reduce_lr_on_plateau": {"patience": 0, "factor": 0.5, "threshold": 10.0},
    "cosine_with_min_lr": {"min_lr": 1e-4}, "cosine_warmup_with_min_lr": {"min_lr": 1e-4, "warmup_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 2}, "greedy": {"min_lr": 1e-5, "factor": 0.5, "patience": 0},
}  # fmt: skip
"""Every schedule with settings of its own."""


def test_there_is_a_test_of_every_schedule():
    from transformers.trainer_utils import SchedulerType

    assert set(SCHEDULES) == {kind.value for kind in SchedulerType}


@pytest.mark.parameter("lr_scheduler_type")
@pytest.mark.parameter("lr_scheduler_kwargs")
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_runs_with_its_settings_and_resumes(tmp_path, name):
    settings = {
        "lr_scheduler_type": name, "lr_scheduler_kwargs": SCHEDULES[name] or None, "max_steps": 6, "save_steps": 3,
        "save_strategy": "steps", "eval_strategy": "steps", "eval_steps": 1, "val": runs.samples(2), "learning_rate": 1e-3,
    }  # fmt: skip
    if name not in ("constant", "reduce_lr_on_plateau", "greedy"):
        settings["warmup_ratio"] = 0.3
    whole = runs.train(tmp_path / "a", **settings)
    again = runs.train(tmp_path / "b", resume=tmp_path / "a" / "checkpoint-3", **settings)
    rates = whole.logged("learning_rate")
    assert again.logged("learning_rate") == rates  # the first three come from the checkpoint
    assert runs.equal(whole.weights(), again.weights())
    assert (len(set(rates)) == 1) == (name == "constant")
