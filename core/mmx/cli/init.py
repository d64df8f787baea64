"""`mmx init`: a sweep to start from."""

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from mmx.errors import InputError


def init(
    path: Annotated[Path, typer.Argument(help="Where to write.")] = Path("sweep.yaml"),
    toy: Annotated[bool, typer.Option("--toy", help="A sweep on synthetic data that takes seconds.")] = False,
) -> int:
    """Write a sweep file that runs as it is, with every key explained.

    Example: mmx init --toy && mmx run sweep.yaml
    """
    if path.exists():
        raise InputError(f"'{path}' is there already; name another file")
    template = files("mmx.cli").joinpath("templates", "toy.yaml" if toy else "digits.yaml")
    path.write_text(template.read_text(encoding="utf-8"), encoding="utf-8")
    typer.echo(f"wrote {path}; next: mmx run {path} --plan")
    return 0
