"""Pruners: Optuna stops a trial early whose figures look worse than those of earlier trials.

What is told to a pruner, and how steps are counted:

- A pruner of *epochs* sees `training.monitor` (that of the last phase) on validation, on the first seed of a
  point alone. A step is an epoch, which goes on counting over phases. Later seeds are not told: after the
  last epoch of one seed the next one starts low again, which `patient` and `threshold` would take for a
  decline, and rungs of successive halving would fall anywhere. A point that is pruned runs no further seed,
  and one that passes runs all, so that no point's mean is over the seeds that happened to survive.
- A pruner of *seeds* (`wilcoxon`) sees the objective's value on validation after each seed of a tuned point.
  A step is the seed itself, so that the same seeds are paired whatever their order.

A grid's trials are compared with all others of the sweep, tuned ones with those of their own cell.
"""

import warnings
from collections.abc import Mapping
from typing import Any, Literal

import optuna
from optuna import pruners

from mmx.config import ComponentSpec, SearchSpec, SweepSpec, component
from mmx.errors import Fault, did_you_mean
from mmx.registry.signature import bind, options
from mmx.report.standings import PRUNED
from mmx.sweep.storage import patiently

PRUNERS: Mapping[str, type[pruners.BasePruner]] = {
    "none": pruners.NopPruner,
    "median": pruners.MedianPruner,
    "percentile": pruners.PercentilePruner,
    "successive_halving": pruners.SuccessiveHalvingPruner,
    "hyperband": pruners.HyperbandPruner,
    "threshold": pruners.ThresholdPruner,
    "patient": pruners.PatientPruner,
    "wilcoxon": pruners.WilcoxonPruner,
}
INNER = "wrapped_pruner"
INNER_PRUNERS = ("none", "median", "percentile")
"""What `patient` may wrap: those that do not depend on being asked at every step."""
KEY = "search.pruner"


def pruner_of(spec: ComponentSpec) -> pruners.BasePruner:
    """Build the pruner of a spec that `check_pruner` found no fault in, without its memory of other trials.

    `patient` wraps `median` unless `wrapped_pruner` says otherwise.
    """
    given = dict(spec.options)
    if spec.name == "patient":
        inner = _inner(given)
        given[INNER] = None if inner.name == "none" else pruner_of(inner)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return PRUNERS[spec.name](**given)


def looks_at(spec: ComponentSpec) -> Literal["nothing", "epochs", "seeds"]:
    """Tell what a pruner must be told."""
    if spec.name == "none":
        return "nothing"
    return "seeds" if spec.name == "wilcoxon" else "epochs"


def _inner(given: Mapping[str, Any]) -> ComponentSpec:
    found: ComponentSpec = component(given.get(INNER, "median"), f"{KEY}.{INNER}", [])
    return found


def check_pruner(sweep: SweepSpec, faults: list[Fault]) -> None:
    """Refuse what Optuna would refuse in the middle of a sweep, and what could never prune."""
    search, own = sweep.search, list[Fault]()
    _check_options(search.pruner, KEY, own)
    seen = looks_at(search.pruner)
    if not own and seen != "nothing":
        _check_objectives(search, own)
        if seen == "epochs":
            _check_monitor(search, own)
        else:
            _check_seeds(search, own)
    faults += own


def _check_options(spec: ComponentSpec, key: str, faults: list[Fault]) -> None:
    """Check the name, and the options against the signature of Optuna's class."""
    if spec.name not in PRUNERS:
        faults.append(Fault(f"{key}.name", f"'{spec.name}' is no pruner.{did_you_mean(spec.name, PRUNERS)}"))
        return
    cls, label, before = PRUNERS[spec.name], f"pruner '{spec.name}'", len(faults)
    known = options(cls)
    for name in spec.options:
        if name not in known:
            hint = did_you_mean(name, known) or " It takes none."
            faults.append(Fault(f"{key}.{name}", f"{label} has no option '{name}'.{hint}"))
    given = {name: value for name, value in spec.options.items() if name in known}
    if spec.name == "patient":
        _check_inner(given, f"{key}.{INNER}", faults)
        given[INNER] = None
    faults += bind(cls, given, key, label)[1]
    if len(faults) == before:
        _check_values(spec, key, faults)


def _check_inner(given: Mapping[str, Any], key: str, faults: list[Fault]) -> None:
    """Check what `patient` wraps."""
    inner = component(given.get(INNER, "median"), key, faults)
    if not isinstance(inner, ComponentSpec):
        return
    if inner.name not in INNER_PRUNERS:
        faults.append(Fault(key, f"'{inner.name}' is none of {', '.join(INNER_PRUNERS)}"))
    else:
        _check_options(inner, key, faults)


def _check_values(spec: ComponentSpec, key: str, faults: list[Fault]) -> None:
    """Let Optuna's constructors look at the values; Hyperband's own looks at most of them only in a trial."""
    given = spec.options
    try:
        pruner_of(spec)
        if spec.name == "hyperband":
            rungs = ("min_resource", "reduction_factor", "bootstrap_count")
            pruners.SuccessiveHalvingPruner(
                **{"min_resource": 1} | {n: given[n] for n in rungs if n in given}
            )
    except (TypeError, ValueError) as error:
        faults.append(Fault(key, f"pruner '{spec.name}': {error}"))
        return
    least, most = given.get("min_resource", 1), given.get("max_resource", "auto")
    if spec.name == "hyperband" and isinstance(most, int) and most < least:
        faults.append(Fault(f"{key}.max_resource", f"{most} epochs are fewer than min_resource, {least}"))


