"""`mmx report`: a fair comparison of what a sweep tried."""

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from mmx.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from mmx.report.content import Report
    from mmx.report.results import Results


def report(
    sweep: Annotated[str, typer.Argument(help="The sweep file, or the name of a sweep in the store.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value: those that `mmx run` was given.")
    ] = None,
    html: Annotated[bool, typer.Option("--html", help="One page with all figures.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="A line a figure; with --out a folder.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="Tables for booktabs.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Plain Markdown.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write there (csv: a folder), not to the screen.")] = None,
    score: Annotated[str | None, typer.Option(help="The score; the objective's without it.")] = None,
    target: Annotated[str, typer.Option(help="What goes missing: any, or a modality.")] = "any",
    max_trainable_params: Annotated[
        int | None, typer.Option(min=1, help="Compare only points that train at most so many.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Test all against this method (or strategy), not against the best.")
    ] = None,
    confidence: Annotated[float, typer.Option(help="Of intervals and tests, between 0.5 and 1.")] = 0.95,
    plugin: Annotated[
        list[Path] | None, typer.Option(help="A plugin file of a sweep that is named; may be repeated.")
    ] = None,
    store: Annotated[str | None, typer.Option(help="Address of the result store.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Compare what a sweep tried: tables, paired tests, warnings where the comparison is unfair.

    Example: mmx report sweep.yaml --html --out report.html
    """
    chosen = {"html": html, "csv": csv, "latex": latex, "markdown": markdown, "json": as_json}
    forms = [name for name, wanted in chosen.items() if wanted]
    if len(forms) > 1:
        raise InputError(f"--{forms[0]} and --{forms[1]} are two forms; ask for one at a time")
    if not 0.5 <= confidence < 1:
        raise InputError(f"--confidence {confidence:g} is not between 0.5 and 1; 0.95 is usual")
    from mmx.report.content import report_on

    results = _open(sweep, overrides or [], store, plugin or [])
    if not results.found:
        told = "give the overrides that `mmx run` had, if any; `mmx status` lists the sweeps of the store"
        raise InputError(f"'{results.name}' has no finished trial yet; {told}")
    if max_trainable_params is not None:
        results = results.restricted(max_trainable_params)
    made = report_on(results, score, target, confidence, against=against)
    _give(made, forms[0] if forms else "", out)
    return 0


def _open(sweep: str, overrides: Sequence[str], store: str | None, plugins: Sequence[Path]) -> "Results":
    """Find the sweep of a file, else the one of that name in the store."""
    path = Path(sweep)
    if path.suffix in (".yaml", ".yml"):
        return _of_file(path, overrides, store)
    if overrides:
        raise InputError(
            f"'{overrides[0]}' changes a sweep file; the sweep '{sweep}' in the store is as it was run"
        )
    return _of_name(sweep, store, plugins)


def _of_file(path: Path, overrides: Sequence[str], store: str | None) -> "Results":
    from mmx.cli.open import open_sweep
    from mmx.sweep import open_search, open_tracker, plan_sweep, settle, tracking_address
    from mmx.sweep.close import results_of

    plan = plan_sweep(*open_sweep(path, overrides), build=False)
    settle(plan, open_search(plan))
    tracker = open_tracker(plan.registry, tracking_address(plan.sweep, store), plan.sweep.tracker.name)
    return results_of(plan, tracker, tracker.records(plan.sweep.name))


def _of_name(name: str, store: str | None, plugins: Sequence[Path]) -> "Results":
    """Read what the sweep says of itself from its parent run; InputError where there is no such sweep."""
    from mmx.config import read_sweep
    from mmx.registry import Registry
    from mmx.report.results import Results, default_objective, task_of
    from mmx.runs import StoredRun
    from mmx.sweep import open_tracker, tracking_address

    registry, address = Registry.load(files=list(plugins)), tracking_address(None, store)
    tracker = open_tracker(registry, address)
    known = tracker.find_sweeps()
    if name not in known:
        raise InputError(f"'{name}' is no sweep file and no sweep of the store.{did_you_mean(name, known)}")
    with TemporaryDirectory() as folder:
        path = tracker.fetch(tracker.open_sweep(name, {}), "resolved.yaml", Path(folder))
        declared = read_sweep(path.read_text(encoding="utf-8"), f"{name}: resolved.yaml")
        plan = tracker.fetch(tracker.open_sweep(name, {}), "plan.json", Path(folder))
        points = {p["point"] for p in json.loads(plan.read_text(encoding="utf-8"))["points"]}
    # What the file no longer asks for does not count, as with the file itself.
    records = [r for r in tracker.records(name) if r.point in points]
    done = next((r for r in records if r.state == "done"), None)
    if done is None:
        raise InputError(f"'{name}' has no finished trial yet; `mmx status` tells how it stands")
    task = task_of(StoredRun(tracker, name, done), registry)
    objective = declared.search.objective or default_objective(task)
    return Results(name, declared.search, objective, tracker, registry, task, records)


def _give(report: "Report", form: str, out: Path | None) -> None:
    """Write a report in a form to a place; without either it is for the eyes of whoever sits there."""
    if form == "csv" and out is not None:
        from mmx.report.tidy import write_folder

        try:
            typer.echo(f"{len(write_folder(out, report))} tables in {out}")
        except OSError as error:
            raise InputError(f"--out '{out}' is no folder that can be written: {error.strerror}") from error
        return
    text = _text(report, form)
    if out is not None:
        try:
            out.write_text(text, encoding="utf-8")
        except OSError as error:
            raise InputError(f"--out '{out}' cannot be written: {error.strerror}") from error
        typer.echo(f"written: {out}")
        return
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console()
    if form == "" and console.is_terminal:
        console.print(Markdown(text))
    else:
        typer.echo(text)


def _text(report: "Report", form: str) -> str:
    """Write a report in a form that is one text."""
    if form == "html":
        from mmx.report.content import all_bands
        from mmx.report.page import html

        return html(report, all_bands(report))
    if form == "json":
        from mmx.report.content import as_data

        return json.dumps(as_data(report), indent=2)
    if form == "csv":
        from mmx.report.tidy import tidy

        return tidy(report)
    if form == "latex":
        from mmx.report.latex import latex

        return latex(report)
    from mmx.report.markdown import markdown

    return markdown(report)
