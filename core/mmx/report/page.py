"""A report as one HTML page that needs nothing else: figures as SVG, and the data behind each."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from mmx.report.comparison import percent_of, sentences
from mmx.report.content import Band, Report, bands_of, missing, spoken
from mmx.report.drawing import svg_of
from mmx.report.pareto import draw_front, front
from mmx.report.plots import (
    CROWD,
    band_of,
    contributions_of,
    differences_of,
    draw_contributions,
    draw_curves,
    draw_differences,
    draw_lattice,
    drawable,
    lattice_of,
)
from mmx.report.results import Results
from mmx.report.standings import Standing, figures_of
from mmx.report.tables import FIGURES, Row, Table, table_of, told
from mmx.report.tidy import csv_text, tidy


@dataclass(frozen=True)
class Plot:
    """A figure with what it shows as a table."""

    name: str
    title: str
    caption: str
    svg: Any
    width: float
    """The least that it can be read at, in rem."""
    heads: Sequence[str]
    rows: Sequence[Sequence[Any]]
    uri: str


@dataclass(frozen=True)
class Part:
    """A section of figures."""

    anchor: str
    title: str
    plots: Sequence[Plot]


def html(report: Report, bands: Mapping[str, Band]) -> str:
    """Write a report as a page; `bands` are those of its first table's curves (see `bands_of`)."""
    from jinja2 import Environment, PackageLoader

    loader = PackageLoader("mmx.report")
    page = Environment(loader=loader, autoescape=True, trim_blocks=True).get_template("report.html")
    return page.render(
        report=report,
        tests=sentences(report.comparisons),
        parts=[part for part in parts_of(report, bands) if part.plots],
        tables=[t for table in report.tables if table.rates for t in _tables(report, table)],
        tidy=_uri(tidy(report)),
        points=_points(report.results),
    )


def parts_of(report: Report, bands: Mapping[str, Band]) -> list[Part]:
    """Draw everything, as far as there is anything to draw."""
    table = report.tables[0] if report.tables else None
    with_rates = table if table and table.rates else None
    return [
        Part("differences", "Differences", _differences(report)),
        Part("curves", "Curves", _curves(report, bands) if with_rates else []),
        Part("patterns", "Patterns", _lattice(report, table)),
        Part("contributions", "Contributions", _contributions(report, table)),
        Part("fronts", "Costs", [_front(report, o) for o in _fronts(report)]),
    ]


def _differences(report: Report) -> list[Plot]:
    found = differences_of(report.comparisons)
    if not found:
        return []
    heads = ("value", "difference", "low", "high", "corrected p", "better")
    plot = _plot(
        "differences",
        f"{spoken(report.score)} beside {found[0].other}, {missing(report.target)} goes missing",
        f"Paired, mean over rates, with the {percent_of(report.confidence)} interval; filled: it is told.",
        draw_differences(found, report.score),
        heads,
        [(c.one, c.difference, c.low, c.high, c.corrected, c.better) for c in found],
    )
    return [plot]


def _curves(report: Report, bands: Mapping[str, Band]) -> list[Plot]:
    """Draw a figure for each score and target, that of the report first."""
    results = report.results
    pairs = [(s, t) for s in results.scores for t in results.targets]
    pairs.sort(key=lambda pair: pair != (report.score, report.target))
    return [_curve(report, bands, *pair) for pair in pairs]


def _curve(report: Report, bands: Mapping[str, Band], score: str, target: str) -> Plot:
    own = Report(report.results, score, target, report.confidence, (), (), (), ())
    table = table_of(report.results, report.results.chief, score, target)
    if (score, target) != (report.score, report.target):
        bands = {row.label: bands_of(own, row) for row in table.rows}
    known = any(bands.values())
    band = f"{percent_of(report.confidence)} bootstrap interval over seeds and samples"
    around = f"the band is the {band if known else 'sample standard deviation over seeds'}."
    if len(table.rows) > CROWD:
        around = "bands of so many would hide each other: see the data."
    rows = [
        (row.label, percent, len(by), mean(by.values()), *band_of(row, bands)[percent])
        for row in table.rows
        for percent, by in row.rates.items()
    ]
    return _plot(
        f"curve_{score}_{target}",
        f"{spoken(score)}, {missing(target)} goes missing",
        f"Mean over seeds; {around}",
        draw_curves(table, bands, score, target),
        (table.axis, "missing (%)", "seeds", score, "low", "high"),
        rows,
    )


def _lattice(report: Report, table: Table | None) -> list[Plot]:
    names, means = lattice_of(table, report.score) if table else ([], [])
    if not table or not names:
        return []
    plot = _plot(
        "patterns",
        f"{spoken(report.score)} by what is present",
        "Each row is an availability pattern, the fullest on top; lines part patterns by how many are "
        "present. Mean over seeds.",
        draw_lattice(table, report.score),
        ("present", *(row.label for row in table.rows)),
        [(name, *line) for name, line in zip(names, means, strict=True)],
    )
    return [plot]


