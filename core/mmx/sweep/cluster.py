"""`mmx run --executor ray`: points are tasks of a Ray cluster.

The driver hands tasks out, answers them and shows them, as the parent of local workers does; they reach it
through an actor, the desk. A task that is lost with its node is handed out again under the same name: what it
held is ended at once, and carried on from its checkpoint.
"""

import logging
import math
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
import uuid
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, TextIO, no_type_check

import torch
from optuna.trial import TrialState

from mmx.config import RunSpec, StoreSpec, SweepSpec
from mmx.config.address import without_login
from mmx.errors import InputError, MmxError, PluginError, Stopped, StoreError
from mmx.sweep.call import Call
from mmx.sweep.claims import FINISHED, POINT
from mmx.sweep.devices import devices_of, find_device, helpers_of
from mmx.sweep.engine import Engine, Halt, items
from mmx.sweep.launch import BEGIN, COUNT, REACHED, TAKE_BACK, TOLD, Job, Remote, plan_again
from mmx.sweep.limits import Key, Stopping
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
from mmx.sweep.reclaim import reclaim
from mmx.sweep.spool import Spooling
from mmx.sweep.study import CellSearch, Proposal, Search

ADDRESS = "RAY_ADDRESS"
# Ray reads both when it is imported. A cluster that is started here listens on loopback alone, and what Ray
# prints of nodes that are lost, dozens of lines on the standard output, is told by mmx in one.
if not os.environ.get(ADDRESS):
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "^")

try:
    import ray
    from ray.exceptions import NodeDiedError, RayError, RayTaskError, TaskCancelledError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ModuleNotFoundError as error:
    raise InputError("run.executor: 'ray' is not installed here: pip install 'mmx[ray]'") from error

