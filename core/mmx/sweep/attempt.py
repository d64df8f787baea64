"""One attempt at a trial: run, log, and count it only if it is still this worker's."""

import errno
import gc
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from mmx.config import TrialSpec
from mmx.contracts import Tracker, TrialLog, TrialRecord
from mmx.errors import MmxError, Stopped, StoreError
from mmx.registry import Registry
from mmx.report.standings import selected
from mmx.runs.environment import environment_of
from mmx.sweep.artifacts import keep_trial
from mmx.sweep.claims import FAILED, REASON, RUN, TAGS, Claim
from mmx.sweep.limits import Key, Stopping
from mmx.sweep.plan import Plan
from mmx.train import Figures
from mmx.trial import SPLITS, Helpers, Outcome, run_trial
from mmx.worker import this_worker

DISK = (errno.ENOSPC, errno.EROFS, errno.EDQUOT)
TAKEN = "it was taken for dead and given to another worker; its result is not counted"


@runtime_checkable
class Watcher(Protocol):
    """Who is told how a sweep goes; `worker` is a number from 0."""

    def sweep_started(self, total: int, done: int) -> None: ...
    def told(self, message: str) -> None: ...
    def trial_started(self, worker: int, title: str, epochs: int, key: Key) -> None: ...
    def epoch_ended(self, worker: int, epoch: int, figures: Figures) -> None: ...
    def trial_ended(self, worker: int, title: str, state: str, reason: str, figures: Figures) -> None: ...


@dataclass(frozen=True)
class Ended:
    """How a (point, seed) stands."""

    state: str
    """done, pruned or failed."""
    values: list[float]
    """The objective's figures on the validation split; none where it failed."""


@dataclass
class Attempt:
    """A trial that is about to run."""

    spec: TrialSpec
    title: str
    record: TrialRecord
    claim: Claim
    tags: dict[str, str] = field(default_factory=dict)
    """What the run is to be tagged with once it is counted."""


