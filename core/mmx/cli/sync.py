"""`mmx sync`: sends what was kept on disk while the result store was gone."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mmx.sweep.spool import Sent


def sync(
    sweep: Annotated[
        Path | None, typer.Argument(help="The sweep file; all sweeps of the folder without it.")
    ] = None,
    store: Annotated[str | None, typer.Option(help="Address of the result store.")] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where sweeps keep things: the sweep's run.folder, else .mmx.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Send what was kept while the result store could not be reached; exit 1 where something is left.

    Example: mmx sync sweep.yaml
    """
    sent = _send(sweep, store, folder)
    if as_json:
        typer.echo(json.dumps({"sent": sent.sent, "left": sent.left, "reason": sent.reason}, indent=2))
    else:
        _tell(sent)
    return 1 if sent.left else 0


def _send(path: Path | None, store: str | None, folder: Path | None) -> "Sent":
    from mmx.cli.open import open_sweep
    from mmx.errors import StoreError
    from mmx.registry import Registry
    from mmx.sweep.journal import waiting
    from mmx.sweep.places import open_tracker, spool_folders, tracking_address
    from mmx.sweep.spool import Sent, Spooling

    sweep, registry = open_sweep(path) if path else (None, Registry.load())
    if sweep and folder:
        sweep = replace(sweep, run=replace(sweep.run, folder=str(folder)))
    spools = spool_folders(sweep) if sweep else sorted((folder or Path(".mmx")).glob("*/spool"))
    spools = [spool for spool in spools if waiting(spool)]
    if not spools:
        return Sent()
    try:
        tracker = open_tracker(
            registry, tracking_address(sweep, store), sweep.tracker.name if sweep else "mlflow"
        )
    except StoreError as error:
        return Sent(0, sum(waiting(spool) for spool in spools), str(error))
    done = [Spooling(tracker, spool).send() for spool in spools]
    reasons = dict.fromkeys(sent.reason for sent in done if sent.reason)
    return Sent(sum(s.sent for s in done), sum(s.left for s in done), "; ".join(reasons))


def _tell(sent: "Sent") -> None:
    if not sent.sent and not sent.left:
        typer.echo("nothing waits to be sent")
    if sent.sent:
        typer.echo(f"{sent.sent} trial(s) sent; the next `mmx run` brings the leaderboard up to date")
    if sent.left:
        typer.echo(f"{sent.left} trial(s) left: {sent.reason}")
