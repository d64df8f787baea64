"""`mmx status`: how a sweep stands."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def status(
    sweep: Annotated[
        Path | None, typer.Argument(help="The sweep file; all sweeps of the store without it.")
    ] = None,
    store: Annotated[str | None, typer.Option(help="Address of the result store.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Count a sweep's trials and show the best.

    Example: mmx status sweep.yaml
    """
    facts = _sweep_facts(sweep, store) if sweep else _store_facts(store)
    if as_json:
        typer.echo(json.dumps(facts[0] if sweep else facts, indent=2))
        return 0
    for fact in facts:
        counts = ", ".join(f"{n} {state}" for state, n in fact["counts"].items() if n)
        typer.echo(f"{fact['sweep']}: {counts or 'nothing yet'}")
        if fact["best"]:
            value = ", ".join(f"{k} {v:.4f}" for k, v in fact["best"]["figures"].items())
            typer.echo(f"  best {fact['best']['point']} ({fact['best']['strategy']}): {value}")
    if not facts:
        typer.echo("no sweeps in this store; `mmx run sweep.yaml` starts one")
    return 0


def _sweep_facts(path: Path, store: str | None) -> list[dict[str, Any]]:
    from mmx.cli.open import open_plan
    from mmx.sweep import open_tracker, plan_facts, tracking_address

    plan = open_plan(path)
    tracker = open_tracker(plan.registry, tracking_address(plan.sweep, store), plan.sweep.tracker.name)
    records = tracker.records(plan.sweep.name)
    counts = plan_facts(plan, records)["counts"]
    return [{"sweep": plan.sweep.name, "counts": counts, "best": _best(records, plan.objective)}]


def _store_facts(store: str | None) -> list[dict[str, Any]]:
    from collections import Counter

    from mmx.registry import Registry
    from mmx.sweep import STATES, open_tracker, tracking_address

    tracker = open_tracker(Registry.load(), tracking_address(None, store))
    facts = []
    for name in tracker.find_sweeps():
        counted = Counter(r.state for r in tracker.records(name))
        facts.append({"sweep": name, "counts": {s: counted.get(s, 0) for s in STATES}, "best": None})
    return facts


def _best(records: list[Any], objective: dict[str, str]) -> dict[str, Any] | None:
    from mmx.sweep import standings

    found = standings(records, objective)
    if not found:
        return None
    best = found[0]
    return {
        "point": best.point,
        "strategy": best.params.get("method", best.params["strategy"]),
        "seeds": best.seeds,
        "figures": {figure: best.mean(figure) for figure in objective},
    }
