"""The figures of a report: curves, paired differences, lattice of patterns, contributions, Pareto fronts."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil
from statistics import mean, stdev
from typing import Any

from mmx.report.comparison import Comparison
from mmx.report.content import Band, Report, missing, spoken
from mmx.report.drawing import COLOURS, DASHES, GREY, MARKERS, new_figure
from mmx.report.pareto import draw_front
from mmx.report.results import PARAMETERS, SECONDS
from mmx.report.standings import Standing
from mmx.report.tables import Row, Table, patterns_of

BESIDE = 6
"""Curves that are named inside the axes; more are named below."""
CROWD = 8
"""Curves that have bands; those of more would hide each other."""
CONTRIBUTION = "contribution/shapley_"


def draw_curves(table: Table, bands: Mapping[str, Band], score: str, target: str) -> Any:
    """Draw a line a row; the band is the interval where there is one, else the sample standard deviation.

    There is none in a crowd.
    """
    lines = ceil(len(table.rows) / 3) if len(table.rows) > BESIDE else 0
    figure, axis = new_figure(height=4.0 + 0.24 * lines)
    for n, row in enumerate(r for r in table.rows if r.rates):
        colour, marker = COLOURS[n % len(COLOURS)], MARKERS[(n + n // len(COLOURS)) % len(MARKERS)]
        style = DASHES[n % len(DASHES)]
        percents = list(row.rates)
        if len(table.rows) <= CROWD:
            low, high = zip(*band_of(row, bands).values(), strict=True)
            axis.fill_between(percents, low, high, color=colour, alpha=0.15, linewidth=0)
        middle = [mean(row.rates[p].values()) for p in percents]
        axis.plot(percents, middle, label=row.label, color=colour, marker=marker, linestyle=style)
    axis.set(xlabel=f"missing (%), {missing(target)}", ylabel=spoken(score))
    axis.grid(alpha=0.3)
    if lines:  # below: among the lines it would hide some
        figure.subplots_adjust(bottom=(0.6 + 0.24 * lines) / figure.get_figheight())
        figure.legend(frameon=False, loc="lower center", ncols=3, fontsize="small")
    else:
        axis.legend(frameon=False)
    return figure


def band_of(row: Row, bands: Mapping[str, Band]) -> dict[int, tuple[float, float]]:
    """Give what is drawn around a row's curve at each percent."""
    own = bands.get(row.label, {})
    found = {}
    for percent, by_seed in row.rates.items():
        values = list(by_seed.values())
        spread = stdev(values) if len(values) > 1 else 0.0
        found[percent] = own.get(percent, (mean(values) - spread, mean(values) + spread))
    return found


def differences_of(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Give the comparisons that were made from the others' side, the best first."""
    turned = [
        replace(c, one=c.other, other=c.one, difference=-c.difference, low=-c.high, high=-c.low)
        for c in comparisons
        if not c.refused
    ]
    return sorted(turned, key=lambda c: -c.difference)


def draw_differences(found: Sequence[Comparison], score: str) -> Any:
    """Draw how much better each is than what all are compared with; filled where it is told."""
    figure, axis = new_figure(height=1.1 + 0.3 * len(found), fitted=True)
    for y, c in enumerate(found):
        colour = GREY if not c.better else COLOURS[0] if c.better == c.one else COLOURS[1]
        axis.plot([c.low, c.high], [y, y], color=colour, linewidth=2)
        axis.plot(c.difference, y, "o", color=colour, markerfacecolor=colour if c.better else "white")
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(found)), [c.one for c in found])
    axis.set_ylim(len(found) - 0.5, -0.5)
    axis.set(xlabel=f"{spoken(score)}: better than {found[0].other} by")
    axis.grid(alpha=0.3, axis="x")
    return figure


def lattice_of(table: Table, score: str) -> tuple[list[str], list[list[float]]]:
    """Give the availability patterns, the fullest first, and the rows' mean score under each (NaN: none)."""
    found = [[patterns_of(r, score) for r in row.standing.records] for row in table.rows]
    names = dict.fromkeys(name for records in found for patterns in records for name in patterns)
    ordered = sorted(names, key=lambda name: (-name.count("."), list(names).index(name)))
    means = [
        [_mean([patterns[name] for patterns in records if name in patterns]) for records in found]
        for name in ordered
    ]
    return ordered, means


def _mean(values: Sequence[float]) -> float:
    return mean(values) if values else float("nan")