def _contributions(report: Report, table: Table | None) -> list[Plot]:
    found = contributions_of(table) if table else {}
    if not table or not found:
        return []
    score = report.results.task.scores[0].name
    rows = [
        (row.label, m, mean(values), stdev(values) if len(values) > 1 else 0.0)
        for m, by_row in found.items()
        for row, values in zip(table.rows, by_row, strict=True)
        if values
    ]
    plot = _plot(
        "contributions",
        f"what each modality adds to {spoken(score)}",
        "Shapley values: they add up to the score with all modalities minus that of the best constant. Bars: "
        "mean over seeds; lines: standard deviation.",
        draw_contributions(table, score),
        (table.axis, "modality", "shapley", "sd"),
        rows,
    )
    return [plot]


def _fronts(report: Report) -> list[dict[str, str]]:
    """Give the pairs of figures to draw: score against costs, and the sweep's own two objectives."""
    own = dict(report.results.objective)
    wanted = [*report.objectives()] + ([own] if len(own) == 2 else [])
    known = {tuple(sorted(o)): o for o in wanted}
    return [o for o in known.values() if drawable(report.results.found, o)]


def _front(report: Report, objective: Mapping[str, str]) -> Plot:
    found, axes = report.results.found, report.results.axes
    kept = {s.point for s in front(found, objective)}
    rows = [
        (s.point, *(s.params.get(a, "none") for a in axes), *(s.mean(f) for f in objective), s.point in kept)
        for s in found
    ]
    return _plot(
        "front_" + "_".join(f.rpartition("/")[2] for f in objective),
        " against ".join(map(spoken, objective)),
        "Every point of the sweep; no other point beats those on the front by both figures.",
        draw_front(found, objective),
        ("point", *axes, *objective, "on front"),
        rows,
    )


def _plot(
    name: str, title: str, caption: str, figure: Any, heads: Sequence[str], rows: Sequence[Sequence[Any]]
) -> Plot:
    from markupsafe import Markup

    svg = Markup(svg_of(figure, f"{title}. {caption}"))  # noqa: S704 our own SVG, its label escaped
    shown = [[f"{c:.4g}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    uri = _uri(csv_text(heads, rows))
    return Plot(name, title[0].upper() + title[1:], caption, svg, least_width(figure), heads, shown, uri)


def least_width(figure: Any) -> float:
    """Say how narrow a figure may be, in rem: one of usual size fits a phone, a wide one is scrolled."""
    inches = float(figure.get_figwidth())
    return round(inches * (3.4 if inches < 8 else 4.2), 1)


def _uri(text: str) -> str:
    """Give a text as an address that holds it."""
    return "data:text/csv;charset=utf-8;base64," + base64.b64encode(text.encode()).decode()


def _tables(report: Report, table: Table) -> list[dict[str, Any]]:
    """Lay a table out twice: the curve, and the figures beside it."""
    what = f"{spoken(report.score)} by percent missing of {missing(report.target)}"
    return [
        _laid_out(table, what[0].upper() + what[1:], {p: f"{p} %" for p in table.rates}),
        _laid_out(table, f"Figures of that curve by {table.axis}", {n: FIGURES[n] for n in table.names}),
    ]


def _laid_out(table: Table, caption: str, columns: Mapping[Any, str]) -> dict[str, Any]:
    best = {c: table.best(c) for c in columns}
    rows = [
        {"label": row.label, "cells": [(_text(row, c), row.label in best[c]) for c in columns]}
        for row in table.rows
    ]
    return {"caption": caption, "heads": [table.axis, *columns.values()], "rows": rows}


def _text(row: Row, column: int | str) -> str:
    return told(row.values(column), str(column))


def _points(results: Results) -> dict[str, Any]:
    """List all points, the pruned ones with the reason."""
    names = [f for f in figures_of(results.found) if f.startswith(("summary/", "cost/train"))]
    return {
        "axes": results.axes,
        "figures": [name.partition("/")[2].replace("_", " ") for name in names],
        "pruned": any(s.pruned for s in results.found),
        "rows": [_point(results, s, names) for s in results.found],
    }


def _point(results: Results, standing: Standing, figures: Sequence[str]) -> dict[str, Any]:
    return {
        "point": standing.point,
        "axes": [standing.params.get(a, "none") for a in results.axes],
        "seeds": standing.seeds,
        "figures": [standing.told(f) if standing.values(f) else "–" for f in figures],
        "pruned": standing.pruned,
    }