LOOK = 0.1
"""Seconds between looks at the tasks."""
AGAIN = 5.0
"""Seconds after which a task that found its trial in another worker's hands is handed out again."""
SPARE = 1
"""Tasks above what a cluster has room for: they make an autoscaler act, and each costs an idle process."""
LOSSES = 5
"""Nodes that may be lost under a task before its trial is held to be the cause."""
STORE = 80 * 2**20
"""Bytes of a local cluster's object store: what tasks are told is small."""
SETTLED, HELD, HALTED, STOPPED, FAULT = "settled", "held", "halted", "stopped", "fault"
CALLS = "mmx.ray_calls"
"""The study's attribute that names the latest calls, so that a node can tell that it has the same store."""
FORWARDED = ("MMX_", "MLFLOW_TRACKING_", "PGPASS", "PGUSER", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
"""How names of variables begin that tasks take over: what a sweep hangs on, logins included."""
RELATIVE = re.compile(r"((?:sqlite(?:\+\w+)?|journal):///)(?!/|:memory:|file:)(.+)")
PASSWORD = re.compile(r"//[^/@\s]*:[^/@\s]*@|[?&]password=")


@dataclass(frozen=True)
class ClusterJob(Job):
    """What all tasks of a call are told; put into Ray's object store, which no page or log shows."""

    folder: str = ""
    """The driver's, where relative paths of datasets begin."""
    environment: Mapping[str, str] = field(default_factory=dict)
    cpus: float = 1.0


@dataclass(frozen=True)
class Unit:
    """What one task does: a (cell, seed); of a tuned cell a proposal, or what earlier values lack."""

    task: str
    """Its name, however often it is tried."""
    place: int
    """Of the item in the plan."""
    values: Mapping[str, Any] | None = None


# ------------------------------------------------------------------------------------------------- a task


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
    engine = Engine(
        bench.plan,
        bench.tracker,
        bench.search,
        find_device(job.device.split(",")[0]),
        Logged(caller, bench.log),
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


# -------------------------------------------------------------------------------------------- the cluster


def needs(run: RunSpec, devices: Sequence[str]) -> dict[str, Any]:
    """Give Ray's options of a task: `run.resources`, else a CPU, and a GPU where the device is one.

    Ray itself tries no task again: who died of what is told apart here.
    """
    given, processes = dict(run.resources), float(run.processes_per_trial)
    gpus = processes * any(device.startswith("cuda") for device in devices)
    options: dict[str, Any] = {"num_cpus": given.pop("cpu", processes), "num_gpus": given.pop("gpu", gpus)}
    if "memory" in given:
        options["memory"] = int(given.pop("memory"))
    return {**options, "resources": given, "max_retries": 0}


def job_of(call: Call, name: str, options: Mapping[str, Any]) -> ClusterJob:
    """Say what a task needs to know, with addresses and paths that hold wherever it runs."""
    sweep = call.plan.sweep
    store = StoreSpec(*(absolute(a) for a in (tracking_address(sweep), study_address(sweep))))
    run = replace(sweep.run, folder=str(Path(sweep.run.folder).absolute()))
    source = str(Path(sweep.source).absolute())
    names = [f"cuda:{i}" for i in range(math.ceil(options["num_gpus"]))] or ["cpu"]
    return ClusterJob(
        replace(sweep, store=store, run=run, source=source),
        devices_of(0, names, sweep.run.processes_per_trial),
        0,
        call.known,
        task=name,
        calls=call.search.calls,
        folder=str(Path.cwd()),
        environment={n: v for n, v in os.environ.items() if n.startswith(FORWARDED)},
        cpus=options["num_cpus"],
    )


def absolute(address: str) -> str:
    """Give the address of a store that is a file so that it does not hang on the current folder."""
    found = RELATIVE.fullmatch(address)
    return f"{found[1]}{Path(found[2]).absolute()}" if found else address


@contextmanager
def connected() -> Iterator[bool]:
    """Be connected to a cluster; tell whether it is one that was started for this, and ends with it."""
    address = os.environ.get(ADDRESS) or "local"
    if address.startswith("ray://"):
        raise InputError(
            f"--ray-address '{address}' is Ray's client; run mmx on a node of the cluster with --ray-address "
            f"auto, or as a job: ray job submit -- mmx run …"
        )
    if address != "local" and any(PASSWORD.search(argument) for argument in sys.argv):
        raise InputError(
            "Ray's dashboard shows the command line, and yours holds a password; write the address into the "
            "sweep file, or set MLFLOW_TRACKING_PASSWORD or PGPASSWORD"
        )
    if ray.is_initialized():
        yield False
        return
    _connect(address)
    try:
        yield address == "local"
    finally:
        ray.shutdown()


def _connect(address: str) -> None:
    """Start or join a cluster; Ctrl-C and SIGTERM are mmx's, whatever Ray makes of them."""
    mine = threading.current_thread() is threading.main_thread()
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)} if mine else {}
    group = os.getpgrp()
    local = {"object_store_memory": STORE, "include_dashboard": False} if address == "local" else {}
    try:
        _knock(address)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except (RayError, ConnectionError, RuntimeError, ValueError, OSError) as error:
        told, advice = "run.executor: Ray cannot be started here", ""
        if not local:
            told = f"--ray-address '{address}' is no cluster"
            advice = "; see that it is up (ray status), with the same Ray, Python and RAY_AUTH_MODE"
        raise InputError(f"{told}: {first_sentence(error)}{advice}") from error
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if os.getpgrp() != group:
            os.setpgid(0, group)  # Ray leaves the group that a terminal sends Ctrl-C to


def _knock(address: str) -> None:
    """See that somebody listens at host:port; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def demand(options: Mapping[str, Any]) -> dict[str, float]:
    """List what a task takes of a node, by Ray's names."""
    asked = {"CPU": options["num_cpus"], "GPU": options["num_gpus"], "memory": options.get("memory", 0)}
    return {name: amount for name, amount in {**asked, **options["resources"]}.items() if amount}


def room_for(options: Mapping[str, Any]) -> int:
    """Count the tasks that the cluster could run at once if it did nothing else."""
    asked = demand(options)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(int(min(has.get(name, 0) / amount for name, amount in asked.items())) for has in nodes)


