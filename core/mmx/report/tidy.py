"""A report as CSV: one figure a line."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmx.report.content import Report
from mmx.report.tables import Table, patterns_of, told

TIDY = ("axis", "value", "point", "score", "target", "figure", "percent_missing", "seed", "result")


def csv_text(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Write lines of CSV."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(rows)
    return buffer.getvalue()


def tidy(report: Report) -> str:
    """Write a line for each axis value, rate and seed, and for each figure and seed."""
    return csv_text(TIDY, (line for table in report.tables for line in _lines(report, table)))


def _lines(report: Report, table: Table) -> Iterable[tuple[Any, ...]]:
    for row in table.rows:
        head = (table.axis, row.label, row.standing.point, report.score, report.target)
        for percent, by_seed in row.rates.items():
            yield from ((*head, "curve", percent, seed, value) for seed, value in by_seed.items())
        for name, by_seed in row.figures.items():
            yield from ((*head, name, "", seed, value) for seed, value in by_seed.items())


def write_folder(folder: Path, report: Report) -> list[Path]:
    """Write `tidy.csv`, a table an axis, the tests, the patterns and the warnings."""
    texts = {"tidy.csv": tidy(report)}
    for table in report.tables:
        texts[f"by_{table.axis.replace('/', '_')}.csv"] = _wide(table)
    if report.comparisons:
        rows = [{**asdict(c), "better": c.better, "told": c.told()} for c in report.comparisons]
        texts["tests.csv"] = csv_text(list(rows[0]), (list(row.values()) for row in rows))
    texts["patterns.csv"] = _patterns(report)
    texts["warnings.csv"] = csv_text(["warning"], ([w] for w in report.warnings))
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


def _wide(table: Table) -> str:
    heads = [table.axis, *(f"missing_{p}" for p in table.rates), *table.names]
    rows = (
        [
            row.label,
            *(told(row.rates.get(p)) for p in table.rates),
            *(told(row.figures.get(n), n) for n in table.names),
        ]
        for row in table.rows
    )
    return csv_text(heads, rows)


def _patterns(report: Report) -> str:
    rows = (
        (row.label, record.seed, pattern, value)
        for row in (report.tables[0].rows if report.tables else ())
        for record in row.standing.records
        for pattern, value in patterns_of(record, report.score).items()
    )
    axis = report.tables[0].axis if report.tables else "strategy"
    return csv_text([axis, "seed", "present", report.score], rows)
