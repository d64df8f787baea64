"""`mmx status`: how a sweep stands."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mmx.contracts import TrialRecord
    from mmx.report.standings import Standing


def status(
    sweep: Annotated[
        Path | None, typer.Argument(help="The sweep file; all sweeps of the store without it.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value: those that `mmx run` was given.")
    ] = None,
    store: Annotated[str | None, typer.Option(help="Address of the result store.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Count a sweep's trials, show the best (the Pareto front of two objectives) and who is at work.

    Example: mmx status sweep.yaml
    """
    facts = [_sweep_facts(sweep, overrides or [], store)] if sweep else _store_facts(store)
    if as_json:
        typer.echo(json.dumps(facts[0] if sweep else facts, indent=2))
        return 0
    for fact in facts:
        _show(fact)
    if not facts:
        typer.echo("no sweeps in this store; `mmx run sweep.yaml` starts one")
    return 0


def _sweep_facts(path: Path, overrides: Sequence[str], store: str | None) -> dict[str, Any]:
    """Give a sweep's counts and best, and where there are any its front and its workers."""
    from mmx.cli.open import open_plan
    from mmx.report.pareto import front
    from mmx.sweep import open_search, open_tracker, plan_facts, settle, standings, tracking_address

    plan = open_plan(path, overrides)
    settle(plan, open_search(plan))
    tracker = open_tracker(plan.registry, tracking_address(plan.sweep, store), plan.sweep.tracker.name)
    records = tracker.records(plan.sweep.name)
    found = standings(records, plan.objective)
    facts = {
        "sweep": plan.sweep.name,
        "counts": plan_facts(plan, records)["counts"],
        "best": _point(found[0], plan.objective) if found else None,
    }
    if len(plan.objective) > 1:
        facts["front"] = [_point(s, plan.objective) for s in front(found, plan.objective)]
    return facts | _workers(records)


def _store_facts(store: str | None) -> list[dict[str, Any]]:
    from mmx.registry import Registry
    from mmx.sweep import STATES, open_tracker, tracking_address

    tracker = open_tracker(Registry.load(), tracking_address(None, store))
    facts = []
    for name in tracker.find_sweeps():
        records = tracker.records(name)
        counted = Counter(r.state for r in records)
        counts = {s: counted.get(s, 0) for s in STATES}
        facts.append({"sweep": name, "counts": counts, "best": None} | _workers(records))
    return facts


def _point(standing: "Standing", objective: Mapping[str, str]) -> dict[str, Any]:
    """Give a point with its figures from the test split, None where it has none; and why it was pruned."""
    from mmx.report.drawing import method_of
    from mmx.report.standings import why_pruned

    pruned = why_pruned(standing.records)
    means = {figure: standing.mean(figure) for figure in objective}
    return {
        "point": standing.point,
        "strategy": method_of(standing),
        "seeds": standing.seeds,
        "figures": {figure: None if isnan(value) else value for figure, value in means.items()},
        **({"pruned": pruned} if pruned else {}),
    }


def _workers(records: Sequence["TrialRecord"]) -> dict[str, Any]:
    """Give who runs what, and who should and is gone; nothing where nothing runs."""
    from mmx.worker import is_gone

    found = [
        {**_name(r.worker), "point": r.point, "seed": r.seed, "gone": is_gone(r.worker)}
        for r in records
        if r.state == "running"
    ]
    return {"workers": found} if found else {}


def _name(worker: str) -> dict[str, Any]:
    """Split a worker's name into host:pid and the start of its process, None where it does not tell."""
    host, _, rest = worker.partition(":")
    number, _, start = rest.partition(":")
    try:
        since = datetime.fromtimestamp(float(start), UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        since = None
    return {"worker": f"{host}:{number}" if number else host or "unknown", "since": since}


def _show(fact: Mapping[str, Any]) -> None:
    """Print one sweep."""
    counts = ", ".join(f"{n} {state}" for state, n in fact["counts"].items() if n)
    typer.echo(f"{fact['sweep']}: {counts or 'nothing yet'}")
    if fact.get("front"):
        _show_front(fact["front"])
    elif fact["best"]:
        told = ", ".join(f"{name} {_told(value)}" for name, value in fact["best"]["figures"].items())
        told += f"; {fact['best']['pruned']}" if "pruned" in fact["best"] else ""
        typer.echo(f"  best {fact['best']['point']} ({fact['best']['strategy']}): {told}")
    for w in fact.get("workers", ()):
        since = f" (since {w['since']})" if w["since"] else ""
        state = "is gone; `mmx run` takes over" if w["gone"] else "runs"
        typer.echo(f"  worker {w['worker']}{since} {state} {w['point']}, seed {w['seed']}")


def _show_front(points: Sequence[Mapping[str, Any]]) -> None:
    """Print the points that no other point beats."""
    from rich.console import Console
    from rich.table import Table

    title = "Pareto front (picked on validation; figures from test)"
    table = Table(title=title, box=None, title_justify="left")
    for column in ("point", "strategy", "seeds", *points[0]["figures"]):
        table.add_column(column, justify="left" if column in ("point", "strategy") else "right")
    for p in points:
        table.add_row(p["point"], p["strategy"], str(p["seeds"]), *map(_told, p["figures"].values()))
    Console(soft_wrap=True).print(table)


def _told(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4f}"
