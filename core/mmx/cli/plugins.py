"""`mmx plugins`: what can be used, from where, with which options."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from mmx.cli import new_plugin
from mmx.errors import InputError, PluginError
from mmx.registry import KINDS, Observer, Offer, Registry, import_class

app = typer.Typer(
    help="What can be used, and from which package.\n\nExample: mmx plugins list --kind strategy",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.command("new")(new_plugin.new)
COLUMNS = ("name", "kind", "distribution", "version", "state", "summary")


@app.command("list")
def list_plugins(
    kind: Annotated[str | None, typer.Option(help=f"One of {', '.join(KINDS)}.")] = None,
    show_all: Annotated[bool, typer.Option("--all", help="Show what is disabled, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """List components; problems are always shown.

    Example: mmx plugins list --kind strategy
    """
    if kind is not None and kind not in KINDS:
        from mmx.errors import did_you_mean

        raise InputError(f"--kind '{kind}' is no kind.{did_you_mean(kind, KINDS)}")
    rows = listing(Registry.load(), kind, show_all)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    for column in COLUMNS:
        table.add_column(column, no_wrap=column != "summary")  # names are for copying
    for row in rows:
        told = "; ".join(text for text in (row["summary"], row["reason"]) if text)
        table.add_row(*(told if column == "summary" else str(row[column]) for column in COLUMNS))
    Console(soft_wrap=True).print(table)
    return 0


def listing(registry: Registry, kind: str | None, show_all: bool) -> list[dict[str, Any]]:
    """Give the list's rows."""
    clashing = {(k, name): found for k, name, found in registry.clashes()}
    rows = []
    for offer in registry.offers:
        if kind in (None, offer.kind):
            rows.append({**_facts(offer), **_state(offer)})
            found = clashing.get((offer.kind, offer.component.name))
            if found:
                reason = f"offered by {', '.join(found)}; write distribution:name"
                rows[-1] |= {"state": "clash", "reason": reason}
    rows += [_observer_facts(o) for o in registry.observers if kind is None]
    for problem in registry.problems:
        if problem.state == "broken" or show_all:
            rows.append(
                {
                    "name": problem.name,
                    "kind": "plugin",
                    "distribution": problem.distribution,
                    "version": problem.version,
                    "summary": "",
                    "state": problem.state,
                    "reason": problem.reason,
                }
            )
    return sorted(rows, key=lambda r: (r["kind"], r["name"], r["distribution"]))


def _facts(offer: Offer) -> dict[str, Any]:
    component = offer.component
    return {
        "name": component.name,
        "kind": offer.kind,
        "distribution": offer.distribution,
        "version": offer.version,
        "summary": component.summary,
    }


def _state(offer: Offer) -> dict[str, str]:
    """Tell whether a component can be used here: one whose library is not installed is disabled."""
    return {"state": "disabled" if offer.lack else "ok", "reason": offer.lack}


def _observer_facts(observer: Observer) -> dict[str, Any]:
    return {
        "name": observer.name,
        "kind": "observer",
        "distribution": observer.distribution,
        "version": observer.version,
        "summary": f"offers no component; has {', '.join(observer.hooks)}",
        "state": "ok",
        "reason": "",
    }


def _observers(registry: Registry, name: str, kind: str | None) -> list[Observer]:
    """Find plugins that only observe, by their own name or their distribution's."""
    return [o for o in registry.observers if kind is None and name in (o.name, o.distribution)]


