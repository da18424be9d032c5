"""This file knows the options of tracking: where metrics are reported, and SwanLab."""

from typing import Literal

from swift.options.conditions import contains, given
from swift.options.declare import Options, option

SWANLAB = contains("report_to", "swanlab", "all")
NOTIFIES = SWANLAB & given("swanlab_notification_method")


class TrackingOptions(Options):
    """Where metrics go."""

    report_to: list[str] = option(["tensorboard"], important=True)
    """Trackers that metrics are reported to: tensorboard, wandb, swanlab, ..., all or none. wandb reads WANDB_PROJECT
    and WANDB_API_KEY."""
    logging_dir: str | None = option(None, when=contains("report_to", "tensorboard", "all"), rule="<output_dir>/runs")
    """Folder of tensorboard's files."""
    swanlab_token: str | None = option(None, when=SWANLAB)
    """API key of SwanLab; SWANLAB_API_KEY does the same."""
    swanlab_project: str | None = option(None, when=SWANLAB, rule="the product name")
    """Project on SwanLab; created when it does not exist."""
    swanlab_workspace: str | None = option(None, when=SWANLAB)
    """Workspace on SwanLab; that of the API key's owner when not given."""
    swanlab_exp_name: str | None = option(None, when=SWANLAB, rule="output_dir")
    """Name of the experiment on SwanLab."""
    swanlab_notification_method: Literal["dingtalk", "lark", "email", "discord", "wxwork", "slack"] | None = option(
        None, when=SWANLAB
    )
    """How SwanLab tells that training has ended or failed."""
    swanlab_webhook_url: str | None = option(None, when=NOTIFIES)
    """Webhook of the notification."""
    swanlab_secret: str | None = option(None, when=NOTIFIES)
    """Secret of the notification."""
    swanlab_mode: Literal["cloud", "local"] = option("cloud", when=SWANLAB)
    """Whether SwanLab records in the cloud or locally."""