def check_stores(sweep: SweepSpec) -> None:
    """Refuse stores that are files of one machine where the cluster has several (InputError)."""
    hosts = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    advice = {
        "tracking": "an MLflow server, http://…, or postgresql://…",
        "study": "postgresql://…, or journal:///… on a disk that they share",
    }
    addresses = {"tracking": tracking_address(sweep), "study": study_address(sweep)}
    bad = {key: address for key, address in addresses.items() if address.startswith("sqlite")}
    if len(hosts) > 1 and bad:
        told = "; ".join(f"store.{key} '{address}': use {advice[key]}" for key, address in bad.items())
        raise InputError(f"SQLite serves one machine, and the Ray cluster has {len(hosts)}: {told}")


def open_desk() -> Any:
    """Start the actor between tasks and driver, on the driver's node."""

    # A local class is sent whole, so that its process need not import torch; one that is wrapped cannot be.
    @no_type_check
    class Desk:
        def __init__(self) -> None:
            self.said: list[Any] = []
            self.answers: dict[str, Any] = {}
            self.stopped: set[str] = set()

        def say(self, name: str, message: Any) -> bool:
            self.said.append((name, *message))
            return "" in self.stopped or name in self.stopped

        async def answer_to(self, name: str) -> Any:
            import asyncio

            while name not in self.answers:
                await asyncio.sleep(0.02)
            return self.answers.pop(name)

        def hear(self) -> list[Any]:
            said, self.said = self.said, []
            return said

        def answer(self, name: str, answer: Any) -> None:
            self.answers[name] = answer

        def stop(self, name: str) -> None:
            self.stopped.add(name)

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Desk).options(num_cpus=0, scheduling_strategy=here).remote()


# --------------------------------------------------------------------------------------------- the driver


def run_on_ray(call: Call, devices: Sequence[str]) -> None:
    """Run what is missing on a Ray cluster: that of RAY_ADDRESS, or one that is there for this call alone.

    InputError where Ray or the cluster is not there, or cannot do what is asked. Raises Stopped where the
    user asked to stop, after each task's epoch has its checkpoint.
    """
    name = uuid.uuid4().hex[:12]
    left = units(call, name)
    if not left or call.limits.reached():
        return
    options = needs(call.plan.sweep.run, devices)
    with connected() as own:
        check_stores(call.plan.sweep)
        study = call.search.study(call.plan.sweep.name)
        study.set_user_attr(CALLS, [*study.user_attrs.get(CALLS, [])[-7:], name])
        desk = open_desk()
        try:
            Driver(call, ray.put(job_of(call, name, options)), desk, options, left, own).run()
        finally:
            with suppress(RayError):
                ray.kill(desk)


def units(call: Call, name: str) -> list[Unit]:
    """List the tasks of a call: what is not settled, and for tuned cells what is left of their budgets."""
    seeds, done, found = call.plan.sweep.search.seeds, call.known.done, list[Unit]()
    for place, (cell, seed) in enumerate(items(call.plan)):
        if seed is not None:
            if (cell.spec.point, seed) not in done:
                found.append(Unit(f"{name}:{place}", place))
            continue
        search = call.search.cell(cell.id, cell.raw.tune)
        own = {repr(sorted(t.params.items())): t for t in search.claims.refresh() if t.state in FINISHED}
        short: list[Mapping[str, Any] | None] = [
            dict(t.params)
            for t in own.values()
            if t.state == TrialState.COMPLETE
            and not all((t.user_attrs.get(POINT, ""), each) in done for each in seeds)
        ]
        wanted = [*short, *[None] * (search.wanted - len(own))]
        found += [Unit(f"{name}:{place}.{i}", place, values) for i, values in enumerate(wanted)]
    return found


@dataclass
class _Try:
    """A task that was handed out."""

    unit: Unit
    name: str
    number: int
    """Of the place where it is shown."""
    in_trial: bool = False
    key: Key | None = None
    title: str = ""


