"""`mmx export`: a run's model as a folder that stands alone."""

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[str, typer.Argument(help="A trial: its run id, the beginning of it, or its title.")],
    folder: Annotated[Path, typer.Argument(help="Where to write; empty, or not there yet.")],
    merge: Annotated[
        bool, typer.Option("--merge/--no-merge", help="Write adapters into plain weights where they can be.")
    ] = True,
    register: Annotated[
        str | None, typer.Option(help="Also make it a version of this model in the store's registry.")
    ] = None,
    plugin: Annotated[
        list[Path] | None, typer.Option(help="A plugin file that the sweep names; may be repeated.")
    ] = None,
    store: Annotated[str | None, typer.Option(help="Address of the result store.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Write a finished run's model as an MLflow model that takes rows which lack modalities.

    Example: mmx export t0003-mask_token-r4-s0 model
    """
    from mmx.cli.open import open_stored
    from mmx.runs.export import export_run
    from mmx.runs.registering import register as register_model
    from mmx.trial import Bench

    stored, registry = open_stored(run, store, plugin or ())
    done = export_run(stored, Bench(registry), folder, merge, plugin or ())
    version = register_model(stored.tracker, stored.run_id, folder, register) if register else None
    if as_json:
        told = {"folder": str(folder), "adapters": done.adapters, "difference": done.difference}
        typer.echo(json.dumps(told | {"registered": register, "version": version}, indent=2))
        return 0
    typer.echo(f"{folder}: the model of {stored.record.title} (sweep {stored.sweep})")
    for part, became in done.adapters.items():
        typer.echo(f"  adapter of {part}: {became}")
    typer.echo(f"  outputs differ from the run's by at most {done.difference:.1e}")
    if version is not None:
        typer.echo(f"  registered as version {version} of {register}: models:/{register}/{version}")
    typer.echo(
        f"serve it: mlflow models serve -m {shlex.quote(str(folder))} --env-manager local --host 127.0.0.1"
    )
    return 0
