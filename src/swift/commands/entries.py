"""This file knows how the commands are called from Python: with the words of a command line, or with options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from swift.commands import deploy, export, infer, sft
from swift.options.declare import Command
from swift.options.parse import parse

Words = Sequence[str] | Command
"""A command line without `swift <command>`, or a command that `parse` has made."""


def sft_main(args: Words) -> Path | int | None:
    """`swift sft`: fine-tune; returns the folder of the last checkpoint, None when none was saved.

    With `--dry_run true`, the exit code of the check.
    """
    return sft.run(_command("sft", args))


def pretrain_main(args: Words) -> Path | int | None:
    """`swift pt`: pre-train; returns the folder of the last checkpoint, None when none was saved.

    With `--dry_run true`, the exit code of the check.
    """
    return sft.run(_command("pt", args))


def infer_main(args: Words) -> Path | None:
    """`swift infer`: returns the file of results, or None after a dialogue."""
    return infer.run(_command("infer", args))


def deploy_main(args: Words) -> None:
    """`swift deploy`: serves until a signal comes; `run_deploy` serves while a block runs."""
    deploy.run(_command("deploy", args))


def export_main(args: Words) -> Path:
    """`swift export`: returns the folder that was written."""
    return export.run(_command("export", args))


def merge_lora(args: Words) -> Path:
    """`swift merge-lora`: returns the folder of the merged model."""
    return export.run(_command("merge-lora", args))


def _command(name: str, args: Words) -> Any:
    return args if isinstance(args, Command) else parse(name, args, runs=True)
