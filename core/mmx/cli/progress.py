"""Shows how a sweep goes: bars on a terminal, plain lines elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class SweepProgress:
    """A bar for the sweep and one for each worker's trial; each finished trial leaves a line."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = console.is_terminal
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[told]}"),
            console=console,
            transient=True,
        )
        self.started: dict[int, float] = {}
        self.trials: dict[int, TaskID] = {}
        self.done = 0
        self.total = 0

    def __enter__(self) -> "SweepProgress":
        if self.live:
            self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def sweep_started(self, total: int, done: int) -> None:
        """Show what there is to do."""
        self.done, self.total = done, total
        self.console.print(f"{total} trials: {done} done, {total - done} to run", highlight=False)
        self.sweep = self.bars.add_task("sweep", total=total, completed=done, told="")

    def told(self, message: str) -> None:
        """Leave a line."""
        self.console.print(message, markup=False, highlight=False)

    def trial_started(self, worker: int, title: str, epochs: int, key: tuple[str, int]) -> None:
        """Show a trial."""
        del key
        self.started[worker] = time.monotonic()
        self.trials[worker] = self.bars.add_task(f"{worker}: {title}", total=epochs, told="")

    def epoch_ended(self, worker: int, epoch: int, figures: dict[str, float]) -> None:
        """Show an epoch's figures."""
        shown = [
            f"{n} {v:.3f}" for n, v in figures.items() if n in ("train/loss", "val/accuracy", "val/loss")
        ]
        self.bars.update(self.trials[worker], completed=epoch + 1, told="  ".join(shown))

    def trial_ended(
        self, worker: int, title: str, state: str, reason: str, figures: dict[str, float]
    ) -> None:
        """Leave a line."""
        self.bars.remove_task(self.trials.pop(worker))
        self.done += state == "done"
        self.bars.update(self.sweep, completed=self.done)
        robust = [
            f"{n.removeprefix('summary/')} {v:.3f}"
            for n, v in figures.items()
            if n.startswith("summary/robust_")
        ]
        told = "  ".join([*robust[:1], *([reason] if reason else [])])
        seconds = time.monotonic() - self.started[worker]
        self.told(f"[{self.done}/{self.total}] {title}  {state}  {told}  {seconds:.1f} s")
