"""Brings a sweep's parent run up to date: how it was made, figures, files, logs."""

import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmx.contracts import Tracker, TrialLog, TrialRecord
from mmx.report.files import write_report
from mmx.report.results import Results
from mmx.report.standings import Standing, axes_of, parent_curves, write_leaderboard
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


def results_of(plan: Plan, tracker: Tracker, records: Sequence[TrialRecord]) -> Results:
    """Gather what a sweep's records say of the points that its file holds now."""
    own = {p["point"] for p in plan_facts(plan, list(records))["points"]}
    # A method's name is no part of a point: what the file calls it now holds, whatever it was when it ran.
    labels = {cell.id: {"method": cell.raw.method} for cell in plan.cells if cell.raw.method}
    named = [replace(r, params={**r.params, **labels.get(r.cell, {})}) for r in records if r.point in own]
    task = plan.bench.dataset(plan.cells[0].spec.dataset).task
    sweep = plan.sweep
    return Results(sweep.name, sweep.search, plan.objective, tracker, plan.registry, task, named)


def describe_sweep(plan: Plan, parent: TrialLog, facts: Mapping[str, Any]) -> None:
    """Write how the sweep is made before anything runs, for who asks meanwhile, or after it was killed."""
    with tempfile.TemporaryDirectory() as name:
        for path in sweep_files(Path(name), plan.sweep, facts, plan.registry):
            parent.artifact(path)


def close_sweep(plan: Plan, tracker: Tracker) -> Result:
    """Write the parent run's figures and files; what nothing needs any more is removed from disk."""
    records = tracker.records(plan.sweep.name)
    facts = plan_facts(plan, records)
    results = results_of(plan, tracker, records)
    found = results.found
    axes = axes_of(plan.sweep.search, found)
    # The view averages over seeds: what is tuned would leave one run a group.
    grouped = axes_of(replace(plan.sweep.search, tune={}), found)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = sweep_files(folder, plan.sweep, facts, plan.registry)
        if found:
            write_leaderboard(folder / "leaderboard.csv", found, axes)
            files.append(folder / "leaderboard.csv")
            files += _draw(folder, results) if plan.sweep.run.plots else []
        counts = facts["counts"]
        curves = parent_curves(tracker, found) if found else {}
        files += sorted(log_folder(plan.sweep).glob("*.log"))
        tracker.close_sweep(curves, files, grouped, "failed" if counts["failed"] else "done")
    if counts["done"] == len(facts["points"]):
        for name in ("checkpoints", "phases"):
            shutil.rmtree(sweep_folder(plan.sweep) / name, ignore_errors=True)
    return Result(counts, found, plan.objective)


def _draw(folder: Path, results: Results) -> list[Path]:
    """Write the page and the plots. All numbers are in the store by now, so no fault here ends a sweep."""
    try:
        return write_report(folder, results)
    except Exception as error:  # noqa: BLE001 whatever it is, the sweep is done
        told = f"the report of '{results.name}' could not be drawn ({type(error).__name__}: {error})"
        warnings.warn(f"{told}; `mmx report {results.name}` tries again", stacklevel=2)
        return [path for path in folder.iterdir() if path.suffix in (".html", ".png")]


def keep_log(log: TrialLog, path: Path) -> None:
    """Hand a worker's log to the parent run."""
    if path.exists():
        log.artifact(path)
