"""A worker's log: what it did and when, as plain lines in a file of its own."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from mmx.sweep.attempt import Watcher
from mmx.sweep.limits import Key


class Logged:
    """A watcher that writes down what it is told, and passes it on."""

    def __init__(self, inner: Watcher, file: TextIO) -> None:
        self.inner = inner
        self.file = file

    @classmethod
    def to(cls, inner: Watcher, path: Path) -> "Logged":
        """Write to a file, after what is there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        return cls(inner, path.open("a", encoding="utf-8"))

    def write(self, message: str) -> None:
        """Write a line; a disk that is full must not end a trial."""
        try:
            self.file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n")
            self.file.flush()
        except OSError:
            return

    def sweep_started(self, total: int, done: int) -> None:
        """Write and pass on."""
        self.write(f"{total} trials, {done} done")
        self.inner.sweep_started(total, done)

    def told(self, message: str) -> None:
        """Write and pass on."""
        self.write(message)
        self.inner.told(message)

    def trial_started(self, worker: int, title: str, epochs: int, key: Key) -> None:
        """Write and pass on."""
        self.write(f"{title} starts, {epochs} epochs; point {key[0]}, seed {key[1]}")
        self.inner.trial_started(worker, title, epochs, key)

    def epoch_ended(self, worker: int, epoch: int, figures: Mapping[str, float]) -> None:
        """Write and pass on."""
        self.write(f"epoch {epoch}: " + ", ".join(f"{n} {v:.4f}" for n, v in figures.items()))
        self.inner.epoch_ended(worker, epoch, dict(figures))

    def trial_ended(
        self, worker: int, title: str, state: str, reason: str, figures: Mapping[str, float]
    ) -> None:
        """Write and pass on."""
        self.write(f"{title} {state} {reason}".rstrip())
        self.inner.trial_ended(worker, title, state, reason, dict(figures))
