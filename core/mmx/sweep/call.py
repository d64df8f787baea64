"""One call of `mmx run`: in this process, in several, or on a cluster."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from mmx.contracts import Tracker
from mmx.errors import StoreError
from mmx.sweep.attempt import Watcher
from mmx.sweep.devices import find_device
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
        count = run.workers or len(devices)
        if count == 1:
            self.run_here(devices[0])
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

    def run_here(self, device: str) -> None:
        """Be the only worker of this call."""
        log = log_file(self.plan.sweep, 0)
        watcher = self.watcher if isinstance(self.watcher, Logged) else Logged.to(self.watcher, log)
        engine = Engine(
            self.plan,
            self.tracker,
            self.search,
            find_device(device),
            watcher,
            self.limits,
            self.stopping,
            self.known,
            patient=self.patient,
        )
        engine.run()
