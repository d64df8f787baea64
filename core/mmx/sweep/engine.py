"""Runs what is missing of a sweep: skips what is done, retries what failed, loses nothing."""

import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from mmx.config import TrialSpec, apply
from mmx.contracts import Tracker, TrialRecord
from mmx.errors import ConfigError, MmxError
from mmx.registry import Registry
from mmx.sweep.artifacts import keep_trial
from mmx.sweep.parameters import flat_parameters
from mmx.sweep.plan import Cell, Plan
from mmx.sweep.resolve import Resolver
from mmx.sweep.study import Search, budget
from mmx.sweep.summary import selected
from mmx.train import Figures
from mmx.trial import run_trial

Key = tuple[str, int]


@runtime_checkable
class Watcher(Protocol):
    """Who is told how a sweep goes."""

    def sweep_started(self, total: int, done: int) -> None: ...
    def trial_started(self, title: str, epochs: int) -> None: ...
    def epoch_ended(self, epoch: int, figures: Figures) -> None: ...
    def trial_ended(self, title: str, state: str, reason: str, figures: Figures) -> None: ...


@dataclass
class Limits:
    """What ends a call early; none of it changes a number."""

    max_trials: int | None = None
    seconds: float | None = None
    started: float = field(default_factory=time.monotonic)
    begun: int = 0

    def reached(self) -> bool:
        """Tell whether no further trial may begin."""
        if self.max_trials is not None and self.begun >= self.max_trials:
            return True
        return self.seconds is not None and time.monotonic() - self.started >= self.seconds


class Stopped(Exception):  # noqa: N818 no error: the call's limits were reached
    """Ends a call early."""


