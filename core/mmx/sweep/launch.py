"""Several workers on one machine: a process each, started afresh, with a pipe of its own to the parent.

A pipe has one writer, so a worker that is killed in the middle of a message hurts no other.
"""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from mmx.contracts import Tracker
from mmx.errors import Stopped, StoreError
from mmx.sweep.attempt import Watcher
from mmx.sweep.devices import devices_of
from mmx.sweep.engine import Known, items
from mmx.sweep.limits import Key, Limits, Stopping
from mmx.sweep.places import log_file
from mmx.sweep.plan import Plan
from mmx.sweep.reclaim import reclaim
from mmx.sweep.remote import BEGIN, COUNT, FAULT, REACHED, TAKE_BACK, TOLD, Job, work
from mmx.sweep.study import Search

LOOK = 0.2
"""Seconds between looks at what no worker tells: whether the user asked to stop."""
LEAVING = 1.0
"""Seconds to leave that workers have when the call ends at once: those of its terminal were told, too."""
LOST = 5.0
"""Seconds that they have after they were told again."""


@dataclass
class _Worker:
    """A worker process, as the parent sees it."""

    number: int
    process: BaseProcess
    pipe: Connection
    key: Key | None = None
    title: str = ""
    ended: bool = False


@dataclass
class Crew:
    """The parent of several workers: answers them, shows them, replaces those that die."""

    plan: Plan
    tracker: Tracker
    search: Search
    devices: Sequence[str]
    watcher: Watcher
    limits: Limits
    stopping: Stopping
    known: Known
    fault: str = ""
    """What ended a worker that could not go on."""
    workers: list[_Worker] = field(default_factory=list)
    given_up: dict[Key, str] = field(default_factory=dict)
    """Trials that killed their workers, and how."""

    def run(self, count: int) -> None:
        """Start workers and see them through."""
        threads = max(1, (os.cpu_count() or 1) // count)
        with _threads(threads):
            try:
                for number in range(min(count, self._most())):
                    self.workers.append(self._start(number))
                while self.workers:
                    self._look()
            except BaseException:
                self._stop_all()
                raise
        self._fail_given_up()
        if self.stopping.asked:
            raise Stopped

    def _most(self) -> int:
        """Count the workers that could find something to do."""
        search, done = self.plan.sweep.search, self.known.done
        left = [(cell, seed) for cell, seed in items(self.plan) if (cell.spec.point, seed) not in done]
        return sum(1 if seed is not None else search.trials_per_cell for _, seed in left)

    def _start(self, number: int) -> _Worker:
        context = get_context("spawn")
        near, far = context.Pipe()
        log = str(log_file(self.plan.sweep, number))
        process = context.Process(target=work, args=(far, log), name=f"mmx-{number}")
        with _held_back(signal.SIGINT):  # until it can be told in one line
            process.start()
        far.close()
        device = devices_of(number, self.devices, self.plan.sweep.run.processes_per_trial)
        worker = _Worker(number, process, near)
        self._tell(worker, Job(self.plan.sweep, device, number, self.known, calls=self.search.calls))
        return worker

    def _tell(self, worker: _Worker, content: Any) -> None:
        """Send something to a worker; that it has died is found where it is heard."""
        with suppress(OSError):
            worker.pipe.send(content)

    def _look(self) -> None:
        """Wait for a message or an end, and deal with all that there are."""
        wait([*(w.pipe for w in self.workers), *(w.process.sentinel for w in self.workers)], LOOK)
        for worker in list(self.workers):
            # In this order: what it said before it ended is in the pipe, which its children may keep open.
            lives = worker.process.is_alive()
            if not (self._hear(worker) if worker.pipe.poll() else lives):
                worker.pipe.close()
                worker.process.join()
                self.workers.remove(worker)
                self._part(worker)
        if self.stopping.asked:
            self._ask_to_stop()

    def _hear(self, worker: _Worker) -> bool:
        """Take one message; False where the worker has closed its end, alive or not."""
        try:
            kind, *content = worker.pipe.recv()
        except (EOFError, OSError):
            return False
        if kind == BEGIN:
            self._tell(worker, "stop" if self._ends else self.limits.may_begin(content[0]))
        elif kind == REACHED:
            self._tell(worker, self._ends or self.limits.reached())
        elif kind == TOLD:
            self._show(worker, *content)
        elif kind == COUNT:
            self.limits.count(content[0], self.plan.sweep.run)
        elif kind == TAKE_BACK:
            self.limits.take_back()
        elif kind == FAULT:
            self.fault, worker.ended = content[0], True
        else:
            worker.ended = True
        return True

    @property
    def _ends(self) -> bool:
        return self.stopping.asked or bool(self.fault)

    def _show(self, worker: _Worker, method: str, content: tuple[Any, ...]) -> None:
        if method == "trial_started":
            worker.title, worker.key = content[1], content[3]
        elif method == "trial_ended":
            worker.key = None
        getattr(self.watcher, method)(*content)

    def _part(self, worker: _Worker) -> None:
        """Let a worker go; where it died, end what it left behind and start another."""
        if worker.ended or self.stopping.asked:
            return
        reason = _last_words(worker.process.exitcode)
        log = log_file(self.plan.sweep, worker.number)
        self.watcher.told(f"worker {worker.number} died ({reason}); see {log}")
        given_up = self.limits.count_death(worker.key, self.plan.sweep.run)
        if worker.key is not None:
            state, told = "missing", f"its worker died: {reason}"
            if given_up:
                state = "failed"
                told = f"its workers died {self.limits.deaths[worker.key]} times, the last: {reason}"
                self.given_up[worker.key] = told
            self.watcher.trial_ended(worker.number, worker.title, state, told, {})
        for message in reclaim(self.search, self.tracker, thorough=True):
            self.watcher.told(message)
        if worker.key is None and self.limits.ended:
            self.fault = self.fault or f"workers died before they could begin a trial ({reason}); see {log}"
        if not self.limits.reached() and not self.fault:
            self.workers.append(self._start(worker.number))

    def _fail_given_up(self) -> None:
        """Call failed what was given up; not before the end, for workers that wait call it missing."""
        if not self.given_up:
            return
        with suppress(StoreError):  # then it stays missing
            for record in self.tracker.records(self.plan.sweep.name):
                key = (record.point, record.seed)
                if key in self.given_up and record.state == "missing":
                    self.tracker.reopen(record.run_id).end("failed", self.given_up[key], {})

    def _ask_to_stop(self) -> None:
        """Pass the wish on; workers of the same terminal heard it before, and hear it again without harm."""
        for worker in self.workers:
            if worker.process.is_alive():
                worker.process.terminate()
        time.sleep(0.2)

    def _stop_all(self) -> None:
        """End the workers at once: tell them a second time, and kill those that do not hear."""
        processes = [worker.process for worker in self.workers]
        try:
            for process in processes:
                process.terminate()
            _join(processes, LEAVING)
            for process in processes:
                if process.is_alive() and process.pid is not None:
                    os.kill(process.pid, signal.SIGINT)
            _join(processes, LOST)
        finally:
            for process in processes:
                process.kill()


def _join(processes: Sequence[BaseProcess], seconds: float) -> None:
    """Wait for all of them, no longer than so many seconds together."""
    until = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))


@contextmanager
def _held_back(number: signal.Signals) -> Iterator[None]:
    """Let a signal wait, in processes that start now until they let it through."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})


def _last_words(code: int | None) -> str:
    if code is not None and code < 0:
        return f"signal {-code}" + (", which the system sends when memory runs out" if code == -9 else "")
    return f"exit code {code}"


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Give processes that start now so many threads each, unless the user has said otherwise."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    mine = [n for n in names if n not in os.environ]
    os.environ.update(dict.fromkeys(mine, str(count)))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        yield
    finally:
        for name in mine:
            del os.environ[name]
