"""Trackers are told what a run logs, from the first process, and absent ones are named before anything is trained."""

from __future__ import annotations

import json

import pytest
import runs

from swift.core.errors import MissingPackage, UsageError
from swift.options.parse import parse
from swift.options.tracking import TrackingOptions
from swift.trainers.session import open_session
from swift.trainers.tracking import Pace, named_trackers, notification_of, watchers


class State:
    """What a callback is told of a training."""

    def __init__(self, step: int) -> None:
        self.global_step, self.max_steps = step, 10


@pytest.mark.parameter("report_to")
def test_a_tracker_that_is_not_installed_is_named_with_the_line_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(MissingPackage, match=r"--report_to wandb needs .* pip install 'swiftlet\[wandb\]'"):
        runs.prepare(tmp_path, tracking=TrackingOptions(report_to=["wandb"]))


@pytest.mark.parameter("report_to")
def test_a_tracker_that_nobody_knows_is_refused_with_those_there_are():
    with pytest.raises(UsageError, match="--report_to wandbb: there is no such tracker"):
        parse("sft", ["--model", "owner/name", "--dataset", "owner/rows", "--report_to", "wandbb"])


@pytest.mark.parameter("report_to")
def test_all_are_those_that_are_installed_and_none_is_none():
    assert "tensorboard" in named_trackers(["all"])
    assert named_trackers(["none"]) == []
    assert named_trackers(["tensorboard", "wandb", "tensorboard"]) == ["tensorboard", "wandb"]


@pytest.mark.parameter("report_to")
def test_only_the_first_process_reports(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("swift.trainers.tracking.need", lambda *_: None)
    assert watchers(["wandb", "swanlab"], TrackingOptions(), tmp_path) == ([], [])


def test_speed_and_memory_reach_the_trackers():
    pace, logs, evaluated = Pace(), {"loss": 1.0}, {"eval_loss": 1.0}
    pace.on_train_begin(None, State(0), None)  # type: ignore[arg-type]  # of the arguments only these are read
    pace.on_log(None, State(2), None, logs=logs)  # type: ignore[arg-type]  # of the arguments only these are read
    pace.on_log(None, State(2), None, logs=evaluated)  # type: ignore[arg-type]  # of the arguments only these are read
    assert {"memory(GiB)", "train_speed(s/it)"} <= logs.keys()
    assert evaluated == {"eval_loss": 1.0}


@pytest.mark.parameter("swanlab_notification_method")
@pytest.mark.parameter("swanlab_webhook_url")
def test_a_notification_needs_an_address():
    line = ["--model", "owner/name", "--dataset", "owner/rows", "--report_to", "swanlab"]
    with pytest.raises(UsageError, match="needs --swanlab_webhook_url"):
        parse("sft", [*line, "--swanlab_notification_method", "lark"])
    with pytest.raises(UsageError, match="--swanlab_notification_method"):
        parse("sft", [*line, "--swanlab_webhook_url", "http://127.0.0.1"])


@pytest.mark.parameter("swanlab_secret")
def test_secrets_are_not_written_beside_checkpoints(tmp_path):
    from swift.options.saved import write_args

    line = ["--model", "owner/name", "--dataset", "owner/rows", "--report_to", "swanlab", "--swanlab_token", "t0ken",
            "--swanlab_notification_method", "lark", "--swanlab_webhook_url", "http://hook", "--swanlab_secret", "hush"]  # fmt: skip
    write_args(parse("sft", line), tmp_path)
    text = (tmp_path / "args.json").read_text()
    assert "t0ken" not in text
    assert "hush" not in text
    assert "http://hook" not in text
    assert json.loads(text)["swanlab_notification_method"] == "lark"


@pytest.mark.extra
@pytest.mark.parameter("report_to")
def test_wandb_is_told_of_a_run_without_a_network(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_PROJECT", "of-mine")
    told = []
    run = runs.prepare(tmp_path, max_steps=2, tracking=TrackingOptions(report_to=["wandb"]))
    assert wandb.run.project == "of-mine"
    monkeypatch.setattr(wandb, "log", lambda values, *_, **__: told.append(values))
    run.session.run(run.trainer, None, {})
    assert wandb.run is None
    assert any(
        {"train/loss", "train/token_acc", "train/memory(GiB)", "train/train_speed(s/it)"} <= each.keys()
        for each in told
    )
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.extra
@pytest.mark.parameter("swanlab_project")
@pytest.mark.parameter("swanlab_exp_name")
@pytest.mark.parameter("swanlab_mode")
@pytest.mark.parameter("swanlab_workspace")
@pytest.mark.parameter("swanlab_token")
def test_swanlab_is_opened_as_asked(tmp_path, monkeypatch):
    swanlab = pytest.importorskip("swanlab")
    opened, logins = [], []
    monkeypatch.setattr(swanlab, "init", lambda **settings: opened.append(settings))
    monkeypatch.setattr(swanlab, "login", lambda **settings: logins.append(settings))
    asked = {
        "swanlab_project": "mine",
        "swanlab_workspace": "team",
        "swanlab_exp_name": "first",
        "swanlab_token": "key",
    }
    for mode in ("cloud", "local"):
        open_session(
            tmp_path, runs.TrainingOptions(), TrackingOptions(report_to=["swanlab"], swanlab_mode=mode, **asked)
        )
        settings = opened.pop()
        assert (settings["project"], settings["workspace"], settings["name"]) == ("mine", "team", "first")
        assert settings["mode"] == mode
        assert settings["callbacks"] is None
    assert logins == [{"api_key": "key"}]


@pytest.mark.extra
@pytest.mark.parameter("swanlab_mode")
def test_swanlab_keeps_a_run_on_this_machine(tmp_path):
    pytest.importorskip("swanlab")
    run = runs.prepare(tmp_path, max_steps=2, tracking=TrackingOptions(report_to=["swanlab"], swanlab_mode="local",
                                                                      swanlab_project="mine"))  # fmt: skip
    run.session.run(run.trainer, None, {})
    files = [file for file in (tmp_path / "swanlog").rglob("*") if file.is_file()]
    assert any(b"token_acc" in file.read_bytes() for file in files)


@pytest.mark.extra
@pytest.mark.parameter("swanlab_notification_method")
@pytest.mark.parameter("swanlab_webhook_url")
@pytest.mark.parameter("swanlab_secret")
@pytest.mark.parametrize("method", ["dingtalk", "lark", "discord", "wxwork", "slack", "email"])
def test_each_way_of_notification_is_made_on_request(method, monkeypatch):
    pytest.importorskip("swanlab")
    for name in ("SWANLAB_SENDER_EMAIL", "SWANLAB_RECEIVER_EMAIL"):
        monkeypatch.setenv(name, "someone@example.org")
    options = TrackingOptions(
        swanlab_notification_method=method, swanlab_webhook_url="http://127.0.0.1:9", swanlab_secret="s"
    )  # type: ignore[arg-type]  # of the arguments only these are read
    kind = {"wxwork": "wecom"}.get(method, method)  # WXWork became WeCom
    assert type(notification_of(options)).__name__.lower().startswith(kind)
    assert notification_of(TrackingOptions()) is None
    monkeypatch.delenv("SWANLAB_SENDER_EMAIL")
    if method == "email":
        with pytest.raises(UsageError, match="SWANLAB_SENDER_EMAIL"):
            notification_of(options)
