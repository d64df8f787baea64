"""`mmx repro`: how a run was made, what differs now, and the same run again."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmx.errors import InputError

if TYPE_CHECKING:
    from mmx.runs import StoredRun
    from mmx.runs.repro import Deviation, Difference


def repro(
    run: Annotated[str, typer.Argument(help="A trial: its run id, the beginning of it, or its title.")],
    again: Annotated[bool, typer.Option("--run", help="Train it again and compare every figure.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write sweep.yaml, requirements.txt and environment.json there.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda:0.")] = "auto",
    plugin: Annotated[
        list[Path] | None, typer.Option(help="A plugin file that the sweep names; may be repeated.")
    ] = None,
    store: Annotated[str | None, typer.Option(help="Address of the result store.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Say how a run was made and what differs now; with --run, exit 1 where a figure comes out otherwise.

    Example: mmx repro t0003-mask_token-r4-s0 --run
    """
    from mmx.cli.open import open_stored
    from mmx.runs.repro import differences, run_again
    from mmx.sweep.devices import device_names, find_device
    from mmx.trial import Bench

    stored, registry = open_stored(run, store, plugin or ())
    here = find_device(device_names(device)[0])
    bench = Bench(registry)
    found = differences(stored, bench, here)
    if out is not None:
        try:
            write(stored, out, plugin or ())
        except OSError as error:
            raise InputError(f"--out '{out}' is no folder that can be written: {error.strerror}") from error
    if not as_json:
        show(stored, found)
    apart = None
    if again:
        apart = run_again(stored, bench, here, lambda epoch, figures: _progress(stored, epoch))
    if as_json:
        typer.echo(json.dumps(told(stored, found, apart), indent=2))
    elif apart is not None:
        show_deviations(apart)
    return 1 if apart else 0


def told(stored: "StoredRun", found: "Sequence[Difference]", apart: "Sequence[Deviation] | None") -> Any:
    """Give all of it as plain data."""
    record = stored.record
    return {
        "run": record.run_id,
        "title": record.title,
        "sweep": stored.sweep,
        "point": record.point,
        "seed": record.seed,
        "masks": record.masks,
        "command": stored.environment["command"],
        "spec": stored.spec.to_dict(),
        "environment": stored.environment,
        "differs": [vars(d) for d in found],
        "deviations": None if apart is None else [vars(d) for d in apart],
    }


def show(stored: "StoredRun", found: "Sequence[Difference]") -> None:
    """Print how the run was made, and what differs now."""
    import shlex

    record, environment = stored.record, stored.environment
    typer.echo(f"{record.title} of sweep {stored.sweep} (run {record.run_id})")
    typer.echo(f"  command  {shlex.join(environment['command'])}")
    typer.echo(f"  point    {record.point}, seed {record.seed}")
    typer.echo(f"  data     {stored.spec.dataset.name} {environment['data']}; masks {record.masks}")
    typer.echo(f"  with     python {environment['python']}, torch {environment['packages'].get('torch')}, "
               f"{environment['threads']} thread(s), {environment['device']}")  # fmt: skip
    if not found:
        typer.echo("nothing that its numbers hang on differs now")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title="differs now", box=None, title_justify="left")
    for column in ("what", "then", "now"):
        table.add_column(column)
    for difference in found:
        table.add_row(difference.what, difference.then, difference.now)
    Console(soft_wrap=True).print(table)


def show_deviations(apart: "Sequence[Deviation]") -> None:
    """Print which figures came out otherwise."""
    if not apart:
        typer.echo("run again: every figure is the same to the last bit")
        return
    typer.echo(f"run again: {len(apart)} figure(s) came out otherwise")
    for deviation in sorted(apart, key=lambda d: -d.largest)[:10]:
        typer.echo(f"  {deviation.figure}: by {deviation.largest:.3g} at most")


def write(stored: "StoredRun", folder: Path, plugins: Sequence[Path] = ()) -> None:
    """Write what another machine needs to make the run: a sweep file, its one-off plugin files, and the
    versions of all packages."""
    from omegaconf import OmegaConf

    from mmx.runs import ENVIRONMENT
    from mmx.runs.repro import sweep_of

    folder.mkdir(parents=True, exist_ok=True)
    pins = [f"{name}=={version}" for name, version in stored.environment["packages"].items()]
    (folder / "requirements.txt").write_text("\n".join(pins) + "\n", encoding="utf-8")
    own = [file for file in plugins if file.name in stored.files_used()]
    for file in own:
        shutil.copyfile(file, folder / file.name)
    content = sweep_of(stored) | ({"plugins": [f"./{file.name}" for file in own]} if own else {})
    (folder / "sweep.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(content)), encoding="utf-8")
    text = json.dumps(stored.environment, indent=2)
    (folder / ENVIRONMENT).write_text(text, encoding="utf-8")


def _progress(stored: "StoredRun", epoch: int) -> None:
    """Show that it goes on, on the standard error."""
    epochs = sum(stage.training.epochs for stage in stored.spec.stages())
    typer.echo(f"epoch {epoch + 1} of {epochs}", err=True)
