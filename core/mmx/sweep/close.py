"""Brings a sweep's parent run up to date: figures, files, logs."""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mmx.contracts import Tracker, TrialLog
from mmx.report.page import write_page
from mmx.report.pareto import write_front
from mmx.report.standings import Standing, axes_of, parent_curves, standings, write_leaderboard
from mmx.sweep.artifacts import sweep_files
from mmx.sweep.facts import plan_facts
from mmx.sweep.places import log_folder, sweep_folder
from mmx.sweep.plan import Plan


@dataclass(frozen=True)
class Result:
    """How a call of `run` ended."""

    counts: Mapping[str, int]
    standings: list[Standing]
    objective: Mapping[str, str]


def close_sweep(plan: Plan, tracker: Tracker) -> Result:
    """Write the parent run's figures and files; what nothing needs any more is removed from disk."""
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
        if found and len(plan.objective) > 1:
            write_front(folder / "pareto.png", found, plan.objective)
            files += [folder / "pareto.png"]
        counts = facts["counts"]
        curves = parent_curves(tracker, found) if found else {}
        files += sorted(log_folder(plan.sweep).glob("*.log"))
        tracker.close_sweep(curves, files, axes, "failed" if counts["failed"] else "done")
    if counts["done"] == len(facts["points"]):
        for name in ("checkpoints", "phases"):
            shutil.rmtree(sweep_folder(plan.sweep) / name, ignore_errors=True)
    return Result(counts, found, plan.objective)


def keep_log(log: TrialLog, path: Path) -> None:
    """Hand a worker's log to the parent run."""
    if path.exists():
        log.artifact(path)