@dataclass
class Driver:
    """Hands tasks out, never many more than can run, and sees them through."""

    call: Call
    job: Any
    desk: Any
    options: Mapping[str, Any]
    waiting: list[Unit]
    own: bool
    """Whether the cluster is there for this call alone."""
    running: dict[Any, _Try] = field(default_factory=dict)
    due: dict[str, float] = field(default_factory=dict)
    """Task to when it may be handed out again."""
    losses: Counter[str] = field(default_factory=Counter)
    fault: MmxError | None = None

    def __post_init__(self) -> None:
        self.names = count()
        self.task = ray.remote(work)
        self.cancelled = False
        self.reclaimed = time.monotonic()
        self.items = items(self.call.plan)
        self.room = room_for(self.options)

    def run(self) -> None:
        """Go through all units; returns when all is settled or the limits are reached."""
        self._tell_room()
        try:
            while self.running or (self.waiting and not self._ends()):
                self._hand_out()
                self._look()
                if self.call.stopping.asked and not self.cancelled:
                    self._stop()
        except KeyboardInterrupt:
            for reference in self.running:
                ray.cancel(reference, force=True)
            raise
        except RayError as error:
            raise MmxError(f"the Ray cluster was lost: {first_sentence(error)}") from error
        if self.losses:
            self._reclaim(thorough=True)
        if self.fault:
            raise self.fault
        if self.call.stopping.asked:
            raise Stopped

    def _ends(self) -> bool:
        return bool(self.call.stopping.asked or self.fault or self.call.limits.reached())

    def _tell_room(self) -> None:
        told = ", ".join(f"{name.lower()} {amount:g}" for name, amount in demand(self.options).items())
        nodes = sum(node["Alive"] for node in ray.nodes())
        message = f"Ray: {nodes} node(s), room for {self.room} trial(s) at once ({told} each)"
        if not self.room and self.own:
            raise InputError(f"run.resources: a trial is to have {told}, which this machine has not")
        if not self.room:
            message = f"Ray: a trial is to have {told}, which no node has; waiting for one that does"
        self.call.watcher.told(message)

    def _hand_out(self) -> None:
        if self._ends() or not self.waiting:
            return
        now, free = time.monotonic(), self._free()
        under_way = {u.place for u in (*self.waiting, *(r.unit for r in self.running.values()))}
        for unit in self.waiting[:]:
            if free > 0 and self.due.get(unit.task, 0) <= now and not self._waits(unit, under_way):
                self.waiting.remove(unit)
                self._start(unit)
                free -= 1

    def _free(self) -> int:
        """Count the tasks that may be handed out now."""
        limits, workers = self.call.limits, self.call.plan.sweep.run.workers
        self.room = room_for(self.options)
        free = (workers or self.room + SPARE * (not self.own)) - len(self.running)
        if limits.max_trials is None:
            return free
        to_begin = sum(not running.in_trial for running in self.running.values())
        return min(free, limits.max_trials - limits.begun - to_begin)

    def _waits(self, unit: Unit, under_way: AbstractSet[int]) -> bool:
        """Tell whether a pruner decides about the unit's point by a first seed that has not ended."""
        seed, seeds = self.items[unit.place][1], self.call.plan.sweep.search.seeds
        if self.call.search.looks_at != "epochs" or seed is None or seed == seeds[0]:
            return False
        return unit.place - seeds.index(seed) in under_way

    def _start(self, unit: Unit) -> None:
        taken = {running.number for running in self.running.values()}
        number = next(n for n in count() if n not in taken)
        handed = _Try(unit, f"{unit.task}#{next(self.names)}", number)
        (cell, seed), sweep = self.items[unit.place], self.call.plan.sweep
        told = f"{sweep.name}: " + (f"cell {cell.id}" if seed is None else f"{cell.spec.point}, seed {seed}")
        task = self.task.options(name=told, **self.options)
        self.running[task.remote(self.job, unit, handed.name, number, self.desk)] = handed

    def _look(self) -> None:
        """Hear what tasks say, and part from those that ended; what these said was said before."""
        if self.running:
            ended, _ = ray.wait(list(self.running), num_returns=len(self.running), timeout=LOOK)
        else:
            time.sleep(LOOK)
            ended = []
        by_name = {running.name: running for running in self.running.values()}
        for name, kind, *content in ray.get(self.desk.hear.remote()):
            self._hear(by_name.get(name), name, kind, content)
        for reference in ended:
            self._part(self.running.pop(reference), reference)
        if self.due and time.monotonic() - self.reclaimed > AGAIN:
            self._reclaim()

    def _hear(self, running: _Try | None, name: str, kind: str, content: Sequence[Any]) -> None:
        """Deal with a message; one of a task that was taken for lost is answered and no more."""
        limits, ends = self.call.limits, running is None or self.call.stopping.asked or self.fault is not None
        answer: Any = None
        if kind == BEGIN:
            answer = "stop" if ends else limits.may_begin(content[0])
        elif kind == REACHED:
            answer = ends or limits.reached()
        if answer is not None:
            self.desk.answer.remote(name, answer)
        if running is None:
            return
        if kind == BEGIN:
            running.in_trial = answer == "go"
        elif kind == TOLD:
            self._show(running, *content)
        elif kind == COUNT:
            limits.count(content[0], self.call.plan.sweep.run)
            running.in_trial = False
        elif kind == TAKE_BACK:
            limits.take_back()
            running.in_trial = False

    def _show(self, running: _Try, method: str, content: Sequence[Any]) -> None:
        if method == "trial_started":
            running.title, running.key = content[1], content[3]
        elif method == "trial_ended":
            running.key = None
        getattr(self.call.watcher, method)(*content)

    def _part(self, running: _Try, reference: Any) -> None:
        """Let a task go, and see whether its unit is to be handed out again."""
        try:
            end, code, message = ray.get(reference)
        except TaskCancelledError:
            end, code, message = STOPPED, 0, ""
        except RayError as error:
            self._lose(running, isinstance(error, NodeDiedError), f"its worker died: {first_sentence(error)}")
            return
        self.due.pop(running.unit.task, None)
        if end == STOPPED and not self.cancelled:
            self._lose(running, True, "it was told to end")
        elif end == FAULT:
            kind = {2: InputError, 3: PluginError}.get(code, StoreError)
            self.fault = self.fault or kind(message)
        elif end == HELD and self.call.patient:
            self.due[running.unit.task] = time.monotonic() + AGAIN
            self.waiting.append(running.unit)
        elif end in (HALTED, STOPPED):
            self.waiting.append(running.unit)

    def _lose(self, running: _Try, node: bool, reason: str) -> None:
        """End what a lost task left behind, and hand it out again; a trial that kills its workers failed."""
        limits, run, key = self.call.limits, self.call.plan.sweep.run, running.key
        self.desk.stop.remote(running.name)  # it may live where only the way to it is lost
        self.losses[running.unit.task] += 1
        node = node and self.losses[running.unit.task] <= LOSSES
        reason = "its node was lost" if node else reason
        if key is not None:
            self.call.watcher.trial_ended(running.number, running.title, "missing", reason, {})
        else:
            self.call.watcher.told(f"a task was lost before its trial began: {reason}")
        self._reclaim(running.unit.task, thorough=True)
        if node and running.in_trial:
            limits.take_back()
        elif not node and limits.count_death(key, run) and key is not None:
            self._give_up(key, f"its workers died {limits.deaths[key]} times, the last: {reason}")
        self.waiting.insert(0, running.unit)

    def _give_up(self, key: Key, reason: str) -> None:
        """Call a trial failed that was left to be carried on."""
        for record in self.call.tracker.records(self.call.plan.sweep.name):
            if (record.point, record.seed) == key and record.state == "missing":
                self.call.tracker.reopen(record.run_id).end("failed", reason, {})

    def _reclaim(self, task: str = "", thorough: bool = False) -> None:
        """End what workers that are gone held, and what a task of that name did."""
        search = self.call.search
        search.task = task
        try:
            for message in reclaim(search, self.call.tracker, thorough):
                self.call.watcher.told(message)
        finally:
            search.task, self.reclaimed = "", time.monotonic()

    def _stop(self) -> None:
        """Let tasks end after their epoch; those that have not begun need not."""
        self.cancelled = True
        ray.get(self.desk.stop.remote(""))
        for reference, running in self.running.items():
            if not running.in_trial:
                ray.cancel(reference)


def first_sentence(error: Exception) -> str:
    """Give the heart of what Ray says; of an error inside a task the error, which comes last."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1 if isinstance(error, RayTaskError) else 0].partition(". ")[0].strip().rstrip(".")
