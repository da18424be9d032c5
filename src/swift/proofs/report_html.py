"""This file knows how a check is shown in a browser: one page that needs nothing from outside itself."""

from __future__ import annotations

from html import escape

from swift.proofs.report import Bar, CheckReport, DatasetFacts, Fact, LeftOut, Proof, ShownRow, counted, share

STYLE = """
:root { color-scheme: light dark; --line: #d0d4d9; --faint: #5b6570; --learnt: #c9f0d0; --good: #1a7f37; --bad: #c4262e;
        --bar: #7aa7d9; --page: #ffffff; --ink: #1c2024; --box: #f5f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --line: #3a4149; --faint: #9aa4af; --learnt: #1f4d2b; --good: #56d364; --bad: #ff7b72; --bar: #4a78ab;
          --page: #14171a; --ink: #e6e8ea; --box: #1d2126; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
       background: var(--page); color: var(--ink); }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .15rem .8rem .15rem 0;
        vertical-align: top; overflow-wrap: anywhere; } th { color: var(--faint); font-weight: normal; }
.number { text-align: right; white-space: nowrap; } .faint { color: var(--faint); } .good { color: var(--good); }
.bad { color: var(--bad); font-weight: bold; } pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--box);
        padding: .8rem; border-radius: 6px; max-height: 30rem; overflow: auto; }
mark { background: var(--learnt); color: inherit; border-radius: 2px; } .bar { background: var(--bar); height: 1em; }
.range { white-space: nowrap; width: 10rem; }
"""


def page(report: CheckReport) -> str:
    """The whole page as HTML, with what is learnt highlighted, in light or dark as the reader's system has it."""
    title = f"Check of {escape(report.command)}"
    parts = [
        _verdict(report),
        _section("Options given and derived", _facts(report.decided)),
        _section("Model", _facts(report.model)),
        _section("First rows", "".join(map(_row, report.rows))),
        _section("Data sets", _datasets(report.datasets)),
        _section("Lengths", _lengths(report)),
        _section("Rows left out", _left_out(report.left_out, report.read)),
        _section("Steps", _facts(report.schedule)),
        _section("Machine", _facts(report.machine)),
        _section("Proofs", _table([_proof(proof) for proof in report.proofs])),
    ]
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f"<body><h1>{title}</h1>\n{''.join(parts)}</body></html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<h2>{escape(title)}</h2>\n{body}\n" if body else ""


def _table(rows: list[str], head: str = "") -> str:
    return f"<table>{head}{''.join(rows)}</table>" if rows else ""


def _cells(*texts: str, kind: str = "td") -> str:
    return "<tr>" + "".join(f"<{kind}>{escape(text)}</{kind}>" for text in texts) + "</tr>"


def _facts(facts: list[Fact]) -> str:
    rows = [
        f"<tr><th>{escape(fact.name)}</th><td>{escape(fact.value)}</td><td class=faint>{escape(fact.note)}</td></tr>"
        for fact in facts
    ]
    return _table(rows)


def _row(row: ShownRow) -> str:
    text = "".join(
        f"<mark>{escape(part.text)}</mark>" if part.is_learnt else escape(part.text) for part in row.stretches
    )
    numbers = f"{row.place}, {counted(row.tokens, 'token')}, {row.learnt:,} learnt"
    return f"<p>{escape(row.title)} <span class=faint>{escape(numbers)}</span></p><pre>{text}</pre>\n"


def _datasets(datasets: list[DatasetFacts]) -> str:
    head = _cells("data set", "used for", "samples", "tokens", "learnt", "share", kind="th")
    rows = [
        _cells(d.name, d.split, f"{d.samples:,}", f"{d.tokens:,}", f"{d.learnt:,}", share(d.learnt, d.tokens))
        for d in datasets
    ]
    return _table(rows, head)


def _lengths(report: CheckReport) -> str:
    most = max((bar.count for bar in report.lengths), default=1)
    table = _table([_bar(bar, most) for bar in report.lengths])
    if report.max_length is None or not table:
        return table
    over = f"{counted(report.longer, 'row')} of {report.read:,} ({share(report.longer, report.read)})"
    return f"{table}<p>longer than --max_length {report.max_length:,}: {over}</p>"


def _bar(bar: Bar, most: int) -> str:
    width = 100 * bar.count / most
    return (
        f"<tr><td class=range>{bar.low:,} to {bar.high:,}</td>"
        f'<td><div class=bar style="width:{width:.1f}%"></div></td><td class=number>{bar.count:,}</td></tr>'
    )


def _left_out(left: list[LeftOut], read: int) -> str:
    return _table([_cells(f"{row.count:,} of {read:,}", row.cause, row.example) for row in left])


def _proof(proof: Proof) -> str:
    mark = "<td class=good>holds</td>" if proof.holds else "<td class=bad>failed</td>"
    examples = "".join(f"<br><span class=faint>{escape(example)}</span>" for example in proof.examples)
    return f"<tr>{mark}<td>{escape(proof.claim)}</td><td>{escape(proof.found)}{examples}</td></tr>"


def _verdict(report: CheckReport) -> str:
    if report.holds:
        return f"<p class=good>All {len(report.proofs)} proofs hold.</p>"
    failed = "".join(
        f"<li><span class=bad>{escape(proof.claim)}</span>: {escape(proof.found)}<br>{escape(proof.advice)}</li>"
        for proof in report.failed
    )
    return f"<p class=bad>{len(report.failed)} of {counted(len(report.proofs), 'proof')} failed:</p><ul>{failed}</ul>"
