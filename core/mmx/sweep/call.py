"""One call of `mmx run`: in this process, in several, or on a cluster."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from mmx.contracts import Tracker
from mmx.errors import StoreError
from mmx.sweep.attempt import Watcher
from mmx.sweep.devices import devices_of, find_device, helpers_of
from mmx.sweep.engine import Engine, Known
from mmx.sweep.launch import Crew
from mmx.sweep.limits import Limits, Stopping
from mmx.sweep.log import Logged
from mmx.sweep.places import log_file
from mmx.sweep.plan import Plan
from mmx.sweep.study import Search


@dataclass
class Call:
    """What a call has at hand."""

    plan: Plan
    tracker: Tracker
    search: Search
    watcher: Watcher
    limits: Limits
    known: Known
    stopping: Stopping = field(default_factory=Stopping)
    patient: bool = True
    """Whether to wait for what workers of other calls hold, to take over should they die."""

    def run(self, devices: Sequence[str]) -> None:
        """Run what is missing, by the executor that the sweep names."""
        run = self.plan.sweep.run
        if run.executor == "ray":
            from mmx.sweep.cluster import run_on_ray

            run_on_ray(self, devices)
            return
        count = run.workers or max(1, len(devices) // run.processes_per_trial)
        if count == 1:
            self.run_here(devices)
            return
        crew = Crew(
            self.plan,
            self.tracker,
            self.search,
            devices,
            self.watcher,
            self.limits,
            self.stopping,
            self.known,
        )
        crew.run(count)
        if crew.fault:
            raise StoreError(crew.fault)

    def run_here(self, devices: Sequence[str]) -> None:
        """Be the only worker of this call."""
        names = devices_of(0, devices, self.plan.sweep.run.processes_per_trial)
        log = log_file(self.plan.sweep, 0)
        watcher = self.watcher if isinstance(self.watcher, Logged) else Logged.to(self.watcher, log)
        engine = Engine(
            self.plan,
            self.tracker,
            self.search,
            find_device(names.split(",")[0]),
            watcher,
            self.limits,
            self.stopping,
            self.known,
            patient=self.patient,
            helpers=helpers_of(self.plan.sweep, names),
        )
        engine.run()