def _check_objectives(search: SearchSpec, faults: list[Fault]) -> None:
    if len(search.objective) > 1:
        told = " and ".join(search.objective)
        faults.append(Fault(KEY, f"Optuna prunes by one objective, not by {told}; write none"))
    for figure in search.objective:
        if figure.startswith("cost/"):
            message = f"validation figures say nothing about the objective '{figure}'; write none"
            faults.append(Fault(KEY, message))


def _check_monitor(search: SearchSpec, faults: list[Fault]) -> None:
    """Refuse that points which are compared watch different figures."""
    varied = [path for path in (*search.axes, *search.tune) if _is_monitor(path)]
    for label, settings in search.methods.items():
        for path, value in settings.items() if isinstance(settings, Mapping) else ():
            last = value[-1] if path == "training.phases" and isinstance(value, list) and value else {}
            if _is_monitor(path) or (isinstance(last, Mapping) and "monitor" in last):
                varied.append(f"search.methods.{label}.{path}")
    for path in varied:
        message = f"'{path}' lets points watch different figures, which cannot be compared; write none"
        faults.append(Fault(KEY, message))


def _is_monitor(path: str) -> bool:
    return path.startswith("training.") and path.endswith(".monitor")


def _check_seeds(search: SearchSpec, faults: list[Fault]) -> None:
    """Refuse seeds by which Wilcoxon's test could never spare one."""
    if not search.tune:
        faults.append(Fault(KEY, "'wilcoxon' compares the seeds of tuned points; add search.tune"))
        return
    if any(seed < 0 for seed in search.seeds):
        faults.append(Fault("search.seeds", f"{list(search.seeds)}: 'wilcoxon' takes seeds from 0"))
    threshold = search.pruner.options.get("p_threshold", 0.1)
    if threshold == 0:
        faults.append(Fault(f"{KEY}.p_threshold", "0: no p is below it; write 0.1, say"))
        return
    looked = seeds_looked_at(threshold, search.pruner.options.get("n_startup_steps", 2))
    if len(search.seeds) <= looked:
        message = (
            f"'wilcoxon' can stop no point before its last seed: the smallest p after n seeds is 0.5^n, "
            f"below p_threshold {threshold} after {looked} seeds at the earliest (n_startup_steps counts, "
            f"too), and one must be left to spare; search.seeds has {len(search.seeds)}, write "
            f"{looked + 1} or more"
        )
        faults.append(Fault(KEY, message))


def seeds_looked_at(threshold: float, startup: int) -> int:
    """Give after how many seeds the one-sided signed-rank test can first fall below a threshold above 0.

    It is smallest, 0.5^n, where the point is worse on each of n seeds.
    """
    seeds = max(2, startup)
    while 0.5**seeds >= threshold:
        seeds += 1
    return seeds


class PruningCallback:
    """Shows one trial's figures to its study's pruner as they come."""

    def __init__(
        self,
        trial: optuna.Trial,
        key: str,
        higher_is_better: bool,
        first_step: int = 0,
        unit: str = "epoch",
    ) -> None:
        """Take a running trial of a study with one objective, and the figure to watch.

        `first_step` is added to what `told` is given. `unit` is the word for a step in the reason.
        """
        self.trial = trial
        self.key = key
        self.first_step = first_step
        self.unit = unit
        self.reason = ""
        """Why to stop; empty: go on."""
        pruner = trial.study.pruner
        self._pruner = next((n for n, cls in PRUNERS.items() if type(pruner) is cls), type(pruner).__name__)
        goes_along = (trial.study.direction == optuna.study.StudyDirection.MAXIMIZE) == higher_is_better
        # Bounds of `threshold` are the figure's own, and it does not ask for the direction.
        self._sign = 1.0 if goes_along or self._pruner == "threshold" else -1.0

    def told(self, step: int, figures: Mapping[str, float]) -> bool:
        """Report one step's figure; tell whether the trial should stop, and note the `reason`.

        A figure that is NaN or not there is reported as NaN: most pruners ignore such a step, and stop a
        trial that has no other. A step that was reported before keeps its value. A trial that another worker
        has ended is let run. StoreError where the store cannot be reached.
        """
        step += self.first_step
        value = float(figures.get(self.key, float("nan")))
        if not self.reason and self._asks(step, self._sign * value):
            self.reason = f"{PRUNED} by {self._pruner} at {self.unit} {step}: {self.key} {value:.4g}"
        return bool(self.reason)

    def _asks(self, step: int, value: float) -> bool:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's and Optuna's, about NaN
            try:
                patiently(lambda: self.trial.report(value, step))
                return bool(patiently(self.trial.should_prune))
            except optuna.exceptions.UpdateFinishedTrialError:
                return False
