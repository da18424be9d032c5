"""This file knows how a check is shown in a terminal or a file of plain text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from swift.proofs.report import CheckReport, Fact, Proof, ShownRow, Stretch, counted, share

LONGEST_ROW = 4000
"""Characters of a shown row; the middle of longer ones is left out."""
BAR_WIDTH = 40
LEARNT = ("⟦", "⟧")
"""What is learnt stands between these where there are no colours."""

Paint = Callable[[str], str]


@dataclass(frozen=True)
class Colours:
    """How words are set off; with `Colours.none()` they are not."""

    heading: Paint
    learnt: Paint
    good: Paint
    bad: Paint
    faint: Paint

    @staticmethod
    def of_terminal() -> Colours:
        """ANSI colours."""
        return Colours(*(_ansi(code) for code in ("1", "32", "32", "1;31", "2")))

    @staticmethod
    def none() -> Colours:
        """Plain text; what is learnt stands between brackets."""

        def plain(text: str) -> str:
            return text

        return Colours(plain, lambda text: f"{LEARNT[0]}{text}{LEARNT[1]}", plain, plain, plain)


def page(report: CheckReport, colours: Colours) -> str:
    """The whole page, failed proofs again at its end."""
    lines = [colours.heading(f"Check of {report.command}"), ""]
    for title, part in _parts(report, colours):
        body = list(part)
        if body:
            lines += [colours.heading(title), *body, ""]
    lines += _verdict(report, colours)
    return "\n".join(lines) + "\n"


def _parts(report: CheckReport, colours: Colours) -> Iterator[tuple[str, Iterable[str]]]:
    yield "Options given and derived", _facts(report.decided, colours)
    yield "Model", _facts(report.model, colours)
    yield f"First rows (what is learnt is {_how(colours)})", _rows(report.rows, colours)
    yield "Data sets", _datasets(report)
    yield "Lengths", _lengths(report)
    yield "Rows left out", _left_out(report)
    yield "Steps", _facts(report.schedule, colours)
    yield "Machine", _facts(report.machine, colours)
    yield "Proofs", [line for proof in report.proofs for line in _proof(proof, colours)]


def _how(colours: Colours) -> str:
    return f"between {LEARNT[0]} and {LEARNT[1]}" if colours.learnt("") else "green"


def _facts(facts: list[Fact], colours: Colours) -> list[str]:
    name = max((len(fact.name) for fact in facts), default=0)
    value = min(max((len(fact.value) for fact in facts), default=0), 40)
    return [
        f"  {fact.name:<{name}}  {fact.value:<{value}}  {colours.faint(fact.note)}".rstrip()
        if fact.note
        else f"  {fact.name:<{name}}  {fact.value}"
        for fact in facts
    ]


def _rows(rows: list[ShownRow], colours: Colours) -> Iterator[str]:
    for row in rows:
        numbers = f"{counted(row.tokens, 'token')}, {row.learnt:,} learnt"
        yield f"  {row.title}  {colours.faint(f'{row.place}, {numbers}')}"
        text = "".join(
            colours.learnt(part.text) if part.is_learnt else part.text for part in abridged(row, LONGEST_ROW)
        )
        yield from (f"    {line}" for line in text.splitlines())


def abridged(row: ShownRow, limit: int) -> list[Stretch]:
    """The stretches of a row, the middle of long ones left out so that about `limit` characters remain."""
    room = max(limit // max(len(row.stretches), 1), 80)
    return [
        part if len(part.text) <= room else Stretch(_middle_out(part.text, room), part.is_learnt)
        for part in row.stretches
    ]


def _middle_out(text: str, room: int) -> str:
    half = room // 2
    return f"{text[:half]} […{len(text) - 2 * half:,} characters…] {text[-half:]}"


def _datasets(report: CheckReport) -> list[str]:
    width = max((len(facts.name) for facts in report.datasets), default=0)
    return [
        f"  {facts.name:<{width}}  {facts.split:<10}  {counted(facts.samples, 'sample'):>16}  "
        f"{counted(facts.tokens, 'token'):>18}  {facts.learnt:,} learnt ({share(facts.learnt, facts.tokens)})"
        for facts in report.datasets
    ]


def _lengths(report: CheckReport) -> list[str]:
    most = max((bar.count for bar in report.lengths), default=1)
    width = len(f"{report.lengths[-1].high:,}") if report.lengths else 0
    lines = [
        f"  {bar.low:>{width},} to {bar.high:>{width},}  {'█' * -(-bar.count * BAR_WIDTH // most):<{BAR_WIDTH}}  {bar.count:,}"
        for bar in report.lengths
    ]
    if report.max_length is not None and report.lengths:
        over = f"{counted(report.longer, 'row')} of {report.read:,} ({share(report.longer, report.read)})"
        lines.append(f"  longer than --max_length {report.max_length:,}: {over}")
    return lines


def _left_out(report: CheckReport) -> list[str]:
    return [
        line
        for left in report.left_out
        for line in (f"  {left.count:,} of {report.read:,}  {left.cause}", f"      as {left.example}")
    ]


def _proof(proof: Proof, colours: Colours) -> list[str]:
    mark = colours.good("holds ") if proof.holds else colours.bad("FAILED")
    return [f"  {mark}  {proof.claim}: {proof.found}", *(f"            {example}" for example in proof.examples)]


def _verdict(report: CheckReport, colours: Colours) -> list[str]:
    if report.holds:
        return [colours.good(f"All {len(report.proofs)} proofs hold.")]
    lines = [colours.bad(f"{len(report.failed)} of {counted(len(report.proofs), 'proof')} failed:")]
    for proof in report.failed:
        lines += [f"  {proof.claim}: {proof.found}", f"      {proof.advice}"]
    return lines


def _ansi(code: str) -> Paint:
    return lambda text: "\n".join(f"\033[{code}m{line}\033[0m" if line else "" for line in text.split("\n"))
