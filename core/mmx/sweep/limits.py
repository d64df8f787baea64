"""What ends a call before everything is done: limits, failures, a wish to stop. No number depends on it."""

import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Literal

from mmx.config import RunSpec

Key = tuple[str, int]
"""A point and a seed."""
Answer = Literal["go", "skip", "stop"]
DEATHS = 2
"""Workers that may die of one trial before it counts as failed."""


class Stopping:
    """Turns Ctrl-C (and SIGTERM, which schedulers send) into a wish that is looked at after each epoch.

    A second Ctrl-C stops at once, and lets stores know; a third one does not even wait for these.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Stopping":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.asked and number == signal.SIGINT:
            # Raised again, it could break off a write to a store half-way, with the store locked.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            raise KeyboardInterrupt
        self.asked = True


@dataclass
class Limits:
    """What ends a call early. One for all workers of a call: they ask it before each trial."""

    max_trials: int | None = None
    seconds: float | None = None
    fail_after: int | None = None
    """Failed trials after which no more begin."""
    started: float = field(default_factory=time.monotonic)
    begun: int = 0
    failures: int = 0
    failures_in_a_row: int = 0
    ended: bool = False
    """Whether a failure ended the call."""
    deaths: Counter[Key] = field(default_factory=Counter)

    def may_begin(self, key: Key) -> Answer:
        """Count a trial that is about to begin; `skip` where workers died of it, `stop` where no more may."""
        if self.deaths[key] >= DEATHS:
            return "skip"
        if self.reached():
            return "stop"
        self.begun += 1
        return "go"

    def take_back(self) -> None:
        """Count a trial not, since another worker was faster."""
        self.begun -= 1

    def reached(self) -> bool:
        """Tell whether no further trial may begin."""
        if self.ended or (self.max_trials is not None and self.begun >= self.max_trials):
            return True
        return self.seconds is not None and time.monotonic() - self.started >= self.seconds

    def count(self, state: str, run: RunSpec) -> None:
        """Take note of how a trial ended."""
        failed = state == "failed"
        self.failures += failed
        self.failures_in_a_row = self.failures_in_a_row + 1 if failed else 0
        self.ended |= failed and (
            run.on_error == "stop"
            or self.failures_in_a_row >= run.max_consecutive_failures
            or (self.fail_after is not None and self.failures >= self.fail_after)
        )

    def count_death(self, key: Key | None, run: RunSpec) -> bool:
        """Take note of a worker that died, and of its trial; tell whether that trial counts as failed."""
        if key is None:
            self.count("failed", run)
            return False
        self.deaths[key] += 1
        if self.deaths[key] >= DEATHS:
            self.count("failed", run)
            return True
        return False
