"""`mmx data`: datasets, what they hold, and how to get them."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    help="Datasets: what they hold and how to get them.\n\nExample: mmx data info digits",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("list")
def list_datasets(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> int:
    """List datasets.

    Example: mmx data list
    """
    from mmx.registry import Registry

    offers = [o for o in Registry.load().offers if o.kind == "dataset"]
    rows = [
        {"name": o.component.name, "distribution": o.distribution, "summary": o.component.summary}
        for o in offers
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return 0
    for row in rows:
        typer.echo(f"{row['name']:<12} {row['summary']} ({row['distribution']})")
    return 0


@app.command("info")
def info(
    name: Annotated[str, typer.Argument(help="A dataset's name.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Show a dataset's card.

    Example: mmx data info digits
    """
    from dataclasses import asdict

    from mmx.cli.plugins import describe
    from mmx.registry import Registry

    registry = Registry.load()
    facts: dict[str, Any] = describe(registry, "dataset", name)
    card = registry.load_class("dataset", name).card  # type: ignore[attr-defined]
    facts["card"] = asdict(card) if card else None
    if as_json:
        typer.echo(json.dumps(facts, indent=2, default=str))
        return 0
    typer.echo(f"{facts['name']}: {facts['summary']}")
    for key, value in (facts["card"] or {}).items():
        if value:
            typer.echo(f"  {key}: {value}")
    for option in facts["parameters"]:
        typer.echo(f"  option {option['name']}: {option['type']} = {option['default']}")
    return 0


@app.command("prepare")
def prepare(
    name: Annotated[str, typer.Argument(help="A dataset's name.")],
    root: Annotated[Path | None, typer.Option(help="Where the data goes; data/NAME by default.")] = None,
) -> int:
    """Download a dataset where that can be done, or say what to place where.

    Example: mmx data prepare avmnist --root data/avmnist
    """
    from mmx.registry import Registry

    cls = Registry.load().load_class("dataset", name)
    typer.echo(cls.prepare(root or Path("data") / name.rpartition(":")[2]))  # type: ignore[attr-defined]
    return 0
