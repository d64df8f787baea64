"""`mmx eval`: a finished run scored again, without training."""

import json
from collections.abc import Iterator, Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmx.errors import ConfigError, Fault, InputError

if TYPE_CHECKING:
    from mmx.config import ComponentSpec
    from mmx.runs import StoredRun
    from mmx.runs.again import Found

PICTURES = (".png", ".svg", ".pdf")
MARKERS = "osD^vPX*"


def evaluate(
    run: Annotated[str, typer.Argument(help="A trial: its run id, the beginning of it, or its title.")],
    rates: Annotated[
        str | None, typer.Option(help="Fractions missing, such as 0,0.25,0.5; the run's own.")
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(help="A name, or a mapping such as '{name: per_sample, which: image}'; the run's own."),
    ] = None,
    targets: Annotated[
        str | None, typer.Option(help="What goes missing: any, or modalities, such as any,image.")
    ] = None,
    scores: Annotated[str, typer.Option(help="Names, joined by commas; all that the task has.")] = "all",
    patterns: Annotated[
        str | None, typer.Option(help="What is present: all, or patterns such as image,image.audio.")
    ] = None,
    split: Annotated[str, typer.Option(help="test, val or train.")] = "test",
    seed: Annotated[int | None, typer.Option(help="Seed of the masks; the run's own.")] = None,
    device: Annotated[str, typer.Option(help="Where a model predicts: auto, cpu, cuda:0.")] = "auto",
    plugin: Annotated[
        list[Path] | None, typer.Option(help="A plugin file that the sweep names; may be repeated.")
    ] = None,
    store: Annotated[str | None, typer.Option(help="Address of the result store.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write every figure there, a row each.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the curves there: .png, .svg or .pdf.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Score a finished run again, from its stored predictions or its trained model; nothing is trained.

    Example: mmx eval t0003-mask_token-r4-s0 --rates 0,0.25,0.5 --protocol per_cell
    """
    _check_files(csv, plot)
    protocol_spec = None if protocol is None else read_protocol(protocol)
    asked_rates = None if rates is None else read_rates(rates)
    from mmx.cli.open import open_stored
    from mmx.runs.again import Asked, score_again
    from mmx.sweep.devices import device_names, find_device

    stored, registry = open_stored(run, store, plugin or (), whole=False)
    asked = Asked(
        rates=asked_rates,
        protocol=protocol_spec,
        targets=None if targets is None else _names("--targets", targets),
        scores=None if scores == "all" else _names("--scores", scores),
        patterns=patterns if patterns in (None, "all") else _names("--patterns", patterns),
        seed=seed,
        split=split,
    )
    found = score_again(stored, asked, registry, find_device(device_names(device)[0]))
    if csv is not None:
        write_csv(csv, stored, found)
    if plot is not None:
        draw(plot, stored, found)
    if as_json:
        typer.echo(json.dumps(told(stored, found), indent=2))
    else:
        show(stored, found)
        written = ", ".join(str(path) for path in (csv, plot) if path is not None)
        if written:
            typer.echo(f"\nwritten: {written}")
    return 0


def read_rates(text: str) -> tuple[float, ...]:
    """Read fractions, joined by commas."""
    try:
        return tuple(float(part) for part in _names("--rates", text))
    except ValueError as error:
        raise InputError(f"--rates '{text}' is no list of fractions; write it like 0,0.25,0.5") from error


def read_protocol(text: str) -> "ComponentSpec":
    """Read a protocol's name, or a mapping with its name and options, as a sweep file has it."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from mmx.config import NOTHING, component

    faults: list[Fault] = []
    try:
        data: Any = OmegaConf.to_container(OmegaConf.create(f"value: {text}"), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise InputError(
            f"--protocol '{text}' is no YAML; write a name, or '{{name: per_sample, which: image}}'"
        ) from error
    found = component(data["value"], "--protocol", faults)
    if found is NOTHING:
        raise ConfigError("mmx eval", faults)
    return found


def _names(option: str, text: str) -> tuple[str, ...]:
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if not found:
        raise InputError(f"{option} '{text}' names nothing; leave it out for the default")
    return found


def _check_files(csv: Path | None, plot: Path | None) -> None:
    """Refuse, before any work, files that could not be written."""
    if plot is not None and plot.suffix.lower() not in PICTURES:
        raise InputError(f"--plot '{plot}' is no picture; its name must end in {', '.join(PICTURES)}")
    for path in filter(None, (csv, plot)):
        if not path.parent.is_dir():
            raise InputError(f"there is no folder '{path.parent}' to write '{path.name}' to; make it first")


def told(stored: "StoredRun", found: "Found") -> dict[str, Any]:
    """Give everything as plain data, what is not defined as null."""
    from mmx.config import plain

    return {
        "run": stored.run_id,
        "title": stored.record.title,
        "sweep": stored.sweep,
        "point": stored.record.point,
        "seed": stored.record.seed,
        "split": found.split,
        "samples": found.samples,
        "source": found.source,
        "protocol": plain(found.missing.protocol),
        "mask_seed": found.missing.seed,
        "masks": found.masks,
        "higher_is_better": {s.name: s.higher_is_better for s in found.scores},
        "curves": _defined(found.curves),
        "patterns": _defined(found.patterns),
        "summary": _defined(found.summaries),
        "realised_rates": _defined(found.realised),
    }


def _defined(value: Any) -> Any:
    """Turn keys into text and NaN into null, which JSON has."""
    if isinstance(value, Mapping):
        return {str(key): _defined(part) for key, part in value.items()}
    return None if isnan(value) else value


def write_csv(path: Path, stored: "StoredRun", found: "Found") -> None:
    """Write a row a figure; what is not defined is left empty."""
    import csv

    head = {"run": stored.run_id, "split": found.split, "protocol": found.missing.protocol.name}
    columns = ("score", "figure", "target", "rate", "pattern", "value")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, (*head, *columns), restval="")
        writer.writeheader()
        for row in _rows(found):
            value = "" if isnan(row["value"]) else repr(row["value"])
            writer.writerow({**head, **row, "value": value})


def _rows(found: "Found") -> Iterator[dict[str, Any]]:
    for target, curves in found.curves.items():
        for score, curve in curves.items():
            for rate, value in curve.items():
                yield {"score": score, "figure": "curve", "target": target, "rate": rate, "value": value}
    for score, patterns in found.patterns.items():
        for pattern, value in patterns.items():
            yield {"score": score, "figure": "pattern", "pattern": pattern, "value": value}
    for target, summaries in found.summaries.items():
        for score, summary in summaries.items():
            for figure, value in summary.items():
                yield {"score": score, "figure": figure, "target": target, "value": value}


def draw(path: Path, stored: "StoredRun", found: "Found") -> None:
    """Draw a panel a score, in it a line a target."""
    import matplotlib
    from matplotlib import style
    from matplotlib.figure import Figure

    columns = min(3, len(found.scores))
    rows = -(-len(found.scores) // columns)
    with style.context("tableau-colorblind10"), matplotlib.rc_context({"svg.fonttype": "none"}):
        figure = Figure(figsize=(3.6 * columns, 2.8 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for panel, score in zip(panels, found.scores, strict=False):
            for (target, curves), marker in zip(found.curves.items(), MARKERS * 9, strict=False):
                points = sorted(curves[score.name].items())
                panel.plot(*zip(*points, strict=True), label=target, marker=marker, markersize=4)
            panel.set(xlabel="missing rate", ylabel=_label(score.name, score.higher_is_better))
            panel.grid(alpha=0.3)
        for panel in panels[len(found.scores) :]:
            panel.remove()
        panels[0].legend(frameon=False, title="missing")
        figure.suptitle(f"{stored.record.title} under {found.missing.protocol.name}", fontsize="medium")
        figure.savefig(path, dpi=150)


def show(stored: "StoredRun", found: "Found") -> None:
    """Print where the figures come from, and a table for each target, the patterns and the summary."""
    options = ", ".join(f"{k}={v}" for k, v in found.missing.protocol.options.items() if v is not None)
    named = f"{found.missing.protocol.name} ({options})" if options else found.missing.protocol.name
    own = ", the run's own masks" if found.masks and found.masks == stored.record.masks else ""
    typer.echo(f"{stored.record.title} ({stored.run_id[:8]}) of sweep {stored.sweep}")
    typer.echo(f"{found.samples} samples of the {found.split} split, from {found.source}")
    typer.echo(f"protocol {named}, mask seed {found.missing.seed}{own}")
    if not all(s.higher_is_better for s in found.scores):
        typer.echo("↓ lower is better")
    labels = {s.name: _label(s.name, s.higher_is_better) for s in found.scores}
    for target, curves in found.curves.items():
        what = "any modality" if target == "any" else f"only {target}"
        _table(f"{what} goes missing at a rate of", labels, curves)
    if found.realised:
        names = {m: m for m in found.realised}
        _table("samples that then lack, of any modality", names, found.realised, head="modality")
    _table("with exactly this present", labels, found.patterns)
    for target, summary in found.summaries.items():
        _table(f"summary of the curve of {target}", labels, summary)


def _label(name: str, higher_is_better: bool) -> str:
    return name if higher_is_better else f"{name} ↓"


def _table(
    title: str, labels: Mapping[str, str], rows: Mapping[str, Mapping[Any, float]], head: str = "score"
) -> None:
    from rich.console import Console
    from rich.table import Table

    columns: Sequence[Any] = list(dict.fromkeys(c for row in rows.values() for c in row))
    if not columns:
        return
    table = Table(title=title, box=None, title_justify="left", title_style="bold")
    table.add_column(head)
    for column in columns:
        table.add_column(f"{column:g}" if isinstance(column, float) else column, justify="right")
    for name, row in rows.items():
        values = [row.get(column, float("nan")) for column in columns]
        table.add_row(labels[name], *("–" if isnan(value) else f"{value:.4f}" for value in values))
    typer.echo()
    # So wide that no figure is cut off; a narrow terminal breaks the lines itself.
    Console(width=200, soft_wrap=True).print(table)
