"""This file knows the trackers that metrics can be reported to, and the package each needs."""

from __future__ import annotations

TRACKERS: dict[str, str] = {
    "azure_ml": "azureml.core",
    "clearml": "clearml",
    "codecarbon": "codecarbon",
    "comet_ml": "comet_ml",
    "dagshub": "dagshub",
    "dvclive": "dvclive",
    "mlflow": "mlflow",
    "neptune": "neptune",
    "swanlab": "swanlab",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "wandb": "wandb",
}
"""`--report_to` -> the module it needs. transformers knows two more, which only platforms of their own can run."""
