"""The driver: hands tasks out, answers them and sees them through."""

import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import ray
from optuna.trial import TrialState
from ray.exceptions import NodeDiedError, RayError, TaskCancelledError

from mmx.errors import InputError, MmxError, PluginError, Stopped, StoreError
from mmx.sweep.call import Call
from mmx.sweep.claims import FINISHED, POINT
from mmx.sweep.cluster.connection import check_stores, connected, first_sentence, open_desk, room_for
from mmx.sweep.cluster.job import Unit, demand, job_of, needs
from mmx.sweep.cluster.task import CALLS, FAULT, HALTED, HELD, STOPPED, work
from mmx.sweep.engine import items
from mmx.sweep.limits import Key
from mmx.sweep.reclaim import reclaim
from mmx.sweep.remote import BEGIN, COUNT, REACHED, TAKE_BACK, TOLD

LOOK = 0.1
"""Seconds between looks at the tasks."""
AGAIN = 5.0
"""Seconds after which a task that found its trial in another worker's hands is handed out again."""
SPARE = 1
"""Tasks above what a cluster has room for: they make an autoscaler act, and each costs an idle process."""
LOSSES = 5
"""Nodes that may be lost under a task before its trial is held to be the cause."""


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
