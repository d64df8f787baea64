"""Optuna inside the cells: what to try next where something is tuned, and a record of every point.

mmx owns the grid; a study never enumerates. Sweeps that tune have one study a cell, so that every cell has
the same budget and its sampler learns from its own trials alone; others have one study that lists the points.
"""

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from mmx.config import ComponentSpec, SweepSpec
from mmx.errors import InputError, MmxError
from mmx.protocols import derive_seed
from mmx.worker import is_gone, this_worker

optuna.logging.set_verbosity(optuna.logging.WARNING)
logging.getLogger("alembic").setLevel(logging.WARNING)
WORKER = "mmx.worker"
POINT = "mmx.point"
OBJECTIVE = "mmx.objective"
LARGEST_GRID = 200
"""Up to so many combinations a tuned space is enumerated: samplers would repeat themselves in it."""


@dataclass(frozen=True)
class Proposal:
    """A trial that Optuna proposes for a cell."""

    number: int
    values: Mapping[str, Any]
    """Tuned parameter to value."""
    handle: Trial


class Search:
    """The studies of a sweep."""

    def __init__(self, sweep: SweepSpec, address: str, objective: Mapping[str, str]) -> None:
        self.sweep = sweep
        self.figures = list(objective)
        self.directions: list[Any] = list(objective.values())
        self.storage = _open(address)
        self._check_stored()

    def _study(self, name: str, sampler: optuna.samplers.BaseSampler | None = None) -> optuna.Study:
        study = optuna.create_study(
            study_name=name,
            storage=self.storage,
            directions=self.directions,
            sampler=sampler,
            load_if_exists=True,
        )
        study.set_user_attr(OBJECTIVE, self.figures)
        return study

    def _check_stored(self) -> None:
        """Refuse an objective that is not the one that the sweep's studies were begun with.

        Optuna keeps the stored direction without saying so, and knows nothing of figures.
        """
        for stored in optuna.get_all_study_summaries(storage=self.storage):
            if stored.study_name == self.sweep.name or stored.study_name.startswith(f"{self.sweep.name}/"):
                directions = [d.name.lower() for d in stored.directions]
                figures = stored.user_attrs.get(OBJECTIVE, self.figures)
                if (directions, figures) != (self.directions, self.figures):
                    was = dict(zip(figures, directions, strict=False))
                    now = dict(zip(self.figures, self.directions, strict=True))
                    raise InputError(
                        f"search.objective: the sweep '{self.sweep.name}' was begun with {was}, the file now "
                        f"says {now}; give the sweep another name"
                    )

    def cell(self, cell: str) -> "CellSearch":
        """Open the study of one cell."""
        name = f"{self.sweep.name}/{cell}"
        count = len(self._study(name).get_trials(deepcopy=False))
        return CellSearch(self._study(name, _sampler(self.sweep.search.sampler, cell, count)))

    def forget(self) -> None:
        """Delete the sweep's studies."""
        for name in optuna.get_all_study_names(self.storage):
            if name == self.sweep.name or name.startswith(f"{self.sweep.name}/"):
                optuna.delete_study(study_name=name, storage=self.storage)

    def note(self, point: str, facts: Mapping[str, Any], values: Sequence[float]) -> None:
        """List a point that was not tuned, once."""
        study = self._study(self.sweep.name)
        if any(t.user_attrs.get(POINT) == point for t in study.get_trials(deepcopy=False)):
            return
        study.add_trial(
            optuna.trial.create_trial(values=list(values), user_attrs={POINT: point, **facts}, params={})
        )


