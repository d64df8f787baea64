"""Optuna inside the cells: what to try next where something is tuned, and a record of every point.

mmx owns the grid; a study never enumerates. Sweeps that tune have one study a cell, so that every cell has
the same budget and its sampler learns from its own trials alone; others have one study that lists the points.
"""

import logging
import os
import socket
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

optuna.logging.set_verbosity(optuna.logging.WARNING)
logging.getLogger("alembic").setLevel(logging.WARNING)
WORKER = "mmx.worker"
POINT = "mmx.point"


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
        self.directions: list[Any] = list(objective.values())
        self.storage = _open(address)

    def _study(self, name: str, sampler: optuna.samplers.BaseSampler | None = None) -> optuna.Study:
        study = optuna.create_study(
            study_name=name,
            storage=self.storage,
            directions=self.directions,
            sampler=sampler,
            load_if_exists=True,
        )
        stored = [d.name.lower() for d in study.directions]
        if stored != self.directions:
            raise InputError(
                f"study '{name}' was begun with directions {stored}, now search.objective says "
                f"{self.directions}; give the sweep another name"
            )
        return study

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

    def completed(self) -> list[FrozenTrial]:
        """List the trials that have a value."""
        return self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))

    def ask(self, tune: Mapping[str, Mapping[str, Any]]) -> Proposal:
        """Propose values for the tuned parameters."""
        trial = self.study.ask({path: distribution(t) for path, t in tune.items()})
        trial.set_user_attr(WORKER, f"{socket.gethostname()}:{os.getpid()}")
        return Proposal(trial.number, dict(trial.params), trial)

    def tell(self, proposal: Proposal, point: str, values: Sequence[float] | None) -> None:
        """Report the objective's values; None where the trial failed."""
        proposal.handle.set_user_attr(POINT, point)
        state = TrialState.FAIL if values is None else None
        self.study.tell(proposal.handle, values, state=state)


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
    host, _, pid = trial.user_attrs.get(WORKER, "").rpartition(":")
    if host and host != socket.gethostname():
        return False
    if not pid or int(pid) == os.getpid():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _open(address: str) -> BaseStorage:
    try:
        return optuna.storages.get_storage(address)
    except Exception as error:
        reason = str(error).replace(address, "…").splitlines()[0]
        raise MmxError(
            f"store.study cannot be opened ({reason}); check the address and its folder"
        ) from error
