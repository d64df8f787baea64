"""What a report says, before it is written in any form."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

import numpy as np

from mmx.errors import MmxError
from mmx.report.comparison import Comparison, compare_all, measure
from mmx.report.fairness import warnings_of
from mmx.report.pareto import front
from mmx.report.resampling import BAND_DRAWS, interval, resampled_means
from mmx.report.results import PARAMETERS, SECONDS, Results
from mmx.report.standings import Standing
from mmx.report.tables import Row, Table, table_of
from mmx.scores import Array

Band = Mapping[int, tuple[float, float]]
ABBREVIATIONS = ("auroc", "f1", "mae")


@dataclass(frozen=True)
class Report:
    """The tables, tests and warnings of one score and target. `bands`: intervals of the curves of the first
    table, by row and percent; none for scores that are no means over samples."""

    results: Results
    score: str
    target: str
    confidence: float
    tables: Sequence[Table]
    comparisons: Sequence[Comparison]
    warnings: Sequence[str]
    notes: Sequence[str]

    @property
    def title(self) -> str:
        """Name the sweep and the figure."""
        return f"{self.results.name}: {spoken(self.score)} as {missing(self.target)} goes missing"

    @property
    def seeds(self) -> str:
        """Say over how many seeds figures are."""
        return counted([row.standing for table in self.tables for row in table.rows])

    def objectives(self) -> list[dict[str, str]]:
        """Give the pairs of figures that Pareto fronts are drawn of: the robust score against each cost."""
        direction = "maximize" if self.results.higher_is_better(self.score) else "minimize"
        robust = f"summary/robust_{self.score}"
        return [{robust: direction, cost: "minimize"} for cost in (PARAMETERS, SECONDS)]


def spoken(name: str) -> str:
    """Say a figure's name."""
    words = name.rpartition("/")[2].split("_")
    return " ".join(word.upper() if word in ABBREVIATIONS else word for word in words)


def missing(target: str) -> str:
    """Say what goes missing."""
    return "any modality" if target == "any" else target


def averaged(standings: Sequence[Standing]) -> str:
    """Say what a figure of some points is."""
    told = counted(standings)
    return "of one seed" if told == "1 seed" else f"mean ± sample standard deviation over {told}"


def counted(standings: Sequence[Standing]) -> str:
    """Say how many seeds points have."""
    counts = sorted({s.seeds for s in standings} or {0})
    told = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{told} seed" if counts == [1] else f"{told} seeds"


def report_on(
    results: Results,
    score: str | None = None,
    target: str = "any",
    confidence: float = 0.95,
    patient: bool = True,
    against: str | None = None,
) -> Report:
    """Make a report (InputError for a score, target or value `against` that there is none of).

    `patient`: test scores that are no means over samples too, which takes a while.
    """
    score, target = results.score(score), results.target(target)
    tables = [table_of(results, axis, score, target) for axis in results.axes] if score else []
    quick = any(s.name == score and s.per_sample for s in results.task.scores)
    found: list[Comparison] = []
    if score and (patient or quick):
        found = compare_all(results, results.best(results.chief), score, target, confidence, against)
    notes = _notes(results, score, quick)
    if not patient and not quick:
        notes.append(f"tests of {score} take a while: `mmx report {results.name} --html` makes them")
    return Report(results, score, target, confidence, tables, found, warnings_of(results), notes)


def _notes(results: Results, score: str, by_sample: bool) -> list[str]:
    """Say how the figures came about."""
    standings = list(results.best(results.chief).values())
    notes = [
        f"of each value the best point is shown, picked by {next(iter(results.objective))} on the validation "
        f"split; all figures are from the test split, "
        f"{averaged(standings)}"
    ]
    if results.most_params:
        out = len(results.left_out)
        points = "1 point was" if out == 1 else f"{out} points were"
        notes.append(
            f"only points that train at most {results.most_params:,} parameters are compared; "
            f"{points} left out"
        )
    if score and not by_sample:
        notes.append(
            f"{score} is no mean over samples: its tests resample seeds and samples under one draw of masks, "
            f"p is the bootstrap's, and no signed-rank test is made"
        )
    return notes


def bands_of(report: Report, row: Row) -> Band:
    """Give the interval of a row's curve at each percent: seeds and samples drawn anew.

    Nothing where the score is no mean over samples, or predictions cannot be read.
    """
    try:
        return _bands(report, row)
    except MmxError:
        return {}


def all_bands(report: Report) -> dict[str, Band]:
    """Give the intervals of the curves of the first table."""
    return {row.label: bands_of(report, row) for table in report.tables[:1] for row in table.rows}


def _bands(report: Report, row: Row) -> Band:
    records = row.standing.records
    found = [measure(report.results, r, report.score, report.target) for r in records]
    if not found or not found[0].score.per_sample or len({m.values.shape for m in found}) > 1:
        return {}
    draws: Array = resampled_means(np.stack([m.values for m in found]), BAND_DRAWS)
    percents = [round(100 * rate) for rate in found[0].rates]
    return {p: interval(draws[:, i], report.confidence) for i, p in enumerate(percents)}


def as_data(report: Report) -> dict[str, Any]:
    """Give a report as plain data, for JSON; figures that are not finite are None."""
    fronts = {}
    for objective in report.objectives():
        cost = list(objective)[1]
        fronts[cost] = [s.point for s in front(report.results.found, objective)]
    return {
        "sweep": report.results.name,
        "score": report.score,
        "target": report.target,
        "confidence": report.confidence,
        "objective": dict(report.results.objective),
        "tables": [_table(table) for table in report.tables],
        "comparisons": [
            {n: _finite(v) for n, v in asdict(c).items()} | {"better": c.better, "told": c.told()}
            for c in report.comparisons
        ],
        "fronts": fronts,
        "warnings": list(report.warnings),
        "notes": list(report.notes),
    }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not isfinite(value) else value


def _table(table: Table) -> dict[str, Any]:
    rows = [
        {
            "value": row.label,
            "point": row.standing.point,
            "rates": {str(p): {str(s): v for s, v in by.items()} for p, by in row.rates.items()},
            "figures": {n: {str(s): v for s, v in by.items()} for n, by in row.figures.items()},
        }
        for row in table.rows
    ]
    return {"axis": table.axis, "rows": rows}
