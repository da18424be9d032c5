"""This file knows the folder of an exported model: what lies in it beside the weights, and how it appears at once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from swift.core.errors import RunError

TOKENIZER = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "*.tiktoken",
    "spiece.model", "sentencepiece.bpe.model", "tekken.json",
)  # fmt: skip
TEMPLATE = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin", "*.index.json")


def companions(base: Path, adapters: Sequence[Path], more: Sequence[Path] = ()) -> dict[str, Path]:
    """Name -> source of the files that belong to a model beside its weights and config; `more` belong to it in any case.

    Each set (tokenizer, chat template, generation config) comes whole from one folder: the first adapter that has it,
    because it is what was trained with, else the base model.
    """
    chosen: dict[str, Path] = {path.name: path for path in more}
    for patterns in (TOKENIZER, TEMPLATE, ("generation_config.json",)):
        for folder in (*adapters, base):
            found = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
            if found:
                chosen.update({path.name: path for path in found})
                break
    return chosen


def copy_companions(base: Path, adapters: Sequence[Path], folder: Path, more: Sequence[Path] = ()) -> list[str]:
    """Copy the files of `companions` into a folder; their names."""
    chosen = companions(base, adapters, more)
    for name, source in chosen.items():
        if source.is_dir():
            shutil.copytree(source, folder / name, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, folder / name)
    return sorted(chosen)


def require_free(output: Path, *, exist_ok: bool, inputs: Sequence[Path]) -> None:
    """Refuse an output folder that holds something, or that is one of the folders read from.

    Raises RunError; with `exist_ok` a folder that holds something is overwritten.
    """
    for source in inputs:
        if output == source or output in source.parents:
            raise RunError(f"--output_dir {output} holds what is exported ({source}). Give another --output_dir.")
    if output.exists() and not output.is_dir():
        raise RunError(f"--output_dir {output} is a file. Give another --output_dir.")
    if output.is_dir() and any(output.iterdir()) and not exist_ok:
        raise RunError(
            f"--output_dir {output} exists and is not empty. Give another --output_dir, or overwrite the model in it "
            f"with --exist_ok true."
        )


@contextmanager
def appearing(output: Path) -> Iterator[Path]:
    """A folder beside `output` to write into; when all went well it takes its place, else it vanishes.

    A folder that exists keeps the files that the export does not bring, except for weights: those of two models must
    not lie side by side.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    staging = output.with_name(f".{output.name}.{os.getpid()}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        yield staging
        _publish(staging, output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _publish(staging: Path, output: Path) -> None:
    if not output.exists() or not any(output.iterdir()):
        staging.replace(output)
        return
    for pattern in WEIGHTS:
        for stale in output.glob(pattern):
            stale.unlink()
    for path in sorted(staging.iterdir()):
        target = output / path.name
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        path.replace(target)
