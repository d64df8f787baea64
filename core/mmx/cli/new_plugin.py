"""`mmx plugins new`: a package of your own to start from, which passes its own tests."""

import importlib.util
import re
import sys
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from mmx.errors import InputError, did_you_mean

NAME = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*")
SUMMARIES = {
    "strategy": "a learned token stands in for what is absent",
    "encoder": "two layers on feature vectors",
    "dataset": "two made-up modalities of two classes",
    "fusion": "the largest of what is there, then a linear head",
    "adapter": "biases and norms train, nothing else",
    "procedure": "one step a batch, the strategy's losses weighted",
    "protocol": "each sample loses one modality or none",
}
"""What the template of each kind does."""
WORLD = "dataset: {name: toy_world, train_size: 128}"
FILES = {
    "pyproject.toml": "pyproject.toml.txt",
    "README.md": "README.md.txt",
    "sweep.yaml": "sweep.yaml.txt",
    "tests/test_conformance.py": "test_conformance.py.txt",
}


def new(
    kind: Annotated[str, typer.Argument(help=f"One of {', '.join(SUMMARIES)}.")],
    name: Annotated[str, typer.Argument(help="The package's name: my-strategy.")],
    folder: Annotated[Path | None, typer.Option(help="Where to write; a folder of that name here.")] = None,
) -> int:
    """Write a package with one component, its tests and a sweep that compares it.

    Example: mmx plugins new strategy my-strategy
    """
    if kind not in SUMMARIES:
        raise InputError(f"'{kind}' is no kind that there is a template for.{did_you_mean(kind, SUMMARIES)}")
    if not NAME.fullmatch(name):
        raise InputError(f"'{name}' is no name for a package; write small letters, digits and '-': my-{kind}")
    words = words_for(kind, name)
    check_free(kind, words["module"])
    place = folder or Path(words["distribution"])
    if place.exists() and not (place.is_dir() and not any(place.iterdir())):
        raise InputError(f"'{place}' is there already and not empty; name another with --folder")
    write(place, kind, words)
    typer.echo(
        f"wrote {place}; next: pip install -e '{place}[test]' && mmx plugins check {words['distribution']}"
    )
    return 0


def words_for(kind: str, name: str) -> dict[str, str]:
    """Give what the templates leave open."""
    parts = re.split(r"[-_]", name)
    module = "_".join(parts)
    dataset, axes = setting(kind, module)
    return {
        "kind": kind,
        "distribution": "-".join(parts),
        "module": module,
        "cls": "".join(part.capitalize() for part in parts),
        "summary": SUMMARIES[kind],
        "dataset": dataset,
        "axes": axes,
    }


def setting(kind: str, module: str) -> tuple[str, str]:
    """Say how a sweep compares a new component: its data and encoders, and what it varies."""
    usual = f"{WORLD}\nencoders: {{m0: mlp, m1: mlp}}"
    if kind == "dataset":
        both = "{strategy.name: [zero_fill, mask_token]}"
        return f"dataset: {module}\nencoders: {{first: mlp, second: mlp}}", f"  axes: {both}"
    axis, rival = {
        "strategy": ("strategy.name", "zero_fill"),
        "encoder": ("encoders.m0.name", "mlp"),
        "fusion": ("fusion.name", "concat"),
        "adapter": ("adapter.name", "bitfit"),
        "procedure": ("procedure.name", "joint"),
        "protocol": ("missing.protocol.name", "per_sample"),
    }[kind]
    return usual, f"  axes: {{{axis}: [{rival}, {module}]}}"


def check_free(kind: str, module: str) -> None:
    """Refuse a name that a module, or a component of that kind, has already."""
    from mmx.registry import Registry

    if module in sys.stdlib_module_names or importlib.util.find_spec(module) is not None:
        raise InputError(f"'{module}' is a module that is installed here; choose another name")
    if module in Registry.load().names(kind):
        raise InputError(
            f"there is a {kind} '{module}' already (mmx plugins info {module}); choose another name"
        )


def write(place: Path, kind: str, words: dict[str, str]) -> None:
    """Write the package's files."""
    templates = files("mmx.cli").joinpath("templates", "plugin")
    for target, template in {**FILES, f"{words['module']}.py": f"{kind}.py.txt"}.items():
        path = place / target
        path.parent.mkdir(parents=True, exist_ok=True)
        text = templates.joinpath(template).read_text(encoding="utf-8")
        path.write_text(Template(text).substitute(words), encoding="utf-8")
