"""This file knows how the findings of `swift prove` are shown: a table for people, plain values for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from swift.proofs.equivalence import Difference, Finding, Report
from swift.proofs.report import counted


def show(report: Report, console: Console) -> None:
    """The table of a proof, what does not apply, what does not hold, and the verdict."""
    console.print(f"swift prove {report.proof} {report.command}", style="bold", markup=False, soft_wrap=True)
    console.print(f"on {report.device}, weights in {report.dtype}", style="dim", markup=False)
    shown = [finding for finding in report.findings if finding.differences]
    if shown:
        console.print(_tables(shown))
    for finding in report.findings:
        if finding.left_out:
            console.print(
                f"  not proven: {finding.name}: {finding.left_out}", style="yellow", markup=False, soft_wrap=True
            )
        if finding.error:
            console.print(f"  FAILED: {finding.name}: {finding.error}", style="bold red", markup=False, soft_wrap=True)
        for difference in finding.differences:
            if not difference.holds:
                sentence = f"  FAILED: {finding.name}: {_sentence(difference, finding)}"
                console.print(sentence, style="bold red", markup=False, soft_wrap=True)
    for note in report.notes:
        console.print(f"  note: {note}", style="dim", markup=False, soft_wrap=True)
    console.print(verdict(report), style="bold green" if report.holds else "bold red", markup=False)


def verdict(report: Report) -> str:
    """The last line of a proof."""
    proven = sum(finding.holds and bool(finding.differences) for finding in report.findings)
    failed = sum(not finding.holds for finding in report.findings)
    if not proven and not failed:
        return f"Nothing could be proven. {report.seconds:.0f} seconds."
    if failed:
        return f"{failed} of {counted(proven + failed, 'comparison')} failed. {report.seconds:.0f} seconds."
    return f"{counted(proven, 'comparison')}: everything holds. {report.seconds:.0f} seconds."


def as_values(report: Report) -> dict[str, Any]:
    """The report as JSON has it; numbers that are not finite are null."""
    return {**asdict(report), "holds": report.holds, "findings": [_values(finding) for finding in report.findings]}


def _values(finding: Finding) -> dict[str, Any]:
    differences = [
        {**asdict(d), "found": d.found if abs(d.found) < float("inf") else None, "holds": d.holds}
        for d in finding.differences
    ]
    return {**asdict(finding), "differences": differences, "holds": finding.holds}


def _tables(findings: list[Finding]) -> Table:
    """One finding a line where all compare the same quantities, else one quantity a line."""
    quantities = {tuple(difference.what for difference in finding.differences) for finding in findings}
    return _wide(findings) if len(findings) > 1 and len(quantities) == 1 else _long(findings)


def _wide(findings: list[Finding]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("apart by", overflow="fold")
    for difference in findings[0].differences:
        table.add_column(difference.what, justify="right")
    table.add_column("")
    against = ""
    for finding in findings:
        if finding.against != against:
            against = finding.against
            table.add_row(f"[dim]against: {escape(against)}[/]")
        cells = [_cell(difference) for difference in finding.differences]
        table.add_row(f"  {escape(finding.name)}", *cells, _mark(finding.holds))
    limits = [f"[dim]{_number(difference.limit)}[/]" for difference in findings[0].differences]
    table.add_row("[dim]limit[/]", *limits)
    return table


def _long(findings: list[Finding]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", overflow="fold")
    for heading in ("apart by", "limit"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for finding in findings:
        table.add_row(f"[dim]{escape(finding.name)}, against: {escape(finding.against)}[/]")
        for difference in finding.differences:
            table.add_row(
                f"  {escape(difference.what)}", _cell(difference), _number(difference.limit), _mark(difference.holds)
            )
    return table


def _cell(difference: Difference) -> str:
    number = _number(difference.found)
    return number if difference.holds else f"[bold red]{number}[/]"


def _mark(holds: bool) -> str:
    return "[green]holds[/]" if holds else "[bold red]FAILED[/]"


def _sentence(difference: Difference, finding: Finding) -> str:
    where = f"; {difference.where}" if difference.where else ""
    return (
        f"{difference.what} differs from that of {finding.against} by {_number(difference.found)}, the limit is "
        f"{_number(difference.limit)}{where}"
    )


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:.2g}"
