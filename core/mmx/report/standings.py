"""Sums a sweep's trials up: a leaderboard over points, and the best of each strategy as a curve.

The best is picked by the objective on the validation split; what is shown of it is from the test split.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, pstdev, stdev

from mmx.config import SearchSpec
from mmx.contracts import Tracker, TrialRecord

CURVE = "robustness/"
PRUNED = "pruned"
"""How the reason of a pruned trial begins."""
ANY = "_missing_any"


def selected(record: TrialRecord, figure: str) -> float:
    """Give the value that selection goes by: a summary's twin on the validation split, never the test's."""
    return float(record.metrics.get(on_validation(figure), float("nan")))


def on_validation(figure: str) -> str:
    """Name a summary's twin on the validation split; costs have none and need none."""
    return figure.replace("summary/", "selection/", 1)


def why_pruned(records: Iterable[TrialRecord]) -> str:
    """Give the reason where one of a point's trials was pruned; empty: none was."""
    return next((r.reason for r in records if r.reason.startswith(PRUNED)), "")


@dataclass(frozen=True)
class Standing:
    """One point of a sweep, over its seeds."""

    point: str
    params: Mapping[str, str]
    records: Sequence[TrialRecord] = field(default_factory=list)

    @property
    def pruned(self) -> str:
        """Why it was pruned; empty: it was not."""
        return why_pruned(self.records)

    @property
    def seeds(self) -> int:
        """Number of seeds that are done."""
        return len(self.records)

    def values(self, figure: str) -> list[float]:
        """Give a figure of each seed that has it."""
        return [r.metrics[figure] for r in self.records if figure in r.metrics]

    def mean(self, figure: str) -> float:
        """Give a figure's mean over the seeds (NaN where none has it)."""
        return mean(self.values(figure) or [float("nan")])

    def spread(self, figure: str) -> float:
        """Give a figure's sample standard deviation over the seeds (0 for one seed)."""
        found = self.values(figure)
        return stdev(found) if len(found) > 1 else pstdev(found or [0.0])

    def told(self, figure: str) -> str:
        """Write a figure for a reader: costs as they are, scores with their spread where seeds tell one."""
        value = self.mean(figure)
        if figure.startswith("cost/"):
            return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
        return f"{value:.3f} ± {self.spread(figure):.3f}" if self.seeds > 1 else f"{value:.3f}"


def standings(records: Iterable[TrialRecord], objective: Mapping[str, str]) -> list[Standing]:
    """Rank the points that have a finished seed, best first by the first objective on validation.

    Pruned ones come after all others, whatever they had reached.
    """
    points: dict[str, list[TrialRecord]] = {}
    for record in sorted(records, key=lambda r: r.seed):
        if record.state == "done":
            points.setdefault(record.point, []).append(record)
    found = [Standing(p, {k: v for k, v in r[0].params.items() if k != "seed"}, r) for p, r in points.items()]
    figure, direction = next(iter(objective.items()))

    def key(standing: Standing) -> float:
        value = mean(selected(r, figure) for r in standing.records)
        return -value if direction == "maximize" else value

    return sorted(found, key=lambda s: (bool(s.pruned), key(s) != key(s), key(s)))  # NaN last


def axes_of(search: SearchSpec, found: Sequence[Standing]) -> list[str]:
    """Name the parameters that a sweep varies, as trials log them.

    An axis over a whole component (or over all encoders) stands for every parameter of it that differs.
    """
    logged = sorted({name for s in found for name in s.params})
    names = ["method"] if search.methods else []
    for path in (*search.axes, *search.tune):
        name = path.removesuffix(".name").replace("encoders", "encoder", 1)
        if path.startswith("training.phases."):  # a phase is logged in one line
            name = ".".join(path.split(".")[:3])
        whole = (
            [n for n in logged if n.startswith(f"{name}.")]
            if name == path.replace("encoders", "encoder", 1)
            else []
        )
        names += [name] if name in logged or not logged else []
        names += [n for n in whole if len({s.params.get(n, "none") for s in found}) > 1]
    return list(dict.fromkeys(names)) or ["strategy"]


def figures_of(found: Sequence[Standing]) -> list[str]:
    """List the single figures that a leaderboard shows."""
    names = sorted({name for s in found for r in s.records for name in r.metrics})
    return [n for n in names if n.startswith(("summary/", "selection/", "cost/", "contribution/"))]


def write_leaderboard(path: Path, found: Sequence[Standing], axes: Sequence[str]) -> None:
    """Write a row a point: what varies, seeds, mean and spread of each figure."""
    figures = figures_of(found)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        columns = [name for f in figures for name in (f, f"{f} (sd)")]
        writer.writerow(["rank", "point", *axes, "seeds", *columns, "pruned"])
        for place, s in enumerate(found, start=1):
            values = [v for f in figures for v in (s.mean(f), s.spread(f))]
            own = [s.params.get(a, "none") for a in axes]
            writer.writerow([place, s.point, *own, s.seeds, *values, s.pruned])


def best_by_strategy(found: Sequence[Standing]) -> dict[str, Standing]:
    """Give the best point of each strategy; of each method where the sweep names methods."""
    best: dict[str, Standing] = {}
    for standing in found:
        if standing.pruned:
            continue
        best.setdefault(standing.params.get("method", standing.params["strategy"]), standing)
    return best


def curve(tracker: Tracker, standing: Standing, score: str, target: str = "any") -> dict[int, list[float]]:
    """Give a robustness curve: percent missing to the seeds' scores."""
    points: dict[int, list[float]] = {}
    for record in standing.records:
        for percent, value in tracker.history(record.run_id, f"{CURVE}{score}_missing_{target}").items():
            points.setdefault(percent, []).append(value)
    return dict(sorted(points.items()))


def scores_of(found: Sequence[Standing]) -> list[str]:
    """List the scores that have a robustness curve."""
    names = {name for s in found for r in s.records for name in r.metrics}
    return sorted(
        n.removeprefix(CURVE).removesuffix(ANY) for n in names if n.startswith(CURVE) and n.endswith(ANY)
    )


def parent_curves(tracker: Tracker, found: Sequence[Standing]) -> dict[str, dict[int, float]]:
    """Give the parent run's curves: the best of each strategy, mean over seeds."""
    curves = {}
    for strategy, standing in best_by_strategy(found).items():
        for score in scores_of(found):
            points = curve(tracker, standing, score)
            curves[f"best_by_strategy/{strategy}_{score}"] = {p: mean(v) for p, v in points.items()}
    return curves
