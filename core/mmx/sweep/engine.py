"""A worker: goes through a sweep's cells and runs what nobody has run or runs; retries what failed."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from optuna.trial import FrozenTrial, TrialState

from mmx.config import TrialSpec, apply
from mmx.contracts import Tracker, TrialRecord
from mmx.errors import ConfigError, Stopped
from mmx.report.standings import PRUNED, on_validation, selected
from mmx.sweep.attempt import Attempt, Ended, Runner, Watcher, worker_record
from mmx.sweep.claims import END, FAILED, FINISHED, GIVEN_UP, POINT, REASON, Claim, Claims
from mmx.sweep.limits import Answer, Key, Stopping
from mmx.sweep.parameters import flat_parameters
from mmx.sweep.plan import Cell, Plan
from mmx.sweep.pruning import PruningCallback
from mmx.sweep.reclaim import reclaim
from mmx.sweep.resolve import Resolver
from mmx.sweep.study import Proposal, Search
from mmx.train import Figures
from mmx.trial import Helpers, monitor_of

POLL = 0.5
"""Seconds between looks at what other workers hold, at least."""
SHARE = 10.0
"""A look that took long is followed by a wait this many times as long: others need the stores."""
Item = tuple[Cell, int | None]
"""A cell and a seed; no seed where a cell is tuned."""


@runtime_checkable
class Asked(Protocol):
    """Who is asked before a trial begins (`Limits`, near or far)."""

    def may_begin(self, key: Key) -> Answer: ...
    def reached(self) -> bool: ...
    def take_back(self) -> None: ...
    def count(self, state: str, run: Any) -> None: ...


class Halt(Exception):  # noqa: N818 no error: the call's limits were reached
    """Ends a worker early."""


@dataclass(frozen=True)
class Known:
    """What was known of a sweep when a call began."""

    done: Mapping[Key, list[float]] = field(default_factory=dict)
    """The objective's figures of finished trials."""
    attempts: Mapping[Key, int] = field(default_factory=dict)
    pruned: frozenset[Key] = frozenset()

    @classmethod
    def of(cls, records: Iterable[TrialRecord], objective: Iterable[str]) -> "Known":
        """Sum records up."""
        figures = list(objective)
        records = list(records)
        done, attempts = {}, {}
        for r in records:
            attempts[r.point, r.seed] = r.attempt
            if r.state == "done":
                done[r.point, r.seed] = [selected(r, figure) for figure in figures]
        pruned = frozenset((r.point, r.seed) for r in records if r.reason.startswith(PRUNED))
        return cls(done, attempts, pruned)


