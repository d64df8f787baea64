"""Who runs what: a claim is a running trial of a study, which every worker of the sweep sees.

Making a claim is one transaction, so a process that is killed leaves either nothing or a claim with its name
on it. Where two workers claim the same thing, the lower number holds and the other withdraws. Ending a claim
is the storage's own compare-and-set: a worker that was taken for dead finds its claim ended, its result is
not counted. Workers elsewhere show that they live by Optuna's heartbeat, or, where a storage has none, by a
time in the claim itself.
"""

import math
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from mmx.sweep.storage import BEATS, patiently
from mmx.worker import is_gone, this_worker

KEY = "mmx.key"
POINT = "mmx.point"
WORKER = "mmx.worker"
TASK = "mmx.task"
SEEN = "mmx.seen"
BEATEN = "mmx.beaten"
RUN = "mmx.run"
END = "mmx.end"
TAGS = "mmx.tags"
REASON = "mmx.reason"
FAILED = "failed"
"""The end of a claim whose trial failed by its own fault; others were stopped or withdrawn."""
GIVEN_UP = "given up"
"""The end of a claim on a trial that nobody is to try again in this call: workers died of it."""
HOLDING = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class Span:
    """The claims of a study that belong to a call of `mmx run`: what ended before it may be tried again."""

    first: int = 0
    """The number of the first claim after its beginning."""
    before: frozenset[int] = frozenset()
    """Earlier ones that were running when it began, for another call."""

    def __contains__(self, trial: FrozenTrial) -> bool:
        return trial.number >= self.first or trial.number in self.before


class Heart:
    """Shows, for every claim that this process holds, that the process lives."""

    def __init__(self, storage: BaseStorage, lease: float) -> None:
        self.storage = storage
        self.pause = lease / BEATS
        self.held: set[int] = set()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def hold(self, trial: int) -> None:
        """Begin to beat for a claim, the first time at once."""
        self.held.add(trial)
        self._beat(trial)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="mmx-heart", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(self.pause):
            for trial in list(self.held):
                self._beat(trial)

    def _beat(self, trial: int) -> None:
        """Beat once; a storage that is away for a while must not end the trial."""
        try:
            if hasattr(self.storage, "record_heartbeat"):
                self.storage.record_heartbeat(trial)
            else:
                self.storage.set_trial_user_attr(trial, SEEN, time.time())
        except Exception:  # noqa: BLE001 the next beat may reach it; if none does, the lease ends
            return

    def release(self, trial: int) -> None:
        """Beat for a claim no longer."""
        self.held.discard(trial)

    def stop(self) -> None:
        """End the beating."""
        self._ended.set()


_locking = threading.local()


def _lock(connection: sqlalchemy.Connection) -> None:
    if getattr(_locking, "asked", False):
        connection.exec_driver_sql("BEGIN IMMEDIATE")


@contextmanager
def locked(storage: BaseStorage) -> Iterator[None]:
    """Let nothing come between what Optuna reads of a trial and what it then writes.

    Servers lock by themselves; SQLite only from the first write on, so that two could end the same trial.
    """
    engine = getattr(getattr(storage, "_backend", None), "engine", None)
    is_sqlite = engine is not None and engine.dialect.name == "sqlite"
    if is_sqlite and not sqlalchemy.event.contains(engine, "begin", _lock):
        sqlalchemy.event.listen(engine, "begin", _lock)
    _locking.asked = True
    try:
        yield
    finally:
        _locking.asked = False


