"""What every test stands on: tests/ is importable, nothing calls a hub, threads do not spin."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")  # where nobody answers
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parent))

PACKAGES = {"extra": "deepspeed", "vllm": "vllm", "sglang": "sglang", "lmdeploy": "lmdeploy"}
"""Marker -> a package that only the environment has in which such tests run."""
ENGINES = ("vllm", "sglang", "lmdeploy")


KEPT: list[object] = []
"""What must live as long as the tests do."""


def pytest_configure() -> None:
    """Let torchvision, which SGLang imports, be imported beside a torch for CPUs: two of its kernels are built for another."""
    if importlib.util.find_spec("sglang") is None or importlib.util.find_spec("torchvision") is None:
        return
    import torch

    if torch.__version__.endswith("+cpu"):
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        KEPT.append(library)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave tests to the environments that have the packages they need."""
    absent = {marker for marker, package in PACKAGES.items() if importlib.util.find_spec(package) is None}
    left = [item for item in items if any(item.get_closest_marker(marker) for marker in absent) or lacks_gpu(item)]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in left]
    for item in items:
        if any(item.get_closest_marker(each) for each in ENGINES):
            item.add_marker(pytest.mark.filterwarnings("default"))  # they warn of much that is their own


def lacks_gpu(item: pytest.Item) -> bool:
    """Whether a test runs an engine that does not even start without a GPU, and there is none."""
    if not item.get_closest_marker("gpu") or not any(item.get_closest_marker(each) for each in ("sglang", "lmdeploy")):
        return False
    import torch

    return not torch.accelerator.is_available()


@pytest.fixture
def told():
    """What the logger of Swiftlet says, line by line."""
    lines: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    listener = Listener()
    logging.getLogger("swift").addHandler(listener)
    yield lines
    logging.getLogger("swift").removeHandler(listener)
