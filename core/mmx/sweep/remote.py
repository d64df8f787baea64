"""A worker process, as it sees itself: what it is told, and the parent behind a pipe."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mmx.config import SweepSpec
from mmx.errors import MmxError, Stopped, StoreError
from mmx.registry import Registry
from mmx.sweep.claims import Span
from mmx.sweep.engine import Engine, Known
from mmx.sweep.limits import Answer, Key, Stopping
from mmx.sweep.log import Logged
from mmx.sweep.places import open_stores, sweep_folder
from mmx.sweep.plan import Plan, plan_sweep

ENDED, TOLD, BEGIN, REACHED = "ended", "told", "begin", "reached"
TAKE_BACK, COUNT, FAULT = "take_back", "count", "fault"


@dataclass(frozen=True)
class Job:
    """What a worker process is told; sent through its pipe, since addresses may hold passwords."""

    sweep: SweepSpec
    device: str
    number: int
    known: Known
    patient: bool = True
    task: str = ""
    calls: Mapping[str, Span] = field(default_factory=dict)


class Remote:
    """The parent, as a worker sees it: limits and watcher at the other end of the pipe."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    def _send(self, *message: Any) -> None:
        try:
            self.pipe.send(message)
        except OSError as error:  # the parent is gone
            raise Stopped from error

    def may_begin(self, key: Key) -> Answer:
        """Ask the parent."""
        answer: Answer = self._ask(BEGIN, key)
        return answer

    def reached(self) -> bool:
        """Ask the parent."""
        return bool(self._ask(REACHED))

    def _ask(self, *message: Any) -> Any:
        self._send(*message)
        try:
            return self.pipe.recv()
        except (EOFError, OSError) as error:
            raise Stopped from error

    def take_back(self) -> None:
        """Tell the parent."""
        self._send(TAKE_BACK)

    def count(self, state: str, run: Any) -> None:
        """Tell the parent."""
        del run
        self._send(COUNT, state)

    def sweep_started(self, total: int, done: int) -> None:
        """Nothing: the parent knows."""

    def told(self, message: str) -> None:
        """Pass on."""
        self._send(TOLD, "told", (message,))

    def trial_started(self, worker: int, title: str, epochs: int, key: Key) -> None:
        """Pass on."""
        self._send(TOLD, "trial_started", (worker, title, epochs, key))

    def epoch_ended(self, worker: int, epoch: int, figures: Mapping[str, float]) -> None:
        """Pass on."""
        self._send(TOLD, "epoch_ended", (worker, epoch, dict(figures)))

    def trial_ended(
        self, worker: int, title: str, state: str, reason: str, figures: Mapping[str, float]
    ) -> None:
        """Pass on."""
        self._send(TOLD, "trial_ended", (worker, title, state, reason, dict(figures)))


def _log(message: str) -> None:
    sys.stdout.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n")
    sys.stdout.flush()


def work(pipe: Connection, log: str) -> None:
    """Be a worker: the whole life of its process."""
    _write_to(Path(log))
    # What it starts in its turn, loaders of batches say, is started as elsewhere.
    multiprocessing.set_start_method(None, force=True)
    with Stopping() as stopping:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        remote = Remote(pipe)
        try:
            job: Job = pipe.recv()
            run_job(job, remote, stopping)
            pipe.send((ENDED,))
        except (Stopped, KeyboardInterrupt):
            _log("stopped")
        except MmxError as error:
            _log(str(error))
            pipe.send((FAULT, str(error), isinstance(error, StoreError)))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            _log("the parent is gone")


def run_job(job: Job, remote: Remote, stopping: Stopping) -> None:
    """Plan the sweep again, without building its models, and run what is left."""
    from mmx.sweep.devices import find_device, helpers_of

    plan = plan_again(job.sweep)
    plan.bench.folder = sweep_folder(plan.sweep)
    search, tracker = open_stores(plan, job.task)
    search.calls = dict(job.calls)
    tracker.open_sweep(plan.sweep.name, {})
    device = find_device(job.device.split(",")[0])
    watcher = Logged(remote, sys.stdout)
    tracker.told = watcher.told
    engine = Engine(
        plan,
        tracker,
        search,
        device,
        watcher,
        remote,
        stopping,
        job.known,
        job.number,
        job.patient,
        helpers_of(plan.sweep, job.device),
    )
    try:
        engine.run()
    finally:
        search.heart.stop()


def plan_again(sweep: SweepSpec) -> Plan:
    """Plan a sweep that was checked before."""
    folder = Path(sweep.source).parent
    registry = Registry.load(files=[folder / file for file in sweep.plugins])
    return plan_sweep(sweep, registry, build=False)


def _write_to(log: Path) -> None:
    """Let all that the process writes, libraries and the interpreter's last words included, go to its log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    _log(f"worker {os.getpid()} starts")
