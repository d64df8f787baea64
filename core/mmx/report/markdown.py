"""A report as Markdown."""

from collections.abc import Sequence

from mmx.report.comparison import sentences
from mmx.report.content import Report, missing, spoken
from mmx.report.tables import FIGURES, Table, told


def markdown(report: Report) -> str:
    """Write a report as Markdown."""
    parts = [f"# {report.title}", *(_sentence(note) for note in report.notes)]
    if report.warnings:
        parts += ["## Before you compare", _list(report.warnings)]
    for table in report.tables:
        parts += [f"## By {table.axis}", _curves(table, report), _figures(table)]
    if report.comparisons:
        parts += ["## Paired tests", _list(sentences(report.comparisons))]
    return "\n\n".join(parts) + "\n"


def _sentence(note: str) -> str:
    first = note.split(maxsplit=1)[0]
    return f"{note}." if "_" in first else f"{note[0].upper()}{note[1:]}."


def _list(items: Sequence[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _curves(table: Table, report: Report) -> str:
    heads = [f"{percent} %" for percent in table.rates]
    rows = [[row.label, *(told(row.rates.get(p)) for p in table.rates)] for row in table.rows]
    title = f"{spoken(report.score)} by percent missing of {missing(report.target)}:"
    return f"{title[0].upper()}{title[1:]}\n\n{grid([table.axis, *heads], rows)}"


def _figures(table: Table) -> str:
    heads = [FIGURES[name] for name in table.names]
    rows = [[row.label, *(told(row.figures.get(n), n) for n in table.names)] for row in table.rows]
    return grid([table.axis, *heads], rows)


def grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table; bars in cells are escaped."""
    lines = [heads, ["---", *("---:" for _ in heads[1:])], *rows]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)
