"""Hubs for tests: the clients of both, pointed at a server of this machine and at caches of their own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

sys.path.insert(0, str(Path(__file__).parent))

import server

from swift.hub.huggingface import HuggingFace
from swift.hub.modelscope import ModelScope


@pytest.fixture
def fakes(monkeypatch, tmp_path):
    """The server, and an environment that leads nowhere else: no login of this machine is read."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)  # what a broken download is continued in steps of
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "modelscope-home"))
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    for name in ("HF_TOKEN", "MODELSCOPE_API_TOKEN", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with server.serve() as running:
        yield running


@pytest.fixture(params=["huggingface", "modelscope"])
def hub(request, fakes, tmp_path):
    """Each of the two hubs, asking the server, with an empty cache."""
    return made(request.param, fakes.url, tmp_path)


def made(name: str, url: str, folder: Path):
    if name == "huggingface":
        return HuggingFace(url, folder / "huggingface", 0.01)
    pytest.importorskip("modelscope_hub")
    return ModelScope(url, folder / "modelscope", 0.01)
