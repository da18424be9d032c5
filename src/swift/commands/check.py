"""This file knows `swift check`, and `--dry_run true`: a run looked at before it begins."""

from __future__ import annotations

import sys
from pathlib import Path

from swift.commands.begin import begin, settle
from swift.core import environment
from swift.core.logs import get_logger
from swift.hub.models import access
from swift.models.info import model_info
from swift.options.commands import Sft
from swift.proofs import report_html, report_text
from swift.proofs.check import check


def run(command: Sft) -> int:
    """Print what would happen and what is wrong; 0 when every proof holds, else 1."""
    command = begin(command, command.general)
    command, info = settle(command, model_info(command.model, access(command.general)))
    report = check(command, info)
    coloured = sys.stdout.isatty() and not environment.NO_COLOR.is_set()
    colours = report_text.Colours.of_terminal() if coloured else report_text.Colours.none()
    sys.stdout.write(report_text.page(report, colours))
    sys.stdout.flush()
    if command.proof.html is not None:
        file = Path(command.proof.html).expanduser()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(report_html.page(report), encoding="utf-8")
        get_logger().info("the same page for a browser: %s", file)
    return 0 if report.holds else 1