@dataclass
class Runner:
    """Runs attempts in this process."""

    plan: Plan
    tracker: Tracker
    device: torch.device
    watcher: Watcher
    stopping: Stopping
    number: int = 0
    """The worker's."""
    helpers: Helpers | None = None
    """The other processes that train its trials, if any."""

    def run(
        self,
        attempt: Attempt,
        told: Callable[[int, Figures], bool],
        verdict: Callable[[list[float]], str],
    ) -> Ended:
        """Run to the end; what is raised ends the worker, and leaves the trial to be carried on.

        `told` is told each epoch and says whether to train no further; `verdict` is told the objective's
        values and says why the trial was pruned, if it was.
        """
        log = self.tracker.open_trial(attempt.title, attempt.record)
        attempt.claim.note({RUN: log.run_id})
        spec = attempt.spec
        epochs = sum(stage.training.epochs for stage in spec.stages())
        self.watcher.trial_started(self.number, attempt.title, epochs, (spec.point, spec.seed))
        observe(self.plan.registry, "trial_started", spec=spec.to_dict())
        figures: Figures = {}
        try:
            outcome = self._train(attempt, log, told)
            figures = outcome.last()
            ended, reason = self._commit(attempt, outcome, verdict)
        except Exception as error:
            if isinstance(error, StoreError) or getattr(error, "errno", None) in DISK:
                self._leave(attempt, log, str(error))
                raise _about_the_disk(error) from error
            ended, reason = Ended(FAILED, []), self._fail(attempt, log, error)
        except BaseException:
            self._leave(attempt, log, "interrupted")
            raise
        state = {FAILED: FAILED, "taken": "missing"}.get(ended.state, "done")
        # What is counted stays so, whatever happens from here on: `reclaim` makes up for an end that fails.
        self._end(attempt, log, state, reason)
        outcome_told = {"state": state, "reason": reason, "metrics": figures}
        observe(self.plan.registry, "trial_ended", spec=spec.to_dict(), outcome=outcome_told)
        self.watcher.trial_ended(self.number, attempt.title, state, reason, figures)
        return ended

    def _train(self, attempt: Attempt, log: TrialLog, told: Callable[[int, Figures], bool]) -> Outcome:
        def on_epoch(epoch: int, values: Figures) -> bool:
            log.metrics(values, epoch)
            self.watcher.epoch_ended(self.number, epoch, values)
            if self.stopping.asked:
                raise Stopped
            return told(epoch, values)

        outcome = run_trial(attempt.spec, self.plan.bench, self.device, on_epoch, self.helpers)
        self._keep(attempt.spec, log, outcome)
        return outcome

    def _keep(self, spec: TrialSpec, log: TrialLog, outcome: Outcome) -> None:
        """Write what the trial found, and what it was found with."""
        bench = self.plan.bench
        for name in SPLITS:
            split = bench.split(spec, name)
            facts = {"samples": len(split), "modalities": list(split.modalities)}
            log.data(spec.dataset.name, name, split.digest, facts)
        where = environment_of(spec, bench, self.device)
        task = bench.dataset(spec.dataset).task
        keep_trial(log, spec, outcome, task, where, self.plan.sweep.run.plots)

    def _commit(
        self, attempt: Attempt, outcome: Outcome, verdict: Callable[[list[float]], str]
    ) -> tuple[Ended, str]:
        """Count the result, once and for all; everything that it consists of was sent before."""
        figures = outcome.last()
        attempt.tags = {"mmx.mask_sha": outcome.mask_digest}
        values = [selected(TrialRecord("", "", 0, "done", metrics=figures), f) for f in self.plan.objective]
        pruned = verdict(values)
        attempt.claim.note({TAGS: attempt.tags, REASON: pruned})
        if not attempt.claim.commit(values, bool(pruned)):
            return Ended("taken", []), TAKEN
        return Ended("pruned" if pruned else "done", values), pruned

    def _end(self, attempt: Attempt, log: TrialLog, state: str, reason: str) -> None:
        """End the run; of one that somebody has deleted meanwhile, a later call finds nothing and runs it."""
        try:
            log.end(state, reason, attempt.tags if state == "done" else {})
        except StoreError:
            raise
        except MmxError as error:
            warnings.warn(f"'{attempt.title}' could not be ended: {error}", stacklevel=2)
        if state == "done":
            self.plan.bench.forget(attempt.spec, self.device)

    def _fail(self, attempt: Attempt, log: TrialLog, error: Exception) -> str:
        """End a trial that failed by its own fault; the next try starts from the beginning."""
        reason = told_of(error, attempt.spec)
        if not isinstance(error, MmxError):
            with suppress(OSError), tempfile.TemporaryDirectory() as folder:  # a disk may be full
                path = Path(folder) / "traceback.txt"
                path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
                log.artifact(path)
        # Frames of the traceback hold the trial's model and batches.
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.plan.bench.forget(attempt.spec, self.device)
        attempt.claim.release(FAILED, reason)
        return reason

    def _leave(self, attempt: Attempt, log: TrialLog, reason: str) -> None:
        """Give a trial up that is to be carried on, unless it is counted; stores that are away must not hide
        why."""
        try:
            attempt.claim.release("stopped", reason)
            if not attempt.claim.is_finished:
                log.end("missing", reason, {})
        except Exception as error:  # noqa: BLE001 the next run finds what could not be ended here
            warnings.warn(f"'{attempt.title}' could not be ended: {error}", stacklevel=2)


def told_of(error: Exception, spec: TrialSpec) -> str:
    """Tell why a trial failed, with advice where it ran out of memory."""
    text = f"{type(error).__name__}: {error}"
    lowered = str(error).lower()
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        sign in lowered for sign in ("out of memory", "can't allocate memory", "cannot allocate memory")
    ):
        return (
            f"out of memory: lower training.batch_size (now {spec.training.batch_size}), use "
            f"training.precision: bfloat16, or run fewer workers on the device ({text.splitlines()[0]})"
        )
    return text


def _about_the_disk(error: Exception) -> MmxError:
    if isinstance(error, MmxError):
        return error
    return StoreError(f"{error}: free some space or make the folder writable; `mmx run` carries on")


def worker_record(
    spec: TrialSpec, cell: str, attempt: int, params: dict[str, str], claim: str
) -> TrialRecord:
    """Describe an attempt of this process that is about to run."""
    return TrialRecord(
        "", spec.point, spec.seed, "running", "", cell, attempt, params, worker=this_worker(), claim=claim
    )


def observe(registry: Registry, hook: str, **facts: Any) -> None:
    """Tell observers, each on its own; one that raises is told about and hurts nobody."""
    if registry.traces:
        sys.stderr.write(f"mmx: hook {hook}\n")
    for implementation in getattr(registry.manager.hook, hook).get_hookimpls():
        wanted = {name: facts[name] for name in implementation.argnames}
        try:
            implementation.function(**wanted)
        except Exception as error:  # noqa: BLE001 a stranger's observer may raise anything
            warnings.warn(f"observer '{implementation.plugin_name}' raised in {hook}: {error}", stacklevel=2)
