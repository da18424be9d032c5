"""This file knows the trackers beside TensorBoard: how a run is opened with each, told of, and closed (`--report_to`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from typing_extensions import override

from swift.catalog.trackers import TRACKERS
from swift.core import environment
from swift.core.errors import RunError, UsageError
from swift.core.extras import need
from swift.core.logs import get_logger
from swift.options.tracking import TrackingOptions
from swift.trainers.progress import Clock


class Opened(Protocol):
    """A run of a tracker that we opened ourselves, and must close."""

    def close(self, failure: BaseException | None) -> None:
        """Say that the training has ended, and how."""
        ...


def named_trackers(report_to: Sequence[str]) -> list[str]:
    """The trackers of `--report_to`; `all` are those whose packages are installed, which the log names."""
    if "all" not in report_to:
        return [name for name in dict.fromkeys(report_to) if name != "none"]
    found = [name for name, module in TRACKERS.items() if find_spec(module.partition(".")[0]) is not None]
    get_logger().info("--report_to all: %s are installed", ", ".join(found))
    return found


def watchers(
    names: Sequence[str], tracking: TrackingOptions, folder: Path
) -> tuple[list[TrainerCallback], list[Opened]]:
    """What tells the trackers of a run, and the runs that were opened, on the first process.

    Raises MissingPackage for one that is not installed, RunError for one that does not open.
    """
    others = [name for name in names if name != "tensorboard"]
    for name in others:
        need(TRACKERS[name], f"--report_to {name}")
    if not others or environment.rank() != 0:
        return [], []
    opened = [OPENERS[name](tracking, folder) for name in others if name in OPENERS]
    return [Pace(), *(INTEGRATION_TO_CALLBACK[name]() for name in others)], opened


class Pace(TrainerCallback):
    """Adds speed and memory to what trackers are told."""

    def __init__(self) -> None:
        self._clock = Clock(0)

    @override
    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Begin to reckon the speed."""
        self._clock = Clock(state.global_step)

    @override
    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
               *, logs: dict[str, Any], **_: Any) -> None:  # fmt: skip
        """Add to a log of training."""
        if "loss" in logs:
            reading: Mapping[str, Any] = self._clock.reading(state)
            logs |= {name: value for name, value in reading.items() if isinstance(value, float)}


class Wandb:
    """A run of Weights & Biases, in the project WANDB_PROJECT; WANDB_MODE=offline keeps it on this machine."""

    def __init__(self, tracking: TrackingOptions, folder: Path) -> None:  # noqa: ARG002 (as all are opened)
        self._wandb: Any = need("wandb", "--report_to wandb")
        self._run: Any = None
        if self._wandb.run is None:  # the caller of a notebook may have opened one
            project = environment.WANDB_PROJECT.get()
            self._run = opening("wandb", lambda: self._wandb.init(project=project, name=str(folder), dir=str(folder)))

    def close(self, failure: BaseException | None) -> None:
        """Send what is left."""
        if self._run is not None:
            self._run.finish(exit_code=0 if failure is None else 1)


class SwanLab:
    """An experiment of SwanLab: in the cloud, or below the folder of the run."""

    def __init__(self, tracking: TrackingOptions, folder: Path) -> None:
        self._swanlab: Any = need("swanlab", "--report_to swanlab")
        notification = notification_of(tracking)
        if tracking.swanlab_token is not None and tracking.swanlab_mode == "cloud":
            opening("swanlab", lambda: self._swanlab.login(api_key=tracking.swanlab_token))
        opening("swanlab", lambda: self._swanlab.init(
            project=tracking.swanlab_project, workspace=tracking.swanlab_workspace,
            name=tracking.swanlab_exp_name or str(folder), mode=tracking.swanlab_mode, log_dir=str(folder / "swanlog"),
            callbacks=[notification] if notification else None,
        ))  # fmt: skip

    def close(self, failure: BaseException | None) -> None:
        """End the experiment, which sends the notification."""
        if failure is None:
            self._swanlab.finish()
        else:
            self._swanlab.finish(state="crashed", error=str(failure) or type(failure).__name__)


NOTIFICATIONS: dict[str, tuple[str, bool]] = {
    "dingtalk": ("DingTalkCallback", True),
    "lark": ("LarkCallback", True),
    "discord": ("DiscordCallback", False),
    "wxwork": ("WXWorkCallback", False),
    "slack": ("SlackCallback", False),
}
"""`--swanlab_notification_method` -> the class of swanlab, and whether it takes a secret; email is made otherwise."""


def notification_of(tracking: TrackingOptions) -> Any:
    """What tells of the end of a run; None when nobody asked for it. Raises UsageError for what is missing."""
    method = tracking.swanlab_notification_method
    if method is None:
        return None
    plugins: Any = need("swanlab.plugin.notification", f"--swanlab_notification_method {method}")
    if method == "email":
        return _email(plugins, tracking)
    name, takes_secret = NOTIFICATIONS[method]
    settings = {"webhook_url": tracking.swanlab_webhook_url}
    if takes_secret:
        settings["secret"] = tracking.swanlab_secret
    return vars(plugins)[name](**settings)


def _email(plugins: Any, tracking: TrackingOptions) -> Any:
    sender, receiver = environment.SWANLAB_SENDER_EMAIL.get(), environment.SWANLAB_RECEIVER_EMAIL.get()
    if sender is None or receiver is None or tracking.swanlab_secret is None:
        raise UsageError(
            "--swanlab_notification_method email needs the environment variables SWANLAB_SENDER_EMAIL and "
            "SWANLAB_RECEIVER_EMAIL, and the password of the sender with --swanlab_secret."
        )
    return plugins.EmailCallback(
        sender_email=sender, receiver_email=receiver, password=tracking.swanlab_secret,
        smtp_server=environment.SWANLAB_SMTP_SERVER.get(), port=environment.SWANLAB_SMTP_PORT.integer(),
    )  # fmt: skip


def opening(name: str, open_run: Callable[[], Any]) -> Any:
    """What a tracker returns; whatever it raises is said with what to do."""
    try:
        return open_run()
    except Exception as error:  # a tracker may raise anything; it is raised again as what a user can act on
        why = str(error).rstrip(".") or type(error).__name__
        raise RunError(
            f"--report_to {name} does not open a run: {why}. Log in, work offline ({OFFLINE[name]}), or drop it from "
            "--report_to."
        ) from error


OFFLINE = {"wandb": "WANDB_MODE=offline", "swanlab": "--swanlab_mode local"}
OPENERS: dict[str, Callable[[TrackingOptions, Path], Opened]] = {"wandb": Wandb, "swanlab": SwanLab}
"""Trackers whose runs are opened here, because options or variables of ours say how; the others open theirs."""
