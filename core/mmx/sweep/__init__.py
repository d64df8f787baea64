"""Sweeps: plan, run, look."""

import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mmx.config import SweepSpec
from mmx.contracts import Tracker, TrialRecord
from mmx.errors import InputError
from mmx.registry import Registry
from mmx.registry.signature import construct
from mmx.sweep.artifacts import sweep_files
from mmx.sweep.engine import Engine, Limits, Watcher
from mmx.sweep.page import write_page
from mmx.sweep.parameters import flat_parameters
from mmx.sweep.plan import Plan, plan_sweep
from mmx.sweep.study import Search, budget
from mmx.sweep.summary import Standing, axes_of, parent_curves, standings, write_leaderboard

STATES = ("done", "missing", "failed", "running")
DEFAULT_TRACKING = "sqlite:///mlflow.db"
DEFAULT_STUDY = "sqlite:///optuna.db"


@dataclass(frozen=True)
class Result:
    """How a call of `run` ended."""

    counts: Mapping[str, int]
    standings: list[Standing]
    objective: Mapping[str, str]


def tracking_address(sweep: SweepSpec | None = None, store: str | None = None) -> str:
    """Find the result store: what was asked for, the sweep's, MLFLOW_TRACKING_URI, mlflow.db here."""
    own = sweep.store.tracking if sweep else ""
    return store or own or os.environ.get("MLFLOW_TRACKING_URI", "") or DEFAULT_TRACKING


def open_tracker(registry: Registry, address: str, name: str = "mlflow") -> Tracker:
    """Open the result store."""
    return construct(registry.load_class("tracker", name), {"store": address}, {})


def find_device(name: str) -> torch.device:
    """Give the device: `auto` is a GPU where there is one (InputError where the asked one is not there)."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device '{name}' cannot be used ({reason}); use auto, cpu or cuda:0") from error
    return device


def point_states(plan: Plan, records: list[TrialRecord]) -> list[dict[str, Any]]:
    """List what the sweep wants to run, with the state of each (point, seed).

    Tuned points exist only once they have been drawn; the rest of a cell's budget is listed without a spec.
    """
    known = {(r.point, r.seed): r.state for r in records}
    listed: list[dict[str, Any]] = []
    for cell in plan.cells:
        for seed in plan.sweep.search.seeds:
            if not cell.raw.tune:
                state = known.get((cell.spec.point, seed), "missing")
                row = {"point": cell.spec.point, "seed": seed, "state": state, "cell": cell.id}
                row |= {"method": cell.raw.method} if cell.raw.method else {}
                listed.append({**row, "spec": {**cell.spec.to_dict(), "seed": seed}})
                continue
            drawn = [r for r in records if r.cell == cell.id and r.seed == seed]
            listed += [
                {"point": r.point, "seed": seed, "state": r.state, "cell": cell.id, "spec": dict(r.params)}
                for r in drawn
            ]
            for _ in range(budget(cell.raw.tune, plan.sweep.search.trials_per_cell) - len(drawn)):
                row = {"point": f"{cell.id}/undrawn", "seed": seed, "state": "missing", "cell": cell.id}
                listed.append({**row, "spec": {**cell.spec.to_dict(), "seed": seed}})
    return listed


def plan_facts(plan: Plan, records: list[TrialRecord]) -> dict[str, Any]:
    """Give the plan as plain data."""
    points = point_states(plan, records)
    counted = Counter(p["state"] for p in points)
    return {"points": points, "counts": {state: counted.get(state, 0) for state in STATES}}


def run_sweep(
    plan: Plan, tracker: Tracker, device: torch.device, watcher: Watcher, limits: Limits, fresh: bool = False
) -> Result:
    """Run what is missing of a sweep and bring its parent run up to date."""
    sweep = plan.sweep
    search = Search(sweep, sweep.store.study or DEFAULT_STUDY, plan.objective)
    tracker.open_sweep(sweep.name, {"mmx.objective": next(iter(plan.objective))})
    if fresh:
        for record in tracker.records(sweep.name):
            tracker.retire(record)
        search.forget()
    facts = plan_facts(plan, tracker.records(sweep.name))
    watcher.sweep_started(len(facts["points"]), facts["counts"]["done"])
    keys = sorted({key for cell in plan.cells for key in flat_parameters(cell.spec)})
    keys += ["method"] if sweep.search.methods else []
    engine = Engine(plan, tracker, search, device, watcher, limits, tuple(keys))
    try:
        engine.run()
    finally:
        result = _close(plan, tracker)
    return result


def _close(plan: Plan, tracker: Tracker) -> Result:
    """Write the parent run's figures and files."""
    records = tracker.records(plan.sweep.name)
    facts = plan_facts(plan, records)
    own = {p["point"] for p in facts["points"]}
    # A method's name is no part of a point: what the file calls it now holds, whatever it was when it ran.
    labels = {cell.id: {"method": cell.raw.method} for cell in plan.cells if cell.raw.method}
    named = [replace(r, params={**r.params, **labels.get(r.cell, {})}) for r in records if r.point in own]
    found = standings(named, plan.objective)
    axes = axes_of(plan.sweep.search, found)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = sweep_files(folder, plan.sweep, facts, plan.registry)
        if found:
            write_leaderboard(folder / "leaderboard.csv", found, axes)
            write_page(folder / "report.html", plan.sweep, next(iter(plan.objective)), tracker, found)
            files += [folder / "leaderboard.csv", folder / "report.html"]
        counts = facts["counts"]
        curves = parent_curves(tracker, found) if found else {}
        tracker.close_sweep(curves, files, axes, "failed" if counts["failed"] else "done")
    return Result(counts, found, plan.objective)


__all__ = [
    "Engine",
    "Limits",
    "Plan",
    "Result",
    "Watcher",
    "find_device",
    "open_tracker",
    "plan_facts",
    "plan_sweep",
    "run_sweep",
    "standings",
    "tracking_address",
]
