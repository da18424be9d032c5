"""This file knows how a folder is pushed to a repository of a hub: by the client of the hub, with errors that say what to do."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # of httpx or httpx2, as its version has it
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)

from swift.core.errors import RunError, UsageError
from swift.core.extras import need
from swift.core.logs import get_logger

OF_TRAINING = (
    "optimizer*", "scheduler.pt", "scaler.pt", "rng_state*", "trainer_state.json", "training_args.bin", "predict.jsonl",
    "global_step*", "cursor*",
)  # fmt: skip
"""Files of a checkpoint that only the run itself can use, which are not pushed."""
_BASE = re.compile(r"^base_model:\s*['\"]?([^'\"\n]+)", re.MULTILINE)


@dataclass(frozen=True)
class Target:
    """Where to push: an id of Hugging Face (`use_hf`) or of ModelScope, `owner/name`.

    token: None leaves it to the client, which knows its own login. endpoint: None for what the environment says.
    """

    id: str
    use_hf: bool
    private: bool
    token: str | None = field(repr=False)
    endpoint: str | None = None

    @property
    def hub(self) -> str:
        """The name of the hub."""
        return "Hugging Face" if self.use_hf else "ModelScope"

    def by_hand(self, folder: Path) -> str:
        """The command that pushes a folder later."""
        flag = "--adapters" if (folder / "adapter_config.json").is_file() else "--model"
        return (
            f"swift export {flag} {folder} --push_to_hub true --hub_model_id {self.id}"
            + (" --use_hf true" if self.use_hf else "")
            + (" --hub_private_repo true" if self.private else "")
        )


def open_repository(target: Target) -> Target:
    """Create the repository unless it exists; the target with its full id. Raises RunError when it cannot be opened."""
    if not target.use_hf and "/" not in target.id:
        raise UsageError(f"--hub_model_id {target.id}: an id of ModelScope has the form owner/name.")
    with _understood(target, "cannot be opened"):
        if target.use_hf:
            api = _huggingface(target)
            created = api.create_repo(target.id, private=target.private, exist_ok=True)
            api.auth_check(created.repo_id, write=True)
            target = Target(created.repo_id, target.use_hf, target.private, target.token, target.endpoint)
        else:
            api = _modelscope(target)
            if not api.repo_exists(target.id, "model"):
                api.create_repo(target.id, "model", visibility="private" if target.private else "public")
    get_logger().info("pushing to %s of %s", target.id, target.hub)
    return target


def push(target: Target, folder: Path, message: str) -> None:
    """Add a commit with the files of a folder, less what only training needs. Raises RunError when it fails.

    Returns when everything is there. A model card that names a folder of this machine as the base model, which hubs
    refuse, is left out.
    """
    ignored = [*OF_TRAINING, *(["README.md"] if _names_a_folder(folder / "README.md") else [])]
    with _understood(target, f"did not take {folder}"):
        if target.use_hf:
            _huggingface(target).upload_folder(
                repo_id=target.id, folder_path=folder, commit_message=message, ignore_patterns=ignored
            )
        else:
            _modelscope(target).upload_folder(
                target.id, "model", folder, commit_message=message, ignore_patterns=ignored, use_cache=False,
                disable_tqdm=True,
            )  # fmt: skip
    get_logger().info("pushed %s to %s of %s: %s", folder, target.id, target.hub, message)


def snapshot(folder: Path, copy: Path) -> Path:
    """The files of a folder once more, as links where the disk has them, so that the folder itself may go."""
    shutil.copytree(folder, copy, copy_function=_link, ignore=shutil.ignore_patterns(*OF_TRAINING))
    return copy


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copy2(source, target)


def _names_a_folder(card: Path) -> bool:
    if not card.is_file():
        return False
    found = _BASE.search(card.read_text(encoding="utf-8"))
    return found is not None and (found[1].startswith(("/", ".", "~")) or Path(found[1]).exists())


def _huggingface(target: Target) -> HfApi:
    return HfApi(endpoint=target.endpoint, token=target.token)


def _modelscope(target: Target) -> Any:
    client = need("modelscope_hub", "Pushing to ModelScope")
    return client.HubApi(client.HubConfig(endpoint=target.endpoint, token=target.token))


@contextmanager
def _understood(target: Target, what: str) -> Iterator[None]:
    """Whatever a client raises in here, as a RunError that says what to do, without the token."""
    # ValueError: an id of another form, or a model card that Hugging Face refuses
    known: tuple[type[Exception], ...] = (HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled, OSError, ValueError)
    if not target.use_hf:
        known = (OSError, need("modelscope_hub", "Pushing to ModelScope").errors.HubError)
    try:
        yield
    except known as error:
        raise RunError(f"{target.hub}: {target.id} {what}: {_why(target, error, _status(target, error))}") from error


def _status(target: Target, error: Exception) -> int | None:
    """The status of the answer; None when there was none."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code
    is_answer = not target.use_hf and isinstance(error, need("modelscope_hub", "Pushing").errors.APIError)
    return error.status_code if is_answer else None  # type: ignore[attr-defined]  # an APIError has it


def _why(target: Target, error: Exception, status: int | None) -> str:
    if isinstance(error, LocalTokenNotFoundError) or (status == 401 and target.token is None):
        return "it needs an access token; pass one with --hub_token."
    if status == 401:
        return "the token of --hub_token is not valid (status 401)."
    if status == 403:
        return "the token of --hub_token may not write there (status 403): give it the right to write, or choose a "\
            "repository of your own with --hub_model_id."  # fmt: skip
    line = " ".join(str(error).split()) or type(error).__name__
    return line.replace(target.token, "***") if target.token else line
