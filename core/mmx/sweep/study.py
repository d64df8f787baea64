"""The studies of a sweep: one that lists every (point, seed), and one for each cell that is tuned.

mmx owns the grid; a study never enumerates. Every cell has the same budget, and its sampler learns from its
own trials alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from mmx.config import SweepSpec
from mmx.errors import InputError
from mmx.sweep.claims import END, FAILED, HOLDING, POINT, Claim, Claims, Heart, Span
from mmx.sweep.pruning import looks_at, pruner_of
from mmx.sweep.storage import open_storage, patiently
from mmx.sweep.tuning import budget, combinations, distribution, sampler_of, suggest

OBJECTIVE = "mmx.objective"
CALL = "mmx.call"
"""The study's attribute that holds what the latest `mmx run` is about: first number, and those before."""
REDRAWS = 20
"""Draws of values that are new; samplers repeat themselves where little is left to choose."""


@dataclass
class Proposal:
    """Values for a cell's tuned parameters, claimed by this process."""

    values: Mapping[str, Any]
    claim: Claim


class Search:
    """The studies of a sweep."""

    def __init__(self, sweep: SweepSpec, address: str, objective: Mapping[str, str], task: str = "") -> None:
        self.sweep = sweep
        self.task = task
        self.figures = list(objective)
        self.directions: list[Any] = list(objective.values())
        self.storage = open_storage(address, sweep.run.lease)
        self.heart = Heart(self.storage, sweep.run.lease)
        self.calls: dict[str, Span] = {}
        """What this call is about, by study; empty: what the latest call is about."""
        self.check_stored()

    def study(self, name: str, sampler: optuna.samplers.BaseSampler | None = None) -> optuna.Study:
        """Open or make a study."""
        study = patiently(
            lambda: optuna.create_study(
                study_name=name,
                storage=self.storage,
                directions=self.directions,
                sampler=sampler or optuna.samplers.RandomSampler(seed=0),
                pruner=pruner_of(self.sweep.search.pruner),
                load_if_exists=True,
            )
        )
        if OBJECTIVE not in study.user_attrs:
            study.set_user_attr(OBJECTIVE, self.figures)
        return study

    def names(self) -> list[str]:
        """List the sweep's studies that exist, the main one first."""
        own = f"{self.sweep.name}/"
        found = [s.study_name for s in patiently(self.storage.get_all_studies)]
        return sorted(n for n in found if n == self.sweep.name or n.startswith(own))

    def check_stored(self) -> None:
        """Refuse an objective that is not the one that the sweep's studies were begun with.

        Optuna keeps the stored direction without saying so, and knows nothing of figures.
        """
        own = set(self.names())
        for stored in patiently(self.storage.get_all_studies):
            if stored.study_name not in own:
                continue
            directions = [d.name.lower() for d in stored.directions]
            figures = stored.user_attrs.get(OBJECTIVE, self.figures)
            if (directions, figures) != (self.directions, self.figures):
                was = dict(zip(figures, directions, strict=False))
                now = dict(zip(self.figures, self.directions, strict=True))
                raise InputError(
                    f"search.objective: the sweep '{self.sweep.name}' was begun with {was}, the file now "
                    f"says {now}; give the sweep another name"
                )

    def claims(self, name: str = "") -> Claims:
        """Open the claims of the main study, or of another."""
        study = self.study(name or self.sweep.name)
        first, before = study.user_attrs.get(CALL, (0, ()))
        latest = Span(first, frozenset(before))
        call = self.calls.get(study.study_name, Span()) if self.calls else latest
        return Claims(study, self.storage, self.heart, self.sweep.run.lease, self.task, call)

    def begin_call(self) -> None:
        """Note where the claims of this call of `mmx run` begin: what failed before is tried again."""
        for name in {self.sweep.name, *self.names()}:
            study = self.study(name)
            trials = patiently(partial(study.get_trials, deepcopy=False))
            running = [t.number for t in trials if t.state == TrialState.RUNNING]
            study.set_user_attr(CALL, [len(trials), running])
            self.calls[name] = Span(len(trials), frozenset(running))

    def cell(self, cell: str, tune: Mapping[str, Mapping[str, Any]]) -> "CellSearch":
        """Open the study of one cell."""
        return CellSearch(self, cell, tune)

    def forget(self) -> None:
        """Delete the sweep's studies."""
        for name in self.names():
            optuna.delete_study(study_name=name, storage=self.storage)

    @property
    def looks_at(self) -> str:
        """Say what the pruner compares: nothing, epochs or seeds."""
        return looks_at(self.sweep.search.pruner)


