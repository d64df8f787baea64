"""What a report is made from: the trials of a sweep, ranked, and what is stored of them."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from mmx.config import SearchSpec
from mmx.contracts import Task, Tracker, TrialRecord
from mmx.errors import InputError, did_you_mean
from mmx.registry import Registry
from mmx.report.standings import CURVE, Standing, axes_of, scores_of, standings
from mmx.runs import StoredRun
from mmx.trial import Bench

PARAMETERS = "cost/trainable_params"
SECONDS = "cost/train_seconds"


@dataclass
class Results:
    """The trials of a sweep, those of the best points first, and access to what they left."""

    name: str
    search: SearchSpec
    objective: Mapping[str, str]
    tracker: Tracker
    registry: Registry
    task: Task
    records: Sequence[TrialRecord]
    """All trials that count, whatever their state."""
    most_params: int | None = None
    """Points that train more parameters are left out."""
    _curves: dict[tuple[str, str], Mapping[int, float]] = field(default_factory=dict)
    _runs: dict[str, StoredRun] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ranked = standings(self.records, self.objective)
        self.left_out = [s for s in ranked if self.most_params and s.mean(PARAMETERS) > self.most_params]
        self.found = [s for s in ranked if s not in self.left_out]

    def restricted(self, most_params: int) -> "Results":
        """Leave out the points that train more parameters (InputError where none is left)."""
        few = replace(self, most_params=most_params)
        if self.found and not few.found:
            least = min(s.mean(PARAMETERS) for s in self.found)
            raise InputError(
                f"--max-trainable-params {most_params}: no point of '{self.name}' trains so few; the "
                f"smallest trains {least:,.0f}"
            )
        return few

    @property
    def chief(self) -> str:
        """Name the axis that is compared first: the method, the strategy, or else the first that varies."""
        if any("method" in s.params for s in self.found):
            return "method"
        varied = [a for a in ("strategy", *self._axes()) if len(self.best(a)) > 1]
        return varied[0] if varied else "strategy"

    def _axes(self) -> list[str]:
        return axes_of(replace(self.search, tune={}), self.found)

    @property
    def axes(self) -> list[str]:
        """Name the axes as trials log them, the chief one first."""
        return list(dict.fromkeys([self.chief, *self._axes()]))

    def best(self, axis: str) -> dict[str, Standing]:
        """Give the best point of each value of an axis, picked on validation.

        Numbers are in their order, other values by rank; `none` is last.
        """
        best: dict[str, Standing] = {}
        for s in self.found:
            if not s.pruned:
                best.setdefault(s.params.get(axis, "none"), s)
        values = list(best)
        if all(_is_number(v) for v in values if v != "none"):
            values.sort(key=lambda v: float(v) if v != "none" else float("inf"))
        return {v: best[v] for v in sorted(values, key=lambda v: v == "none")}

    @property
    def scores(self) -> list[str]:
        """Name the scores that have curves, the task's primary one first."""
        known = scores_of(self.found)
        return [s.name for s in self.task.scores if s.name in known] or known

    @property
    def targets(self) -> list[str]:
        """Name what goes missing in the curves, `any` first."""
        names = {n for s in self.found for r in s.records for n in r.metrics if n.startswith(CURVE)}
        return sorted({n.rpartition("_missing_")[2] for n in names}, key=lambda t: (t != "any", t))

    def score(self, asked: str | None = None) -> str:
        """Name the score that a report is about: what is asked for, the objective's, or the primary one."""
        if asked and asked not in self.scores:
            raise InputError(f"--score '{asked}' has no curve here.{did_you_mean(asked, self.scores)}")
        own = [f.removeprefix("summary/robust_") for f in self.objective]
        known = [asked] if asked else [s for s in own if s in self.scores]
        return str([*known, *self.scores, ""][0])

    def target(self, asked: str) -> str:
        """Check a target (InputError where no trial was evaluated on it)."""
        if self.targets and asked not in self.targets:
            raise InputError(f"--target '{asked}' was not evaluated.{did_you_mean(asked, self.targets)}")
        return asked

    def higher_is_better(self, score: str) -> bool:
        """Tell a score's direction; one that the task does not have is taken for a merit."""
        return all(s.higher_is_better for s in self.task.scores if s.name == score)

    def curve(self, record: TrialRecord, score: str, target: str) -> Mapping[int, float]:
        """Give a trial's robustness curve by percent (asked for once)."""
        name = f"{CURVE}{score}_missing_{target}"
        key = (record.run_id, name)
        if key not in self._curves:
            known = self.tracker.history(record.run_id, name) if name in record.metrics else {}
            self._curves[key] = dict(sorted(known.items()))
        return self._curves[key]

    def run(self, record: TrialRecord) -> StoredRun:
        """Open what a trial left (once)."""
        return self._runs.setdefault(record.run_id, StoredRun(self.tracker, self.name, record))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def task_of(run: StoredRun, registry: Registry) -> Task:
    """Find what a trial predicted: as its file says, or as its dataset does where the file does not."""
    task = None
    with suppress(InputError):
        task = run.stored[1]
    return task if task is not None else Bench(registry).dataset(run.spec.dataset).task


def default_objective(task: Task) -> dict[str, str]:
    """Give the objective of a sweep that names none: the robust primary score."""
    score = task.scores[0]
    return {f"summary/robust_{score.name}": "maximize" if score.higher_is_better else "minimize"}
