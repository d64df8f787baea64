"""`mmx worker`: join a sweep from another shell, machine or job array."""

from pathlib import Path
from typing import Annotated

import typer


def worker(
    sweep: Annotated[Path, typer.Argument(help="The sweep file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value: those that `mmx run` was given.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:0.")] = "auto",
    store: Annotated[str | None, typer.Option(help="Address of the result store.")] = None,
) -> int:
    """Work on a sweep that `mmx run` has begun, beside others, until nothing is left to claim.

    Example: mmx run sweep.yaml --max-trials 0 && mmx worker sweep.yaml
    """
    from rich.console import Console

    from mmx.cli.open import open_plan
    from mmx.cli.progress import SweepProgress
    from mmx.sweep import join_sweep

    given = list(overrides or []) + ([f"store.tracking={store}"] if store else [])
    planned = open_plan(sweep, given)
    with SweepProgress(Console(soft_wrap=True)) as progress:
        join_sweep(planned, device, progress)
    return 0