def draw_lattice(table: Table, score: str) -> Any:
    """Draw patterns against rows as a heat map; each cell says its value."""
    import numpy as np

    names, means = lattice_of(table, score)
    figure, axis = new_figure(
        2.6 + (1.1 if len(table.rows) < 8 else 0.75) * len(table.rows), 1.6 + 0.42 * len(names), fitted=True
    )
    values = np.array(means, dtype=float)
    axis.pcolormesh(values, cmap="cividis", edgecolors="white", linewidth=1.5)
    low, high = np.nanmin(values), np.nanmax(values)
    for y, line in enumerate(means):
        for x, value in enumerate(line):
            colour = "white" if value < (low + high) / 2 or low == high else "black"
            axis.text(x + 0.5, y + 0.5, f"{value:.3f}", ha="center", va="center", color=colour)
    sizes = [name.count(".") + 1 for name in names]
    for y in range(1, len(names)):
        if sizes[y] != sizes[y - 1]:  # a step down in the order of patterns
            axis.axhline(y, color="black", linewidth=1)
    _name_columns(axis, [x + 0.5 for x in range(len(table.rows))], table)
    axis.set_yticks([y + 0.5 for y in range(len(names))], [name.replace(".", " + ") for name in names])
    axis.tick_params(length=0)
    axis.invert_yaxis()
    axis.set(ylabel="present", title=spoken(score))
    return figure


def _name_columns(axis: Any, places: Sequence[float], table: Table) -> None:
    """Write the rows' names below, slanted so that long ones do not meet."""
    names = [row.label for row in table.rows]
    axis.set_xticks(places, names, rotation=30, ha="right", rotation_mode="anchor")


def contributions_of(table: Table) -> dict[str, list[list[float]]]:
    """Give each modality's Shapley values: by row, by seed."""
    metrics = [[r.metrics for r in row.standing.records] for row in table.rows]
    names = dict.fromkeys(n for rows in metrics for m in rows for n in m if n.startswith(CONTRIBUTION))
    return {
        name.removeprefix(CONTRIBUTION): [[m[name] for m in rows if name in m] for rows in metrics]
        for name in names
    }


def draw_contributions(table: Table, score: str) -> Any:
    """Draw bars: for each row the modalities' Shapley values, with the standard deviation over seeds."""
    figure, axis = new_figure(max(6.4, 1.2 + 0.6 * len(table.rows)), fitted=True)
    found = contributions_of(table)
    width = 0.8 / max(1, len(found))
    for n, (m, rows) in enumerate(found.items()):
        places = [x - 0.4 + width * (n + 0.5) for x in range(len(rows))]
        spreads = [stdev(v) if len(v) > 1 else 0.0 for v in rows]
        hatch = ("", "//", "..", "xx")[n % 4]
        axis.bar(
            places,
            [_mean(v) for v in rows],
            width * 0.92,
            yerr=spreads,
            label=m,
            color=COLOURS[n % len(COLOURS)],
            hatch=hatch,
            edgecolor="white",
            error_kw={"elinewidth": 1},
        )
    axis.axhline(0, color="black", linewidth=0.8)
    _name_columns(axis, [float(x) for x in range(len(table.rows))], table)
    axis.set(ylabel=f"Shapley value of {spoken(score)}")
    axis.grid(alpha=0.3, axis="y")
    axis.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=max(1, len(found)))
    return figure


def fronts_of(report: Report) -> dict[str, Any]:
    """Draw the robust score against each cost, by name; none where no point has both."""
    names = {PARAMETERS: "pareto_params", SECONDS: "pareto_seconds"}
    found = {}
    for objective in report.objectives():
        if drawable(report.results.found, objective):
            found[names[list(objective)[1]]] = draw_front(report.results.found, objective)
    return found


def drawable(found: Sequence[Standing], objective: Mapping[str, str]) -> bool:
    """Tell whether some point has all figures of an objective."""
    return any(all(s.values(f) for f in objective) for s in found)


def figures_of_report(report: Report, bands: Mapping[str, Band]) -> dict[str, Any]:
    """Draw the figures that say most, by name, as far as there is anything to draw."""
    figures = fronts_of(report)
    table = report.tables[0] if report.tables else None
    if table and table.rates:
        figures["curves"] = draw_curves(table, bands, report.score, report.target)
    if found := differences_of(report.comparisons):
        figures["differences"] = draw_differences(found, report.score)
    if table and lattice_of(table, report.score)[0]:
        figures["lattice"] = draw_lattice(table, report.score)
    return figures