class CellSearch:
    """Proposals inside one cell."""

    def __init__(self, study: optuna.Study) -> None:
        self.study = study
        self._requeue()

    def _requeue(self) -> None:
        """Try again, with the same values, what a dead process left running and what has failed."""
        trials = self.study.get_trials(deepcopy=False)
        kept = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.WAITING)]
        done = [t.params or t.system_attrs.get("fixed_params") for t in kept]
        for trial in trials:
            if trial.state == TrialState.RUNNING and _is_mine_or_gone(trial):
                self.study.tell(trial.number, state=TrialState.FAIL)
            elif trial.state != TrialState.FAIL:
                continue
            if trial.params and trial.params not in done:
                self.study.enqueue_trial(trial.params)
                done.append(trial.params)

    def completed(self) -> list[dict[str, Any]]:
        """List the different tuned values that have been tried to the end."""
        done: list[dict[str, Any]] = []
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            if trial.params not in done:
                done.append(dict(trial.params))
        return done

    def enumerate(self, tune: Mapping[str, Mapping[str, Any]]) -> None:
        """Queue every combination of a small finite space that was not tried yet."""
        space = combinations(tune)
        trials = self.study.get_trials(deepcopy=False)
        known = [t.params or t.system_attrs.get("fixed_params") for t in trials]
        for values in space or []:
            if values not in known:
                self.study.enqueue_trial(values)

    def ask(self, tune: Mapping[str, Mapping[str, Any]]) -> Proposal:
        """Propose values for the tuned parameters."""
        trial = self.study.ask({path: distribution(t) for path, t in tune.items()})
        trial.set_user_attr(WORKER, this_worker())
        return Proposal(trial.number, dict(trial.params), trial)

    def tell(self, proposal: Proposal, point: str, values: Sequence[float] | None) -> None:
        """Report the objective's values; None where the trial failed."""
        proposal.handle.set_user_attr(POINT, point)
        state = TrialState.FAIL if values is None else None
        self.study.tell(proposal.handle, values, state=state)


def combinations(tune: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    """List a small finite space; None where it is continuous or large."""
    values = []
    for tuned in tune.values():
        chosen = distribution(tuned)
        if isinstance(chosen, CategoricalDistribution):
            values.append(list(chosen.choices))
        elif isinstance(chosen, IntDistribution) and (chosen.high - chosen.low) / chosen.step < LARGEST_GRID:
            values.append(list(range(chosen.low, chosen.high + 1, chosen.step)))
        else:
            return None
    if math.prod(len(v) for v in values) > LARGEST_GRID:
        return None
    return [dict(zip(tune, combination, strict=True)) for combination in product(*values)]


def budget(tune: Mapping[str, Mapping[str, Any]], trials: int) -> int:
    """Give how many different trials a cell can have, at most `trials`."""
    space = combinations(tune)
    return trials if space is None else min(trials, len(space))


def distribution(tuned: Mapping[str, Any]) -> BaseDistribution:
    """Turn {low, high, …} or {choices} into Optuna's form; whole numbers where both ends are."""
    if "choices" in tuned:
        return CategoricalDistribution(tuned["choices"])
    low, high, log = tuned["low"], tuned["high"], bool(tuned.get("log", False))
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log, step=int(tuned.get("step", 1)))
    return FloatDistribution(float(low), float(high), log=log, step=tuned.get("step"))


def _sampler(spec: ComponentSpec, cell: str, count: int) -> optuna.samplers.BaseSampler:
    """Build the sampler; its seed moves on with the study, or a restart would repeat suggestions."""
    seed = derive_seed(spec.options.get("seed", 0), cell, count) % 2**32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if spec.name == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        if spec.name == "qmc":
            return optuna.samplers.QMCSampler(seed=seed)
        if spec.name == "cmaes":
            return optuna.samplers.CmaEsSampler(seed=seed)
        return optuna.samplers.TPESampler(seed=seed)


def _is_mine_or_gone(trial: FrozenTrial) -> bool:
    """Tell whether a running trial's process is this one (which has just started) or no longer lives."""
    worker = trial.user_attrs.get(WORKER, "")
    return worker in ("", this_worker()) or is_gone(worker)


def _open(address: str) -> BaseStorage:
    try:
        return optuna.storages.get_storage(address)
    except Exception as error:
        reason = str(error).replace(address, "…").splitlines()[0]
        raise MmxError(
            f"store.study cannot be opened ({reason}); check the address and its folder"
        ) from error
