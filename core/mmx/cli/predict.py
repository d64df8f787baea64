"""`mmx predict`: predictions for a table of new data."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import pandas as pd

    from mmx.runs.predictor import Predictor

SHOWN, WIDEST = 10, 6
"""Rows, and outputs, that are printed where nothing else is asked."""


def predict(
    run: Annotated[str, typer.Argument(help="A trial (run id or title), or a folder that was exported.")],
    data: Annotated[Path, typer.Argument(help="A table: .parquet, .csv or .jsonl, a column a modality.")],
    out: Annotated[Path | None, typer.Option(help="Write all rows there: .parquet or .csv.")] = None,
    plugin: Annotated[
        list[Path] | None, typer.Option(help="A plugin file that the sweep names; may be repeated.")
    ] = None,
    store: Annotated[str | None, typer.Option(help="Address of the result store.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all rows as JSON.")] = False,
) -> int:
    """Predict each row of a table from the modalities that it has; a null cell is an absent modality.

    Example: mmx predict model rows.csv --out predicted.csv
    """
    from mmx.runs.files import check_target, read_file, write_file

    if out is not None:
        check_target(out, data)
    predictor = _open(run, store, plugin or ())
    found = predictor.predict(read_file(data, predictor.inputs))
    if out is not None:
        write_file(found, out)
    if as_json:
        typer.echo(json.dumps(found.to_dict(orient="records"), indent=2, default=str))
    elif out is not None:
        typer.echo(f"{out}: {len(found)} rows")
    else:
        _show(found)
    return 0


def _open(run: str, store: str | None, plugins: Sequence[Path]) -> "Predictor":
    from mmx.errors import InputError
    from mmx.runs.export import is_exported, open_exported

    if is_exported(Path(run)):
        return open_exported(Path(run))
    if Path(run).is_dir():
        raise InputError(f"folder '{run}' is no exported model; `mmx export` writes one")
    from mmx.cli.open import open_stored
    from mmx.runs.predictor import predictor_of
    from mmx.trial import Bench

    stored, registry = open_stored(run, store, plugins)
    return predictor_of(stored, Bench(registry))


def _show(found: "pd.DataFrame") -> None:
    """Print the first rows; of many outputs only the largest."""
    from rich.console import Console
    from rich.table import Table

    head = found.head(SHOWN)
    outputs = [name for name in head.columns if str(name).startswith("output_")]
    if len(outputs) > WIDEST:
        head = head.drop(columns=outputs).assign(largest_output=head[outputs].max(axis=1))
    table = Table(box=None)
    for name in head.columns:
        table.add_column(str(name), justify="right" if "output" in str(name) else "left")
    for row in head.itertuples(index=False):
        table.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in row))
    Console(soft_wrap=True).print(table)
    if len(head) < len(found) or len(outputs) > WIDEST:
        typer.echo(f"{len(head)} of {len(found)} rows; --json or --out FILE gives all, with every output")