@dataclass
class Claims:
    """The claims of one study."""

    study: optuna.Study
    storage: BaseStorage
    heart: Heart
    lease: float
    task: str = ""
    """What this process works for, where that outlives processes (a task of a cluster, which tries again)."""
    call: Span = Span()
    """What the current call of `mmx run` is about."""
    trials: list[FrozenTrial] = field(default_factory=list)
    by_key: dict[str, list[FrozenTrial]] = field(default_factory=dict)

    @property
    def study_id(self) -> int:
        """The study's id in the storage."""
        return self.storage.get_study_id_from_name(self.study.study_name)

    def refresh(self) -> list[FrozenTrial]:
        """Read the claims anew, oldest first."""
        self.trials = patiently(lambda: self.study.get_trials(deepcopy=False))
        self.by_key = {}
        for trial in self.trials:
            self.by_key.setdefault(trial.user_attrs.get(KEY, ""), []).append(trial)
        return self.trials

    def of(self, key: str) -> list[FrozenTrial]:
        """List the claims on a thing, oldest first, as they were when last read."""
        return self.by_key.get(key, [])

    def make(
        self,
        key: str,
        facts: Mapping[str, Any],
        params: Mapping[str, Any] | None = None,
        distributions: dict[str, BaseDistribution] | None = None,
    ) -> "Claim":
        """Make a claim, whoever else may have one; with values for what is tuned where they are known."""
        attributes = {**facts, KEY: key, WORKER: this_worker(), TASK: self.task, SEEN: time.time()}
        template = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            user_attrs=attributes,
            params=dict(params or {}),
            distributions=distributions or {},
        )
        number = patiently(lambda: self.storage.create_new_trial(self.study_id, template))
        self.heart.hold(number)
        claim = Claim(self, number, self.storage.get_trial(number).number)
        claim.note({BEATEN: True})
        return claim

    def take(self, key: str, facts: Mapping[str, Any]) -> "Claim | None":
        """Claim a thing; None where another holds it, or has finished it in this call."""
        claim = self.make(key, facts)
        self.refresh()
        for other in self.of(key):
            if other.number < claim.number and self._holds(other):
                claim.release("withdrawn")
                return None
        return claim

    def _holds(self, other: FrozenTrial) -> bool:
        if other.state == TrialState.RUNNING and self._is_forgotten(other):
            self.fail(other)
            return False
        return other.state == TrialState.RUNNING or (other.state in FINISHED and other in self.call)

    def name_of(self, number: int) -> str:
        """Name a claim for the result store: study and number."""
        return f"{self.study.study_name}#{number}"

    def id_of(self, trial: FrozenTrial) -> int:
        """Give the storage's id of a trial."""
        return self.storage.get_trial_id_from_study_id_trial_number(self.study_id, trial.number)

    def _is_forgotten(self, trial: FrozenTrial) -> bool:
        """Tell whether a claim carries this process's name although the process does not hold it."""
        return trial.user_attrs.get(WORKER) == this_worker() and self.id_of(trial) not in self.heart.held

    def fail(self, trial: FrozenTrial) -> bool:
        """End another's claim; False where it has ended by itself."""
        try:
            number = self.id_of(trial)
            with locked(self.storage):
                return patiently(lambda: self.storage.set_trial_state_values(number, TrialState.FAIL))
        except UpdateFinishedTrialError:
            return False

    def reclaim(self) -> dict[int, str]:
        """End the claims of workers that are gone; give number to reason."""
        ended = {}
        for trial in self.refresh():
            if trial.state == TrialState.RUNNING:
                reason = self._gone(trial)
                if reason and self.fail(trial):
                    ended[trial.number] = reason
        with warnings.catch_warnings(), locked(self.storage):
            warnings.simplefilter("ignore", ExperimentalWarning)
            patiently(lambda: optuna.storages.fail_stale_trials(self.study))
        before = {t.number: t for t in self.trials if t.state == TrialState.RUNNING}
        for trial in self.refresh():
            lost = trial.state == TrialState.FAIL and END not in trial.user_attrs
            if lost and trial.number in before and trial.number not in ended:
                worker = trial.user_attrs.get(WORKER, "")
                ended[trial.number] = f"its worker {worker} gave no sign of life for {self.lease:g} s"
        return ended

    def _gone(self, trial: FrozenTrial) -> str:
        """Say why a running claim's worker is held to be gone; empty where it may live."""
        facts = trial.user_attrs
        worker = facts.get(WORKER, "")
        if is_gone(worker) or self._is_forgotten(trial):
            return f"its worker {worker} is gone"
        if self.task and facts.get(TASK) == self.task and worker != this_worker():
            return f"its worker {worker} was lost"
        beats = hasattr(self.storage, "record_heartbeat") and facts.get(BEATEN)
        if not beats and time.time() - facts.get(SEEN, math.inf) > self.lease:
            return f"its worker {worker} gave no sign of life for {self.lease:g} s"
        return ""


@dataclass
class Claim:
    """Something that this process runs."""

    claims: Claims
    id: int
    number: int

    @property
    def name(self) -> str:
        """Name it for the result store."""
        return self.claims.name_of(self.number)

    @property
    def trial(self) -> optuna.Trial:
        """Give Optuna's handle, for values at each epoch and for suggestions."""
        return optuna.Trial(self.claims.study, self.id)

    @property
    def is_finished(self) -> bool:
        """Tell whether it is counted."""
        return patiently(lambda: self.claims.storage.get_trial(self.id)).state in FINISHED

    def note(self, facts: Mapping[str, Any]) -> None:
        """Write facts into the claim; nothing where it has been ended by others."""
        storage = self.claims.storage
        try:
            for name, value in facts.items():
                patiently(partial(storage.set_trial_user_attr, self.id, name, value))
        except UpdateFinishedTrialError:
            return

    def commit(self, values: Sequence[float], pruned: bool = False) -> bool:
        """End it as finished, once and for all; False where it was taken away before.

        A value that is no number cannot be stored, and is none.
        """
        known = list(values) if all(math.isfinite(v) for v in values) else None
        state = TrialState.PRUNED if pruned or known is None else TrialState.COMPLETE
        return self._end(state, known)

    def release(self, end: str, reason: str = "") -> None:
        """End it without a result: "failed" by its own fault, "stopped" or "withdrawn"."""
        self.note({END: end, REASON: reason})
        self._end(TrialState.FAIL, None)

    def _end(self, state: TrialState, values: list[float] | None) -> bool:
        storage = self.claims.storage
        try:
            with locked(storage):
                return patiently(lambda: storage.set_trial_state_values(self.id, state, values))
        except UpdateFinishedTrialError:
            # Others only ever fail a claim: found finished, it was this call's first try that got through.
            return self.is_finished
        finally:
            self.claims.heart.release(self.id)
