"""`mmx cite`: the papers behind a sweep."""

from pathlib import Path
from typing import Annotated

import typer


def cite(sweep: Annotated[Path, typer.Argument(help="The sweep file.")]) -> int:
    """Print BibTeX entries of everything that a sweep uses.

    Example: mmx cite sweep.yaml > used.bib
    """
    from mmx.cli.open import open_sweep
    from mmx.config import ComponentSpec, cells, component_keys, get_path
    from mmx.errors import ConfigError, Fault

    spec, registry = open_sweep(sweep)
    faults: list[Fault] = []
    papers: dict[str, str] = {}
    for cell in cells(spec.trial, spec.search, faults):
        for key, kind in component_keys(cell.trial).items():
            part = get_path(cell.trial, key)
            name = part["name"] if isinstance(part, dict) else ComponentSpec(part).name
            found = registry.find(kind, name).component
            if found.paper:
                papers[found.paper.strip()] = name
    if faults:
        raise ConfigError(str(sweep), faults)
    typer.echo("\n\n".join(papers) if papers else "% nothing in this sweep names a paper")
    return 0
