"""A task of a Ray cluster: the driver as it sees it, and one unit of work."""

import os
import socket
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from ray.exceptions import RayError

from mmx.config import SweepSpec
from mmx.config.address import without_login
from mmx.errors import InputError, MmxError, Stopped
from mmx.sweep.cluster.job import ClusterJob, Unit
from mmx.sweep.devices import find_device, helpers_of
from mmx.sweep.engine import Engine, Halt, items
from mmx.sweep.limits import Stopping
from mmx.sweep.log import Logged
from mmx.sweep.places import (
    log_file,
    open_tracker,
    spool_folder,
    study_address,
    sweep_folder,
    tracking_address,
)
from mmx.sweep.plan import Plan
from mmx.sweep.remote import Remote, plan_again
from mmx.sweep.spool import Spooling
from mmx.sweep.study import CellSearch, Proposal, Search

SETTLED, HELD, HALTED, STOPPED, FAULT = "settled", "held", "halted", "stopped", "fault"
CALLS = "mmx.ray_calls"
"""The study's attribute that names the latest calls, so that a node can tell that it has the same store."""


class Caller(Remote):
    """The driver, as a task sees it: limits and watcher behind the desk."""

    def __init__(self, desk: Any, name: str) -> None:
        self.desk = desk
        self.name = name
        self.stopping = Stopping()

    def _send(self, *message: Any) -> None:
        self.stopping.asked |= self._wait_for(self.desk.say.remote(self.name, message))

    def _ask(self, *message: Any) -> Any:
        self._send(*message)
        return self._wait_for(self.desk.answer_to.remote(self.name))

    def _wait_for(self, reference: Any) -> Any:
        """Wait for the desk; in `ray.get` a task would lend its processor to another one meanwhile."""
        try:
            return reference.future().result()
        except RayError as error:  # the driver is gone
            raise Stopped from error


class SlotSearch(Search):
    """A sweep's studies, as one task sees them."""

    values: Mapping[str, Any] | None = None

    def cell(self, cell: str, tune: Mapping[str, Mapping[str, Any]]) -> "Slot":
        """Open the study of one cell for one proposal, or for earlier values."""
        return Slot(self, cell, tune)


class Slot(CellSearch):
    """A place in a cell's budget."""

    search: SlotSearch
    end = ""

    def completed(self) -> list[dict[str, Any]]:
        """List the values that the task is about, if it is about earlier ones."""
        return [] if self.search.values is None else [dict(self.search.values)]

    def propose(self) -> Proposal | None:
        """Claim values once."""
        return None if self.end or self.search.values is not None else super().propose()

    @property
    def is_busy(self) -> bool:
        """Tell whether the place is still to be filled."""
        if self.end:
            return self.end == "stopped"
        return self.search.values is None and super().is_busy

    def tell(self, proposal: Proposal, point: str, values: Sequence[float] | None, end: str) -> None:
        """Report, and note how it ended."""
        self.end = end
        super().tell(proposal, point, values, end)


@dataclass
class _Bench:
    """What a worker process of Ray keeps from task to task of a call: planning takes seconds."""

    plan: Plan
    search: SlotSearch
    tracker: Spooling
    log: TextIO


_benches: dict[str, _Bench] = {}


def work(job: ClusterJob, unit: Unit, name: str, number: int, desk: Any) -> tuple[str, int, str]:
    """Do one unit; gives how it ended, and of a fault the exit code and the message."""
    caller = Caller(desk, name)
    try:
        bench = _benches.get(job.task) or _open(job)
        bench.search.task, bench.search.values = unit.task, unit.values
        return (SETTLED if _do(job, unit, bench, caller, number) else HELD), 0, ""
    except Halt:
        return HALTED, 0, ""
    except (Stopped, KeyboardInterrupt, SystemExit):  # the last where a node is told to end
        return STOPPED, 0, ""
    except MmxError as error:
        return FAULT, error.exit_code, str(error)
    except Exception:
        traceback.print_exc(file=_log(job.sweep))
        raise


def _do(job: ClusterJob, unit: Unit, bench: _Bench, caller: Caller, number: int) -> bool:
    """Do the unit; False where another worker holds it."""
    helpers = helpers_of(bench.plan.sweep, job.device)
    watcher = Logged(caller, bench.log)
    bench.tracker.told = watcher.told
    engine = Engine(
        bench.plan,
        bench.tracker,
        bench.search,
        find_device(job.device.split(",")[0]),
        watcher,
        caller,
        caller.stopping,
        job.known,
        number,
        helpers=helpers,
    )
    try:
        return engine.do(items(bench.plan)[unit.place])
    finally:
        if helpers is not None:
            helpers.close()


def _open(job: ClusterJob) -> _Bench:
    """Plan the sweep again and open the stores, as the driver sees them."""
    os.environ.update(job.environment)
    if Path(job.folder).is_dir():
        os.chdir(job.folder)
    _set_threads(job)
    plan = plan_again(job.sweep)
    sweep = plan.sweep
    plan.bench.folder = sweep_folder(sweep)
    search = SlotSearch(sweep, study_address(sweep), plan.objective)
    search.calls = dict(job.calls)
    tracker = open_tracker(plan.registry, tracking_address(sweep), sweep.tracker.name)
    found = sweep.name in search.names() and job.task in search.study(sweep.name).user_attrs.get(CALLS, ())
    for key, there in (("study", found), ("tracking", sweep.name in tracker.find_sweeps())):
        if not there:
            told = without_login(getattr(sweep.store, key))
            raise InputError(
                f"store.{key} '{told}' is another one on node '{socket.gethostname()}', without this sweep; "
                f"use a server, or a folder that all nodes share"
            )
    tracker.open_sweep(sweep.name, {})
    for old in _benches.values():
        old.search.heart.stop()
    _benches.clear()
    _benches[job.task] = _Bench(plan, search, Spooling(tracker, spool_folder(sweep)), _log(sweep))
    return _benches[job.task]


def _set_threads(job: ClusterJob) -> None:
    """Share the task's processors among its processes, unless the user gave a number of threads."""
    rays = str(max(1, int(job.cpus)))
    if os.environ.get("OMP_NUM_THREADS", rays) == rays:  # Ray's own choice, too late for torch
        threads = max(1, int(job.cpus / job.sweep.run.processes_per_trial))
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)


def _log(sweep: SweepSpec) -> TextIO:
    """Open this process's log; Ray's own where the sweep's folder cannot be written from here."""
    path = log_file(sweep, f"{socket.gethostname()}-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a", encoding="utf-8")
    except OSError:
        return sys.stdout
