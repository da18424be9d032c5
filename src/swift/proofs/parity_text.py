"""This file knows how the findings of `swift parity` are shown: a table for people, plain values for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from swift.proofs.parity import Comparison, ParityReport
from swift.proofs.report import counted


def show(report: ParityReport, console: Console) -> None:
    """The table, what does not hold, and the verdict."""
    console.print(f"{report.model} and {report.against}", style="bold", markup=False, soft_wrap=True)
    console.print(f"weights in {report.dtype}", style="dim", markup=False)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for _ in range(3):
        table.add_column(overflow="fold")
    for each in report.comparisons:
        table.add_row(escape(each.what), escape(each.found or f"not compared: {each.left_out}"), _mark(each))
    console.print(table)
    for each in report.comparisons:
        for wrong in each.wrong:
            console.print(f"  {each.what}: {wrong}", style="red", markup=False, soft_wrap=True)
    for note in report.notes:
        console.print(f"  note: {note}", style="dim", markup=False, soft_wrap=True)
    console.print(verdict(report), style="bold green" if report.holds else "bold red", markup=False)


def verdict(report: ParityReport) -> str:
    """The last line."""
    compared = [each for each in report.comparisons if each.found]
    failed = sum(not each.holds for each in compared)
    if not compared:
        return "Nothing could be compared."
    if failed:
        return f"{failed} of {counted(len(compared), 'comparison')} failed."
    return f"{counted(len(compared), 'comparison')}: what answers is what was trained."


def as_values(report: ParityReport) -> dict[str, Any]:
    """The report as JSON has it."""
    found = [{**asdict(each), "holds": each.holds} for each in report.comparisons]
    return {**asdict(report), "comparisons": found, "holds": report.holds}


def _mark(comparison: Comparison) -> str:
    if not comparison.found:
        return "[yellow]-[/]"
    return "[green]yes[/]" if comparison.holds else "[bold red]NO[/]"