@app.command("info")
def info(
    name: Annotated[str, typer.Argument(help="A component's name, or distribution:name.")],
    kind: Annotated[str | None, typer.Option(help="Its kind, where several kinds have the name.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Show where a component comes from and which options it takes.

    Example: mmx plugins info mask_token
    """
    registry = Registry.load()
    watching = [
        {**_observer_facts(o), "path": "", "parameters": [], "paper": ""}
        for o in _observers(registry, name, kind)
    ]
    rows = watching or [describe(registry, k, name) for k in _kinds_of(registry, name, kind)]
    if as_json:
        typer.echo(json.dumps(rows[0] if len(rows) == 1 else rows, indent=2, default=str))
        return 0
    for row in rows:
        place = f", {row['path']}" if row["path"] else ""
        typer.echo(f"{row['kind']} {row['name']}  ({row['distribution']} {row['version']}{place})")
        typer.echo(f"  {row['summary']}")
        if row["reason"]:
            typer.echo(f"  {row['reason']}")
        for parameter in row["parameters"]:
            default = "required" if parameter["required"] else f"= {parameter['default']}"
            typer.echo(f"  {parameter['name']}: {parameter['type']} {default}")
        if row["paper"]:
            typer.echo(row["paper"])
    return 0


@app.command("check")
def check(
    name: Annotated[str, typer.Argument(help="A component, distribution:component, or a distribution.")],
    kind: Annotated[
        str | None, typer.Option(help="The component's kind, where several kinds have it.")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="A one-off plugin file that is to be loaded.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Try the laws of the conformance kit; exit 1 where one is broken that is not declared to be.

    Example: mmx plugins check mask_token
    """
    registry = Registry.load(files=[file] if file else [])
    offers = _offers_of(registry, name, kind)
    rows = [row for offer in offers for row in _verdicts(registry, offer, quiet=as_json)]
    counts = Counter(row["state"] for row in rows)
    if as_json:
        told = {state: counts[state] for state in ("passed", "failed", "skipped", "expected")}
        typer.echo(json.dumps({"run": len(rows), **told, "checks": rows}, indent=2))
    elif not offers:
        typer.echo(f"'{name}' only observes and offers no component: there are no laws to try")
    else:
        told_counts = ", ".join(f"{n} {_TOLD.get(state, state)}" for state, n in counts.items())
        typer.echo(f"{len(rows)} laws tried on {len(offers)} component(s): {told_counts}")
    return 1 if counts["failed"] else 0


_TOLD = {"expected": "broken as declared"}


def _offers_of(registry: Registry, name: str, kind: str | None) -> list[Offer]:
    """Find what a name means: all that a distribution offers, or a component (of every kind that has it)."""
    own = [o for o in registry.offers if o.distribution == name and kind in (None, o.kind)]
    broken = [p for p in registry.problems if p.distribution == name]
    if broken:
        raise PluginError(f"plugin '{name}' is {broken[0].state}: {broken[0].reason}")
    if not own and _observers(registry, name, kind):
        return []
    return own or [registry.find(k, name) for k in _kinds_of(registry, name, kind)]


def _verdicts(registry: Registry, offer: Offer, quiet: bool) -> Iterator[dict[str, str]]:
    """Try the laws of a component, and show each as it is found."""
    from mmx.testing import cases_of

    if not quiet:
        typer.echo(f"{offer.kind} {offer.component.name} ({offer.distribution} {offer.version})")
    for case in cases_of(registry, offer):
        verdict = case.verdict()
        law = case.law.__name__
        if not quiet:
            reason = f": {verdict.reason}" if verdict.reason else ""
            typer.echo(f"  {_TOLD.get(verdict.state, verdict.state):<8} {law.replace('_', ' ')}{reason}")
        yield {"kind": offer.kind, "name": offer.component.name, "law": law, **vars(verdict)}


def _kinds_of(registry: Registry, name: str, kind: str | None) -> list[str]:
    bare = name.rpartition(":")[2]
    kinds = [k for k in KINDS if bare in registry.names(k) and kind in (None, k)]
    if not kinds:
        from mmx.errors import did_you_mean

        known = {n for k in KINDS if kind in (None, k) for n in registry.names(k)}
        raise InputError(f"no component '{name}'.{did_you_mean(bare, known)}")
    return kinds


def describe(registry: Registry, kind: str, name: str) -> dict[str, Any]:
    """Give a component's facts, its options read off the constructor."""
    from mmx.registry.signature import REQUIRED, options

    offer = registry.find(kind, name)
    try:
        found = options(import_class(offer))
    except PluginError:
        if not offer.lack:
            raise
        found = {}  # they are read off the class, which cannot be imported without the library
    return {
        **_facts(offer),
        **_state(offer),
        "path": offer.component.path,
        "parameters": [
            {
                "name": o.name,
                "type": o.type_name,
                "required": o.default is REQUIRED,
                "default": None if o.default is REQUIRED else o.default,
            }
            for o in found.values()
        ],
        "paper": offer.component.paper,
    }
