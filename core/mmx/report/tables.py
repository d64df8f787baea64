"""Tables of a report: for each axis of the sweep, the best point of each value, figures by seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from mmx.contracts import TrialRecord
from mmx.errors import MmxError
from mmx.metrics import sum_up
from mmx.report.results import PARAMETERS, SECONDS, Results
from mmx.report.standings import Standing
from mmx.trial.figures import patterns_of as every_pattern

BySeed = Mapping[int, float]
FIGURES = {
    "robust": "mean over rates",
    "area": "area",
    "clean": "clean",
    "worst": "worst pattern",
    "drop_at_50": "drop at 50",
    "retention": "retention",
    "trainable_params": "trainable parameters",
    "train_seconds": "train seconds",
}
"""Figures beside the curve, and how a table heads them."""
COSTS = ("trainable_params", "train_seconds")


@dataclass(frozen=True)
class Row:
    """The best point of one value of an axis. `rates`: by percent missing, then by seed."""

    label: str
    standing: Standing
    rates: Mapping[int, BySeed]
    figures: Mapping[str, BySeed]

    def values(self, column: int | str) -> BySeed:
        """Give what stands in a column: a percent or a figure."""
        found = self.rates.get(column) if isinstance(column, int) else self.figures.get(column)
        return found or {}


@dataclass(frozen=True)
class Table:
    """One axis of the sweep; `higher`: whether higher scores are better."""

    axis: str
    rows: Sequence[Row]
    higher: bool

    @property
    def rates(self) -> list[int]:
        """All percents that some row was evaluated at."""
        return sorted({percent for row in self.rows for percent in row.rates})

    @property
    def names(self) -> list[str]:
        """The figures that some row has."""
        return [name for name in FIGURES if any(row.figures.get(name) for row in self.rows)]

    def best(self, column: int | str) -> set[str]:
        """Name the rows whose mean is best in a column, a percent or a figure."""
        found = {row.label: row.values(column) for row in self.rows}
        means = {label: mean(values.values()) for label, values in found.items() if values}
        if len(means) < 2:
            return set()
        lower = self._lower_is_better(column)
        top = min(means.values()) if lower else max(means.values())
        return {label for label, value in means.items() if value == top}

    def _lower_is_better(self, column: int | str) -> bool:
        """Tell a column's direction. A drop is of the score: the less of a merit is lost the better, and an
        error that rises drops below zero, the less the better."""
        if column in COSTS:
            return True
        return self.higher == (column == "drop_at_50")


def table_of(results: Results, axis: str, score: str, target: str) -> Table:
    """Make the table of an axis."""
    rows = [row_of(results, label, s, score, target) for label, s in results.best(axis).items()]
    return Table(axis, rows, results.higher_is_better(score))


def row_of(results: Results, label: str, standing: Standing, score: str, target: str) -> Row:
    """Collect a point's figures over its seeds."""
    rates: dict[int, dict[int, float]] = {}
    figures: dict[str, dict[int, float]] = {}
    for record in standing.records:
        curve = results.curve(record, score, target)
        for percent, value in curve.items():
            rates.setdefault(percent, {})[record.seed] = value
        by_rate = {percent / 100: value for percent, value in curve.items()}
        summary = sum_up(by_rate, {}, results.higher_is_better(score))
        summary |= _worst(results, record, score, target) | _costs(record)
        for name, value in summary.items():
            figures.setdefault(name, {})[record.seed] = value
    return Row(label, standing, dict(sorted(rates.items())), figures)


def _worst(results: Results, record: TrialRecord, score: str, target: str) -> dict[str, float]:
    """Give the worst pattern's score; what it is of one modality's absence alone, no pattern tells."""
    if target != "any":
        return {}
    if score == results.task.scores[0].name and "summary/worst" in record.metrics:
        return {"worst": record.metrics["summary/worst"]}
    logged = _all_logged(results, record)
    values = list(patterns_of(record, score).values()) if logged else _stored_patterns(results, record, score)
    pick = min if results.higher_is_better(score) else max
    return {"worst": pick(values)} if values else {}


def _all_logged(results: Results, record: TrialRecord) -> bool:
    """Tell whether a trial logged every pattern: its spec may ask for some of them."""
    try:
        return results.run(record).spec.missing.eval.patterns == "all"
    except MmxError:
        return False


def _stored_patterns(results: Results, record: TrialRecord, score: str) -> list[float]:
    """Score all patterns from a trial's stored predictions; none where these cannot be read."""
    try:
        predictions, task, _ = results.run(record).stored
        figure = (task or results.task).score(score)
    except (MmxError, KeyError):
        return []
    return list(every_pattern(predictions, figure).values())


def patterns_of(record: TrialRecord, score: str) -> dict[str, float]:
    """Give a trial's score by availability pattern, named by what is present."""
    head = f"pattern/{score}_has_"
    return {n.removeprefix(head): v for n, v in record.metrics.items() if n.startswith(head)}


def _costs(record: TrialRecord) -> dict[str, float]:
    return {f.removeprefix("cost/"): record.metrics[f] for f in (PARAMETERS, SECONDS) if f in record.metrics}


def told(values: BySeed | None, figure: str = "", sign: str = "±") -> str:
    """Write a figure for a reader: its mean, and the sample standard deviation where seeds tell one."""
    if not values:
        return "–"
    middle = mean(values.values())
    if figure == "trainable_params":
        return f"{middle:,.0f}"
    if figure == "train_seconds":
        return f"{middle:,.1f}"
    return f"{middle:.3f} {sign} {stdev(values.values()):.3f}" if len(values) > 1 else f"{middle:.3f}"
