"""`mmx plugins`: what can be used, from where, with which options."""

import json
from typing import Annotated, Any

import typer

from mmx.errors import InputError
from mmx.registry import KINDS, Offer, Registry

app = typer.Typer(
    help="What can be used, and from which package.\n\nExample: mmx plugins list --kind strategy",
    no_args_is_help=True,
    rich_markup_mode=None,
)
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
        table.add_column(column)
    for row in rows:
        table.add_row(*(str(row[c] or row["reason"] if c == "summary" else row[c]) for c in COLUMNS))
    Console(soft_wrap=True).print(table)
    return 0


def listing(registry: Registry, kind: str | None, show_all: bool) -> list[dict[str, Any]]:
    """Give the list's rows."""
    clashing = {(k, name): found for k, name, found in registry.clashes()}
    rows = []
    for offer in registry.offers:
        if kind in (None, offer.kind):
            found = clashing.get((offer.kind, offer.component.name))
            reason = f"offered by {', '.join(found)}; write distribution:name" if found else ""
            rows.append({**_facts(offer), "state": "clash" if found else "ok", "reason": reason})
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
    rows = [describe(registry, k, name) for k in _kinds_of(registry, name, kind)]
    if as_json:
        typer.echo(json.dumps(rows[0] if len(rows) == 1 else rows, indent=2, default=str))
        return 0
    for row in rows:
        typer.echo(f"{row['kind']} {row['name']}  ({row['distribution']} {row['version']}, {row['path']})")
        typer.echo(f"  {row['summary']}")
        for parameter in row["parameters"]:
            default = "required" if parameter["required"] else f"= {parameter['default']}"
            typer.echo(f"  {parameter['name']}: {parameter['type']} {default}")
        if row["paper"]:
            typer.echo(row["paper"])
    return 0


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
    found = options(registry.load_class(kind, name))
    return {
        **_facts(offer),
        "state": "ok",
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