@dataclass
class Engine:
    """Runs a plan's trials in this process, side by side with any number of others."""

    plan: Plan
    tracker: Tracker
    search: Search
    device: torch.device
    watcher: Watcher
    limits: Asked
    stopping: Stopping
    known: Known
    number: int = 0
    """The worker's, among those of this machine."""
    patient: bool = True
    """Whether to wait for what other workers hold, to take over should they die."""
    helpers: Helpers | None = None
    """The other processes that train this worker's trials; ended with it."""

    def __post_init__(self) -> None:
        self.claims: Claims = self.search.claims()
        self.done = dict(self.known.done)
        self.pruned = set(self.known.pruned)
        self.late: set[str] | None = None
        """Claims that have a result, as was seen after this call began."""
        self.pause = POLL
        """Seconds until the next look at what others do."""
        self.keys = logged_keys(self.plan)
        self.runner = Runner(
            self.plan, self.tracker, self.device, self.watcher, self.stopping, self.number, self.helpers
        )

    def run(self) -> None:
        """Go through all items; returns when all is done or the limits are reached."""
        left = items(self.plan)
        # Workers that start together begin at different places, or they would all claim the same.
        place = self.number % max(1, len(left))
        left = left[place:] + left[:place]
        try:
            while left:
                left = [item for item in left if not self.do(item)]
                if not left or not self.patient or self.limits.reached():
                    return
                self._wait()
        except Halt:
            return
        finally:
            if self.helpers is not None:
                self.helpers.close()

    def _wait(self) -> None:
        """Give others time, then end what those of them held that are gone."""
        until = time.monotonic() + self.pause
        while not self.stopping.asked and time.monotonic() < until:
            time.sleep(POLL)
        if self.stopping.asked:
            raise Stopped
        began = time.monotonic()
        for message in reclaim(self.search, self.tracker):
            self.watcher.told(message)
        self.pause = SHARE * (time.monotonic() - began)

    def do(self, item: Item) -> bool:
        """Run an item unless it is settled; False where another worker holds it."""
        cell, seed = item
        if self.stopping.asked:
            raise Stopped
        if seed is None:
            return self._run_cell(cell)
        first = self.plan.sweep.search.seeds[0]
        if self.search.looks_at == "epochs" and seed != first:
            # What the first seed's figures say of a point holds for the others.
            ended = self._settled((cell.spec.point, first))
            if ended is None or ended.state == "pruned":
                return ended is not None
        return self._run_seed(cell, replace(cell.spec, seed=seed), None) is not None

    def _run_cell(self, cell: Cell) -> bool:
        """Ask for proposals until the cell has its budget of different trials.

        What was tried to the end before is looked at first: a seed may have been added since.
        """
        search = self.search.cell(cell.id, cell.raw.tune)
        settled = True
        for tried in search.completed():
            spec = self._tuned_spec(cell, tried)
            for seed in self.plan.sweep.search.seeds:
                settled &= self._run_seed(cell, replace(spec, seed=seed), None) is not None
        held = False
        while not held and (proposal := search.propose()) is not None:
            point, values, end = "", None, "stopped"
            try:
                spec = self._tuned_spec(cell, proposal.values)
                point = spec.point
                values, end = self._run_proposal(cell, spec, proposal)
            finally:
                search.tell(proposal, point, values, end)
            held = end == "stopped"  # one of its seeds, by another worker
        return settled and not held and not search.is_busy

    def _run_proposal(
        self, cell: Cell, spec: TrialSpec, proposal: Proposal
    ) -> tuple[list[float] | None, str]:
        """Run a proposal's seeds; give the objective's means over them, and how it ended."""
        found: list[Ended] = []
        for seed in self.plan.sweep.search.seeds:
            ended = self._run_seed(cell, replace(spec, seed=seed), proposal.claim)
            if ended is None:
                return None, "stopped"
            if ended.state == "pruned":
                return None, "pruned"
            found.append(ended)
        if any(e.state == FAILED for e in found):
            return None, FAILED
        return [sum(values) / len(found) for values in zip(*(e.values for e in found), strict=True)], "done"

    def _tuned_spec(self, cell: Cell, values: Mapping[str, Any]) -> TrialSpec:
        faults: list[Any] = []
        resolver = Resolver(self.plan.sweep, self.plan.registry, faults)
        spec = resolver.resolve(apply(cell.raw.trial, values), {**cell.raw.assigned, **values}, {})
        if spec is None:
            raise ConfigError(self.plan.sweep.source, faults)
        return spec

    def _run_seed(self, cell: Cell, spec: TrialSpec, proposal: Claim | None) -> Ended | None:
        """Run one seed of a point unless it is settled, with the retries that the sweep allows.

        None where another worker holds it.
        """
        key = (spec.point, spec.seed)
        name = claim_key(key)
        while True:
            settled = self._settled(key)
            if settled is not None:
                return settled
            if any(t.state == TrialState.RUNNING for t in self.claims.of(name)):
                return None
            answer = self.limits.may_begin(key)
            if answer == "stop":
                raise Halt
            if answer == "skip":
                self.claims.make(name, {POINT: spec.point}).release(GIVEN_UP)
                continue
            facts = {POINT: spec.point, "mmx.seed": spec.seed, "mmx.cell": cell.id}
            claim = self.claims.take(name, {**facts, **{k: str(v) for k, v in cell.raw.assigned.items()}})
            if claim is None:
                self.limits.take_back()
                return None
            ended = self._attempt(cell, spec, claim, proposal)
            self.limits.count(ended.state, self.plan.sweep.run)
            if ended.state in ("done", "pruned"):
                self._note(key, ended)
            if ended.state != FAILED:
                return None if ended.state == "taken" else ended

    def _settled(self, key: Key) -> Ended | None:
        """Tell how a (point, seed) ended, before this call or in it, whoever ran it."""
        if key in self.done:
            return Ended("pruned" if key in self.pruned else "done", self.done[key])
        self.claims.refresh()
        claims = self.claims.of(claim_key(key))
        for trial in (t for t in claims if t.state in FINISHED):
            if trial in self.claims.call or self._was_ending(trial):
                return self._note(key, self._result(trial))
        own = [t for t in claims if t in self.claims.call]
        ends = [t.user_attrs.get(END) for t in own]
        hopeless = GIVEN_UP in ends or ends.count(FAILED) > self.plan.sweep.run.retry_failed
        return Ended(FAILED, []) if hopeless else None

    def _was_ending(self, trial: FrozenTrial) -> bool:
        """Tell whether a claim that was finished when this call began has a result all the same.

        The call looks at the results first, and misses what is counted before it looks at the claims.
        """
        if self.late is None:
            records = self.tracker.records(self.plan.sweep.name)
            self.late = {r.claim for r in records if r.state in ("done", "running")}
        return self.claims.name_of(trial.number) in self.late

    def _result(self, trial: FrozenTrial) -> Ended:
        """Read how a trial ended that any worker ran; a claim keeps no values that are no numbers."""
        pruned = trial.user_attrs.get(REASON, "").startswith(PRUNED)
        values = list(trial.values or [math.nan] * len(self.plan.objective))
        return Ended("pruned" if pruned else "done", values)

    def _note(self, key: Key, ended: Ended) -> Ended:
        self.done[key] = ended.values
        if ended.state == "pruned":
            self.pruned.add(key)
        return ended

    def _attempt(self, cell: Cell, spec: TrialSpec, claim: Claim, proposal: Claim | None) -> Ended:
        key = (spec.point, spec.seed)
        own = [t for t in self.claims.of(claim_key(key)) if t in self.claims.call]
        tries = sum(t.number < claim.number and t.user_attrs.get(END) != "withdrawn" for t in own)
        known = {**flat_parameters(spec), "method": cell.raw.method}
        params = {name: known.get(name, "none") for name in self.keys}
        number = self.known.attempts.get(key, 0) + tries + 1
        record = worker_record(spec, cell.id, number, params, claim.name)
        try:
            attempt = Attempt(spec, title(cell, spec, claim.number), record, claim)
            return self.runner.run(attempt, *self._judges(spec, claim, proposal))
        except BaseException:
            claim.release("stopped")  # nothing where it has ended
            raise

    def _judges(
        self, spec: TrialSpec, claim: Claim, proposal: Claim | None
    ) -> tuple[Callable[[int, Figures], bool], Callable[[list[float]], str]]:
        """Say who is told of epochs, to prune between them, and of the objective's values, after a seed."""
        seeds, looks_at = self.plan.sweep.search.seeds, self.search.looks_at
        if looks_at == "epochs" and spec.seed == seeds[0]:
            monitor = monitor_of(spec.stages()[-1], self.plan.bench.dataset(spec.dataset).task)
            trial = (proposal or claim).trial
            callback = PruningCallback(trial, monitor.key, monitor.higher_is_better)
            return callback.told, lambda values: callback.reason
        if looks_at == "seeds" and proposal is not None and spec.seed != seeds[-1]:
            name, direction = next(iter(self.plan.objective.items()))
            figure = on_validation(name)
            judge = PruningCallback(proposal.trial, figure, direction == "maximize", unit="seed")
            return _goes_on, lambda values: judge.reason if judge.told(spec.seed, {figure: values[0]}) else ""
        return _goes_on, lambda values: ""


def _goes_on(epoch: int, figures: Figures) -> bool:
    del epoch, figures
    return False


def claim_key(key: Key) -> str:
    """Name a (point, seed) as claims do."""
    return "/".join(map(str, key))


def logged_keys(plan: Plan) -> tuple[str, ...]:
    """Name the parameters that every trial logs, `none` where it has no such parameter."""
    keys = sorted({key for cell in plan.cells for key in flat_parameters(cell.spec)})
    return (*keys, "method") if plan.sweep.search.methods else tuple(keys)


def items(plan: Plan) -> list[Item]:
    """List what there is to do, in the order of the file."""
    seeds = plan.sweep.search.seeds
    return [(cell, seed) for cell in plan.cells for seed in ((None,) if cell.raw.tune else seeds)]


def title(cell: Cell, spec: TrialSpec, number: int) -> str:
    """Name a trial for people."""
    ranks = {a.options["rank"] for a in spec.stages()[-1].adapters.values() if "rank" in a.options}
    rank = f"-r{ranks.pop()}" if len(ranks) == 1 else ""
    return f"t{number + 1:04d}-{cell.raw.method or spec.strategy.name}{rank}-s{spec.seed}"
