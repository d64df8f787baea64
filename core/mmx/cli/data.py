"""`mmx data`: datasets, what they hold, and how to get them."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mmx.contracts import DataCard, Dataset

SPLITS = ("train", "val", "test")
TOLD = 20
"""How many faults of one kind are told; all are counted."""

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
        typer.echo(f"{row['name']:<15} {row['summary']} ({row['distribution']})")
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
    from mmx.registry import Registry, import_class

    registry = Registry.load()
    facts: dict[str, Any] = describe(registry, "dataset", name)
    source = _described(import_class(registry.find("dataset", name)))
    facts["card"] = source.card and asdict(source.card)
    if source.card and not source.card.modalities:
        facts["card"]["modalities"] = dict(getattr(source, "modalities", {}))
    if as_json:
        typer.echo(json.dumps(facts, indent=2, default=str))
        return 0
    typer.echo(f"{facts['name']}: {facts['summary']}")
    for key, value in (facts["card"] or {}).items():
        told = ", ".join(f"{k}: {v}" for k, v in value.items()) if isinstance(value, dict) else value
        if told or key == "checksums":
            typer.echo(f"  {key}: {told or 'none known'}")
    for option in facts["parameters"]:
        typer.echo(f"  option {option['name']}: {option['type']} = {option['default']}")
    return 0


def _described(cls: Any) -> Any:
    """Give what has the card: the class, or its object without options where only objects have one."""
    from mmx.errors import InputError
    from mmx.registry.signature import bind, construct

    if cls.card is not None or bind(cls, {}, "", cls.__name__)[1]:
        return cls
    try:
        return construct(cls, {}, {})
    except InputError:  # its data is not there, say
        return cls


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


@app.command("verify")
def verify(
    name: Annotated[str, typer.Argument(help="A dataset's name.")],
    options: Annotated[
        list[str] | None, typer.Argument(help="key=value: options of the dataset, as in a sweep.")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Where the data lies; data/NAME by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Read every sample of a dataset: count, name what cannot be read, compare checksums.

    Files that are not there are counted as absent where the dataset has the option missing_files. Exit code
    1 where something is wrong. What is decoded stays in the dataset's cache.

    Example: mmx data verify crema_d --root data/crema_d
    """
    dataset, folder = _open(name, options or [], root)
    splits = {split: _verify_split(dataset, split) for split in SPLITS}
    checksums = dict(_checksums(dataset.card, folder))
    facts = {"name": name, "splits": splits, "checksums": checksums}
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        _tell(facts)
    wrong = [fact for fact in splits.values() if fact["unreadable"] or fact["problems"]]
    return int(bool(wrong) or "wrong" in checksums.values())


def _open(name: str, given: Sequence[str], root: Path | None) -> tuple["Dataset", Path]:
    """Build a dataset from options of the command line; give the folder of its files too."""
    from mmx.config.overrides import apply_override
    from mmx.errors import ConfigError, Fault
    from mmx.registry import Registry
    from mmx.registry.signature import bind, construct
    from mmx.registry.signature import options as options_of

    cls = Registry.load().load_class("dataset", name)
    options: dict[str, Any] = {}
    faults: list[Fault] = []
    for override in given:
        apply_override(options, override, faults)
    folder = root or Path(options.get("root", Path("data") / name.rpartition(":")[2]))
    known = options_of(cls)
    if "root" in known:
        options["root"] = str(folder)
    elif root is not None:
        faults.append(Fault("--root", f"{name} has no option 'root'; give its options as key=value"))
    if "missing_files" in known:
        options.setdefault("missing_files", "absent")
    _, wrong = bind(cls, options, "", name)
    if faults or wrong:
        raise ConfigError(f"mmx data verify {name}", [*faults, *wrong])
    return construct(cls, options, {}), folder


def _verify_split(dataset: "Dataset", split: str) -> dict[str, Any]:
    """Read every input of a split: how many samples, who is absent, what is wrong."""
    from mmx.errors import DataError

    absent = dict.fromkeys(dataset.modalities, 0)
    shapes: dict[str, tuple[int, ...]] = {}
    seen: set[str] = set()
    unreadable: list[str] = []
    problems: list[str] = []
    samples = dataset.split(split)
    for index in range(len(samples)):
        sample = samples[index]
        if sample.id in seen:
            problems.append(f"the id '{sample.id}' stands twice")
        seen.add(sample.id)
        for m in dataset.modalities:
            absent[m] += m not in sample.inputs
        for m in sample.inputs:
            try:
                shape = tuple(sample.inputs[m].shape)
            except DataError as error:
                unreadable.append(str(error))
                continue
            if shape != shapes.setdefault(m, shape):
                problems.append(f"'{m}' of '{sample.id}' has shape {shape}, others {shapes[m]}")
    counts = {"samples": len(samples), "absent": absent, "unreadable": len(unreadable)}
    return {**counts, "problems": len(problems), "told": [*unreadable[:TOLD], *problems[:TOLD]]}


def _checksums(card: "DataCard | None", folder: Path) -> Iterator[tuple[str, str]]:
    """Compare the files that a card has checksums of ("md5 NAME"): right, wrong or not there."""
    for key, expected in (card.checksums if card else {}).items():
        algorithm, _, name = key.partition(" ")
        if algorithm not in hashlib.algorithms_guaranteed or " " in name:
            continue  # of more than one file: the dataset's own affair
        paths = [folder / name, *folder.glob(f"*/{name}")]
        found = next((path for path in paths if path.is_file()), None)
        if found is None:
            yield name, "not there"
            continue
        with found.open("rb") as file:
            digest = hashlib.file_digest(file, partial(hashlib.new, algorithm, usedforsecurity=False))
        yield name, "right" if digest.hexdigest() == expected else "wrong"


def _tell(facts: dict[str, Any]) -> None:
    for split, fact in facts["splits"].items():
        absent = ", ".join(f"{m} {count}" for m, count in fact["absent"].items() if count)
        typer.echo(
            f"{split}: {fact['samples']} samples; absent: {absent or 'none'}; "
            f"{fact['unreadable']} unreadable inputs, {fact['problems']} other problems"
        )
        for line in fact["told"]:
            typer.echo(f"  {line}")
    for name, verdict in facts["checksums"].items():
        typer.echo(f"checksum of {name}: {verdict}")
    if not facts["checksums"]:
        typer.echo("checksums: none are known")
