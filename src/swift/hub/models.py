"""This file knows how the name of a model or an adapter becomes a folder on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from swift.core.errors import ModelError
from swift.core.logs import get_logger
from swift.hub.base import Hub, Repository, local_folder, what_is_there
from swift.hub.copies import bring, known_files
from swift.hub.huggingface import HuggingFace
from swift.hub.modelscope import ModelScope
from swift.options.general import GeneralOptions

NOT_NEEDED = (
    "*.zip", "*.gguf", "*.pth", "*.pt", "consolidated*", "onnx/*", "*.safetensors.md", "*.msgpack", "*.onnx", "*.ot",
    "*.h5",
)  # fmt: skip
"""Files of a model repository that are not fetched: weights in other formats, states of optimizers."""
TWICE = ("pytorch_model*.bin", "pytorch_model*.bin.index.json", "adapter_model.bin")
"""The same weights once more, where there are safetensors."""
PAUSE = 1.0
"""Seconds before a second attempt."""


@dataclass(frozen=True)
class Access:
    """The hub that is asked, and the token it is asked with."""

    hub: Hub
    token: str | None = field(repr=False)


def hub_named(use_hf: bool) -> Hub:
    """Hugging Face or ModelScope, as `--use_hf` says, with the endpoint and the cache of the environment."""
    return HuggingFace(None, None, PAUSE) if use_hf else ModelScope(None, None, PAUSE)


def access(options: GeneralOptions) -> Access:
    """The hub of `--use_hf` with the token of `--hub_token`."""
    return Access(hub_named(options.use_hf), options.hub_token)


def model_folder(
    name: str, option: str, hub: Access | None, revision: str | None, ignored: Sequence[str] = NOT_NEEDED
) -> Path:
    """The absolute folder of a model or an adapter: itself, or a copy of what the hub has under this name.

    A folder on this machine always wins, and then nothing is asked. `option` is the flag that `name` was given with;
    `ignored` are patterns of files that are not fetched.
    Raises ModelError when there is no such folder and `hub` is None or has no such model either.
    """
    folder = local_folder(name, option)
    if folder is not None:
        if revision is not None:
            get_logger().warning("--model_revision %s: %s is a folder, and is used as it is", revision, name)
        return folder
    if hub is None:
        raise ModelError(f"{option} {name}: there is no such folder. {what_is_there(Path(name))}")
    if hub.hub.needs_owner and "/" not in name:
        raise ModelError(
            f"{option} {name}: there is no such folder, and an id of {hub.hub.name} has the form owner/name. "
            f"{what_is_there(Path(name))}"
        )
    return _fetched(name, hub, revision, ignored)


def name_of(folder: Path) -> str:
    """What a model is called after its folder: the last part, or the name of the repository in a cache of a hub."""
    repository = folder.parent.parent if folder.parent.name == "snapshots" else folder
    return repository.name.rpartition("--")[2].replace("___", ".")


def needed(paths: Sequence[str], ignored: Sequence[str] = NOT_NEEDED) -> list[str]:
    """The files of a model repository that are fetched."""
    if any(path.endswith(".safetensors") and "/" not in path for path in paths):
        ignored = (*ignored, *TWICE)
    return [path for path in paths if not any(fnmatchcase(path, pattern) for pattern in ignored)]


def _fetched(name: str, hub: Access, revision: str | None, ignored: Sequence[str]) -> Path:
    repository = Repository(name, "model", revision or hub.hub.default_revision, hub.token)
    known = known_files(hub.hub, repository)
    paths = needed(known.listing.paths, ignored)
    folder = bring(hub.hub, repository, known, paths)
    get_logger().info("%s of %s, %s: %d files in %s", repository, hub.hub.name, repository.revision, len(paths), folder)
    return folder