@dataclass
class Engine:
    """Runs a plan in this process, one trial after another."""

    plan: Plan
    tracker: Tracker
    search: Search
    device: torch.device
    watcher: Watcher
    limits: Limits
    keys: tuple[str, ...]
    """Parameter names that every trial logs, `none` where it has no such parameter."""
    ledger: dict[Key, TrialRecord] = field(default_factory=dict)
    failures_in_a_row: int = 0
    counter: int = 0

    def run(self) -> None:
        """Run every cell; returns when all is done or the limits are reached."""
        self.ledger = {(r.point, r.seed): r for r in self.tracker.records(self.plan.sweep.name)}
        self.counter = len(self.ledger)
        try:
            for cell in self.plan.cells:
                if cell.raw.tune:
                    self._run_tuned(cell)
                else:
                    self._run_fixed(cell)
        except Stopped:
            return

    def _run_fixed(self, cell: Cell) -> None:
        values = self._run_point(cell, cell.spec)
        if values is not None:
            facts = {"mmx.cell": cell.id, **{k: str(v) for k, v in cell.raw.assigned.items()}}
            self.search.note(cell.spec.point, facts, values)

    def _run_tuned(self, cell: Cell) -> None:
        """Ask Optuna until the cell has its budget of different trials; failed ones are not asked for twice.

        What was tried to the end before is looked at first: a seed may have been added since.
        """
        study = self.search.cell(cell.id)
        for tried in study.completed():
            self._run_point(cell, self._tuned_spec(cell, tried))
        wanted = budget(cell.raw.tune, self.plan.sweep.search.trials_per_cell)
        if wanted < self.plan.sweep.search.trials_per_cell:
            study.enumerate(cell.raw.tune)
        for _ in range(wanted - len(study.completed())):
            if self.limits.reached():
                raise Stopped
            proposal = study.ask(cell.raw.tune)
            point = "unresolved"
            values = None
            try:
                spec = self._tuned_spec(cell, proposal.values)
                point = spec.point
                values = self._run_point(cell, spec)
            finally:
                study.tell(proposal, point, values)

    def _tuned_spec(self, cell: Cell, values: Mapping[str, Any]) -> TrialSpec:
        faults: list[Any] = []
        resolver = Resolver(self.plan.sweep, self.plan.registry, faults)
        spec = resolver.resolve(apply(cell.raw.trial, values), {**cell.raw.assigned, **values}, {})
        if spec is None:
            raise ConfigError(self.plan.sweep.source, faults)
        return spec

    def _run_point(self, cell: Cell, spec: TrialSpec) -> list[float] | None:
        """Run a point's seeds; give the objective's means over them, or None where a seed failed."""
        records = []
        for seed in self.plan.sweep.search.seeds:
            record = self.ledger.get((spec.point, seed))
            if record is None or record.state != "done":
                record = self._run_seed(cell, replace(spec, seed=seed), record)
            records.append(record)
        if any(r.state != "done" for r in records):
            return None
        return [_mean(selected(r, figure) for r in records) for figure in self.plan.objective]

    def _run_seed(self, cell: Cell, spec: TrialSpec, known: TrialRecord | None) -> TrialRecord:
        """Run one seed of a point, with as many retries as the sweep allows."""
        attempt = known.attempt + 1 if known else 1
        for attempt_now in range(attempt, attempt + 1 + self.plan.sweep.run.retry_failed):
            if self.limits.reached():
                raise Stopped
            self.limits.begun += 1
            record = self._attempt(cell, spec, attempt_now)
            self.ledger[spec.point, spec.seed] = record
            self._count_failures(record)
            if record.state == "done":
                break
        return record

    def _count_failures(self, record: TrialRecord) -> None:
        run = self.plan.sweep.run
        self.failures_in_a_row = 0 if record.state == "done" else self.failures_in_a_row + 1
        if record.state == "failed" and run.on_error == "stop":
            raise Stopped
        if self.failures_in_a_row >= run.max_consecutive_failures:
            raise Stopped

    def _attempt(self, cell: Cell, spec: TrialSpec, attempt: int) -> TrialRecord:
        title = self._title(cell, spec)
        own = {**flat_parameters(spec), "method": cell.raw.method}
        params = {key: own.get(key, "none") for key in self.keys}
        record = TrialRecord("", spec.point, spec.seed, "running", "", cell.id, attempt, params)
        log = self.tracker.open_trial(title, record)
        self.watcher.trial_started(title, sum(stage.training.epochs for stage in spec.stages()))
        observe(self.plan.registry, "trial_started", spec=spec.to_dict())
        state, reason, figures, tags = "failed", "", {}, {}
        try:

            def on_epoch(epoch: int, values: Figures) -> None:
                log.metrics(values, epoch)
                self.watcher.epoch_ended(epoch, values)

            outcome = run_trial(spec, self.plan.bench, self.device, on_epoch)
            keep_trial(log, spec, outcome)
            state, figures = "done", outcome.last()
            tags["mmx.mask_sha"] = outcome.mask_digest
            observe(
                self.plan.registry,
                "trial_ended",
                spec=spec.to_dict(),
                outcome={"state": state, "reason": "", "metrics": figures},
            )
        except KeyboardInterrupt:
            reason = "interrupted"
            raise
        except Exception as error:  # noqa: BLE001 one point's failure must not end the sweep
            reason = f"{type(error).__name__}: {error}"
            self._keep_traceback(log, error)
            observe(
                self.plan.registry,
                "trial_ended",
                spec=spec.to_dict(),
                outcome={"state": state, "reason": reason},
            )
        finally:
            log.end(state, reason, tags)
        self.watcher.trial_ended(title, state, reason, figures)
        return replace(record, run_id=log.run_id, state=state, reason=reason, metrics=figures)

    def _title(self, cell: Cell, spec: TrialSpec) -> str:
        self.counter += 1
        ranks = {a.options["rank"] for a in spec.stages()[-1].adapters.values() if "rank" in a.options}
        rank = f"-r{ranks.pop()}" if len(ranks) == 1 else ""
        return f"t{self.counter:04d}-{cell.raw.method or spec.strategy.name}{rank}-s{spec.seed}"

    def _keep_traceback(self, log: Any, error: Exception) -> None:
        import tempfile

        if isinstance(error, MmxError):
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "traceback.txt"
            path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
            log.artifact(path)


def observe(registry: Registry, hook: str, **facts: Any) -> None:
    """Tell observers, each on its own; one that raises is told about and hurts nobody."""
    import warnings

    if registry.traces:
        sys.stderr.write(f"mmx: hook {hook}\n")
    for implementation in getattr(registry.manager.hook, hook).get_hookimpls():
        wanted = {name: facts[name] for name in implementation.argnames}
        try:
            implementation.function(**wanted)
        except Exception as error:  # noqa: BLE001 a stranger's observer may raise anything
            warnings.warn(f"observer '{implementation.plugin_name}' raised in {hook}: {error}", stacklevel=2)


def _mean(values: Iterator[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