class CellSearch:
    """Proposals inside one cell: as many different ones as the budget says, over all workers."""

    def __init__(self, search: Search, cell: str, tune: Mapping[str, Mapping[str, Any]]) -> None:
        self.search = search
        self.cell = cell
        self.tune = tune
        self.claims = search.claims(f"{search.sweep.name}/{cell}")
        self.wanted = budget(tune, search.sweep.search.trials_per_cell)
        space = combinations(tune)
        self.space = space if space is not None and self.wanted == len(space) else None
        self.distributions = {path: distribution(t) for path, t in tune.items()}

    def completed(self) -> list[dict[str, Any]]:
        """List the different values that have been tried to the end, pruned ones left out."""
        found: list[dict[str, Any]] = []
        for trial in self.claims.refresh():
            if trial.state == TrialState.COMPLETE and trial.params not in found:
                found.append(dict(trial.params))
        return found

    def propose(self) -> Proposal | None:
        """Claim the next values to try; None where the budget is spent or in others' hands."""
        for redraw in range(REDRAWS):
            trials = self.claims.refresh()
            settled = _different([t for t in trials if t.state in HOLDING] + self._failed(trials))
            if len(settled) >= self.wanted:
                return None
            proposal = self._draw(len(settled) + redraw, self._to_retry(trials, settled))
            if self._is_new(proposal):
                return proposal
            proposal.claim.release("withdrawn")
        return None

    @property
    def is_busy(self) -> bool:
        """Tell whether other workers hold some of the budget."""
        return any(t.state == TrialState.RUNNING for t in self.claims.refresh())

    def _failed(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """List what has failed by its own fault in this call: it is tried again in the next."""
        return [t for t in trials if t in self.claims.call and t.user_attrs.get(END) == FAILED]

    def _to_retry(
        self, trials: Sequence[FrozenTrial], settled: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any] | None:
        """Give values that failed before this call, or whose worker is gone."""
        given_up = [
            dict(t.params)
            for t in trials
            if t.state == TrialState.FAIL and t.user_attrs.get(END) != "withdrawn" and t.params
        ]
        wanted = [*given_up, *(self.space or [])]
        return next((v for v in wanted if v not in settled and v.keys() == self.tune.keys()), None)

    def _draw(self, count: int, values: Mapping[str, Any] | None) -> Proposal:
        facts = {"mmx.cell": self.cell}
        if values is not None:
            claim = self.claims.make(self.cell, facts, values, self.distributions)
            return Proposal(dict(values), claim)
        claim = self.claims.make(self.cell, facts)
        sampler = sampler_of(self.search.sweep.search.sampler, self.cell, count)
        study = self.search.study(self.claims.study.study_name, sampler)
        return Proposal(patiently(lambda: suggest(optuna.Trial(study, claim.id), self.tune)), claim)

    def _is_new(self, proposal: Proposal) -> bool:
        """Tell whether no earlier claim has the same values, and the budget has room for this one."""
        trials = self.claims.refresh()
        earlier = [t for t in trials if t.state in HOLDING and t.number < proposal.claim.number]
        known = _different(earlier + self._failed(trials))
        return proposal.values not in known and len(known) < self.wanted

    def tell(self, proposal: Proposal, point: str, values: Sequence[float] | None, end: str) -> None:
        """Report the objective's values; without them, how it ended: failed, stopped or pruned."""
        proposal.claim.note({POINT: point})
        if values is None and end != "pruned":
            proposal.claim.release(end)
            return
        proposal.claim.commit(values or [], pruned=end == "pruned")


def _different(trials: Sequence[FrozenTrial]) -> list[dict[str, Any]]:
    """List different values; those still being drawn are no other's equal."""
    found: list[dict[str, Any]] = []
    for trial in trials:
        if not trial.params or trial.params not in found:
            found.append(dict(trial.params))
    return found
