"""Where a sweep keeps things: its stores by their addresses, its folder on disk."""

import os
import re
from pathlib import Path

from mmx.config import SweepSpec
from mmx.contracts import Tracker
from mmx.registry import Registry
from mmx.registry.signature import construct
from mmx.sweep.plan import Plan
from mmx.sweep.spool import Spooling
from mmx.sweep.study import Search

DEFAULT_TRACKING = "sqlite:///mlflow.db"
DEFAULT_STUDY = "sqlite:///optuna.db"


def tracking_address(sweep: SweepSpec | None = None, store: str | None = None) -> str:
    """Find the result store: what was asked for, the sweep's, MLFLOW_TRACKING_URI, mlflow.db here."""
    own = sweep.store.tracking if sweep else ""
    return store or own or os.environ.get("MLFLOW_TRACKING_URI", "") or DEFAULT_TRACKING


def study_address(sweep: SweepSpec) -> str:
    """Find the search store."""
    return sweep.store.study or DEFAULT_STUDY


def open_tracker(registry: Registry, address: str, name: str = "mlflow") -> Tracker:
    """Open the result store."""
    return construct(registry.load_class("tracker", name), {"store": address}, {})


def open_search(plan: Plan, task: str = "") -> Search:
    """Open the search store."""
    return Search(plan.sweep, study_address(plan.sweep), plan.objective, task)


def open_stores(plan: Plan, task: str = "") -> tuple[Search, Spooling]:
    """Open both stores; what the result store cannot take is kept and sent later."""
    tracker = open_tracker(plan.registry, tracking_address(plan.sweep), plan.sweep.tracker.name)
    return open_search(plan, task), Spooling(tracker, spool_folder(plan.sweep))


def sweep_folder(sweep: SweepSpec) -> Path:
    """Give the folder of a sweep: checkpoints, phases, logs, unsent results."""
    return Path(sweep.run.folder) / re.sub(r"[^\w.@-]", "_", sweep.name)


def spool_folder(sweep: SweepSpec) -> Path:
    """Give the folder of results that could not be sent."""
    return sweep_folder(sweep) / "spool"


def spool_folders(sweep: SweepSpec) -> list[Path]:
    """Give the folders of results that could not be sent, of the sweep and of its forks."""
    own = sweep_folder(sweep)
    return [own / "spool", *sorted(own.parent.glob(f"{own.name}@*/spool"))]


def log_folder(sweep: SweepSpec) -> Path:
    """Give the folder of workers' logs."""
    return sweep_folder(sweep) / "logs"


def log_file(sweep: SweepSpec, worker: int | str) -> Path:
    """Give a worker's log."""
    return log_folder(sweep) / f"worker-{worker}.log"
