"""`mmx run`: start or continue a sweep."""

import json
import math
import os
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmx.errors import InputError

if TYPE_CHECKING:
    from mmx.sweep import Limits, Plan, Result

DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")
WIDE = 200
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def run(
    sweep: Annotated[Path, typer.Argument(help="The sweep file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value: change a key of the file.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="List the points and their cost; run nothing.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda:0, or several: cuda:0,cuda:1.")] = "auto",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that run trials side by side.")
    ] = None,
    executor: Annotated[str | None, typer.Option(help="local or ray.")] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="A Ray cluster that is there (auto, host:port); else a local one.")
    ] = None,
    store: Annotated[str | None, typer.Option(help="Address of the result store.")] = None,
    max_trials: Annotated[int | None, typer.Option(min=0, help="Run at most so many new trials.")] = None,
    timeout: Annotated[str | None, typer.Option(help="Begin no trial after this time: 30m, 4h.")] = None,
    fail_after: Annotated[
        int | None, typer.Option(min=1, help="Begin no trial after so many failed.")
    ] = None,
    retry_failed: Annotated[int | None, typer.Option(min=0, help="Tries more for a failed trial.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run everything again from the start.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Look nothing up on a hub.")] = False,
    strict_plugins: Annotated[bool, typer.Option("--strict-plugins", help="Refuse broken plugins.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Start or continue a sweep: done trials are skipped, failed ones tried again.

    Example: mmx run sweep.yaml training.epochs=5 --max-trials 3
    """
    seconds = parse_duration(timeout) if timeout else None
    if offline:
        os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    from rich.console import Console

    from mmx.cli.open import open_plan

    given = list(overrides or [])
    options = {"retry_failed": retry_failed, "workers": workers, "executor": executor}
    given += [f"run.{name}={value}" for name, value in options.items() if value is not None]
    if store is not None:
        given.append(f"store.tracking={store}")
    if ray_address:
        os.environ["RAY_ADDRESS"] = ray_address
    planned = open_plan(sweep, given, strict_plugins)
    from mmx.sweep import Limits, open_tracker, tracking_address

    file = sys.stderr if as_json else sys.stdout
    # A log has room; in a terminal the table fits the window.
    console = Console(file=file, soft_wrap=True, width=None if file.isatty() else WIDE)
    address = tracking_address(planned.sweep, store)
    tracker = open_tracker(planned.registry, address, planned.sweep.tracker.name)
    if plan:
        find_fork(planned, console)
        show_plan(planned, tracker.records(planned.sweep.name), console, as_json)
        return 0
    limits = Limits(max_trials, seconds, fail_after)
    result = _execute(planned, tracker, device, console, limits, fresh)
    show_result(planned, result, console, as_json)
    if not as_json:
        show_link(planned.sweep.name, tracker, address, console)
    return 1 if result.counts["failed"] else 0


def _execute(
    planned: "Plan",
    tracker: Any,
    device: str,
    console: Any,
    limits: "Limits",
    fresh: bool,
) -> "Result":
    from mmx.cli.progress import SweepProgress
    from mmx.sweep import run_sweep

    with SweepProgress(console) as progress:
        return run_sweep(planned, tracker, device, progress, limits, fresh)


def find_fork(planned: "Plan", console: Any) -> None:
    """Name the plan by the sweep or fork that it belongs to, and tell of a fork."""
    from mmx.sweep import open_search, settle, told

    different = settle(planned, open_search(planned))
    if different:
        console.print(told(different, planned.sweep.name), highlight=False)


def show_plan(planned: "Plan", records: list[Any], console: Any, as_json: bool) -> None:
    """Print what would run."""
    from mmx.sweep import plan_facts
    from mmx.sweep.estimate import seconds_left

    facts = plan_facts(planned, records)
    if as_json:
        cost = {cell: {"trainable": t, "total": n} for cell, (t, n) in planned.parameters.items()}
        told = {**facts, "parameters": cost, "seconds_left": seconds_left(planned, records)}
        typer.echo(json.dumps(told, indent=2))
        return
    from rich.table import Table

    table = Table(title=planned.sweep.name, box=None)
    for column in ("point", "seed", "state", "strategy", "adapter", "trainable", "total"):
        table.add_column(column, justify="right" if column in ("trainable", "total") else "left")
    for row in facts["points"]:
        spec = row["spec"]
        named = spec["strategy"]["name"] if isinstance(spec["strategy"], dict) else spec["strategy"]
        strategy = row.get("method", named)
        sizes = planned.parameters.get(row.get("cell", ""), (0, 0))
        cells = (f"{n:,}" if n else "" for n in sizes)
        table.add_row(row["point"], str(row["seed"]), row["state"], strategy, _adapter(spec), *cells)
    console.print(table)
    counts = ", ".join(f"{n} {state}" for state, n in facts["counts"].items() if n)
    console.print(f"{len(facts['points'])} trials: {counts}", highlight=False)
    left = seconds_left(planned, records)
    console.print(f"about {left / 60:.1f} minutes to run, one trial after another", highlight=False)


def _adapter(spec: dict[str, Any]) -> str:
    if "adapters" not in spec:
        return str(spec.get("adapter", ""))
    told = {f"{a['name']} r{a['rank']}" if "rank" in a else a["name"] for a in spec["adapters"].values()}
    return ", ".join(sorted(told))


def show_result(planned: "Plan", result: "Result", console: Any, as_json: bool) -> None:
    """Print the leaderboard."""
    from mmx.report.standings import axes_of

    figures = [next(iter(result.objective)), "summary/clean", "summary/worst"]
    figures += ["cost/trainable_params", "cost/train_seconds"]
    axes = axes_of(planned.sweep.search, result.standings)
    rows = [
        {"point": s.point, "seeds": s.seeds, **{a: s.params.get(a, "none") for a in axes},
         **{f: None if math.isnan(s.mean(f)) else s.mean(f) for f in figures}, "pruned": s.pruned}
        for s in result.standings
    ]  # fmt: skip
    if as_json:
        typer.echo(
            json.dumps({"sweep": planned.sweep.name, "counts": result.counts, "leaderboard": rows}, indent=2)
        )
        return
    from rich.table import Table

    table = Table(
        title=f"{planned.sweep.name} (best first, picked on validation; figures from test)", box=None
    )
    for column in [*axes, "seeds", *figures]:
        told = column in axes
        table.add_column(column.split("/")[-1], justify="left" if told else "right", no_wrap=told)
    if any(s.pruned for s in result.standings):
        table.add_column("pruned")
    for row, s in zip(rows, result.standings, strict=True):
        told_figures = [s.told(f) if s.values(f) else "–" for f in figures]
        table.add_row(*(short(row[a]) for a in axes), str(row["seeds"]), *told_figures, s.pruned and "yes")
    console.print(table)
    counts = ", ".join(f"{n} {state}" for state, n in result.counts.items() if n)
    console.print(counts, highlight=False)


def short(value: Any) -> str:
    """Write a parameter with as many digits as a reader wants."""
    try:
        return f"{float(value):.4g}" if "." in str(value) else str(value)
    except ValueError:
        return str(value)


def show_link(name: str, tracker: Any, address: str, console: Any) -> None:
    """Print where the robustness curves are to be seen: a server's page, or the command that starts one."""
    from mmx.config.address import without_login

    shown, page = without_login(address), tracker.page(name)
    if not shown.startswith(("http://", "https://")):
        option = "" if shown == "sqlite:///mlflow.db" else f" --store {shlex.quote(shown)}"
        console.print(f"Look: mmx ui{option}, then http://127.0.0.1:5000{page}", highlight=False)
    elif page:
        console.print(f"Look: {shown.rstrip('/')}{page}", highlight=False)
    if hint := tracker.hint(name):
        console.print(hint, highlight=False)


def parse_duration(text: str) -> float:
    """Turn 90, 30m or 4h into seconds (InputError otherwise)."""
    match = DURATION.fullmatch(text.strip())
    if match is None:
        raise InputError(f"--timeout '{text}' is no time; write 90, 30m or 4h")
    return float(match[1]) * SECONDS[match[2]]
