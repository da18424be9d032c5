"""The packages that few users have live together, and beside ours."""

from __future__ import annotations

import importlib

import pytest

PACKAGES = ("bitsandbytes", "deepspeed", "hqq", "optimum.quanto", "ray", "swanlab", "wandb")


@pytest.mark.extra
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("package", PACKAGES)
def test_an_extra_package_can_be_imported_beside_transformers(package: str) -> None:
    importlib.import_module("transformers.trainer")
    assert importlib.import_module(package)
