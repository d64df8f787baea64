"""What a sweep wants to run, and how each of it stands."""

from collections import Counter
from typing import Any

from mmx.contracts import TrialRecord
from mmx.report.standings import why_pruned
from mmx.sweep.plan import Cell, Plan
from mmx.sweep.tuning import budget

STATES = ("done", "missing", "failed", "running")


def plan_facts(plan: Plan, records: list[TrialRecord]) -> dict[str, Any]:
    """Give the plan as plain data."""
    points = point_states(plan, records)
    counted = Counter(p["state"] for p in points)
    return {"points": points, "counts": {state: counted.get(state, 0) for state in STATES}}


def point_states(plan: Plan, records: list[TrialRecord]) -> list[dict[str, Any]]:
    """List what the sweep wants to run, with the state of each (point, seed).

    Tuned points exist only once they have been drawn; the rest of a cell's budget is listed without a spec.
    Seeds that a pruned point was spared are not listed.
    """
    by_cell: dict[str, list[TrialRecord]] = {}
    for record in records:
        by_cell.setdefault(record.cell, []).append(record)
    listed: list[dict[str, Any]] = []
    for cell in plan.cells:
        own = by_cell.get(cell.id, [])
        listed += _tuned(plan, cell, own) if cell.raw.tune else _fixed(plan, cell, own)
    return listed


def _fixed(plan: Plan, cell: Cell, records: list[TrialRecord]) -> list[dict[str, Any]]:
    states = {r.seed: r.state for r in records if r.point == cell.spec.point}
    pruned = bool(why_pruned(r for r in records if r.point == cell.spec.point))
    row = {"point": cell.spec.point, "cell": cell.id}
    row |= {"method": cell.raw.method} if cell.raw.method else {}
    content = cell.spec.to_dict()
    return [
        {**row, "seed": seed, "state": states.get(seed, "missing"), "spec": {**content, "seed": seed}}
        for seed in plan.sweep.search.seeds
        if seed in states or not pruned
    ]


def _tuned(plan: Plan, cell: Cell, records: list[TrialRecord]) -> list[dict[str, Any]]:
    listed = []
    points = {r.point for r in records}
    spared = {p for p in points if why_pruned(r for r in records if r.point == p)}
    for seed in plan.sweep.search.seeds:
        drawn = [r for r in records if r.seed == seed]
        listed += [
            {"point": r.point, "seed": seed, "state": r.state, "cell": cell.id, "spec": dict(r.params)}
            for r in drawn
        ]
        left = budget(cell.raw.tune, plan.sweep.search.trials_per_cell)
        for _ in range(left - len({r.point for r in drawn} | spared)):
            row = {"point": f"{cell.id}/undrawn", "seed": seed, "state": "missing", "cell": cell.id}
            listed.append({**row, "spec": {**cell.spec.to_dict(), "seed": seed}})
    return listed
