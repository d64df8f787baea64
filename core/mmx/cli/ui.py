"""`mmx ui`: MLflow's page on the right store."""

import os
import subprocess
import sys
from typing import Annotated

import typer


def ui(
    port: Annotated[int, typer.Option(help="Port on this machine.")] = 5000,
    host: Annotated[
        str, typer.Option(help="Address to listen on; loopback unless you say so.")
    ] = "127.0.0.1",
    store: Annotated[str | None, typer.Option(help="Address of the result store.")] = None,
) -> int:
    """Open MLflow on the results.

    Example: mmx ui --port 5001
    """
    from mmx.config.address import without_login
    from mmx.registry import Registry
    from mmx.sweep import open_tracker, tracking_address

    address = tracking_address(None, store)
    tracker = open_tracker(Registry.load(), address)
    names = tracker.find_sweeps()
    pages = {name: tracker.page(name) for name in names}
    hints = list(dict.fromkeys(filter(None, map(tracker.hint, names))))
    if address.startswith(("http://", "https://")):
        _show(without_login(address).rstrip("/"), pages, hints)
        return 0
    command = [sys.executable, "-m", "mlflow", "server"]
    _show(f"http://{host}:{port}", pages, hints)
    typer.echo("Ctrl-C ends it.")
    # Not as an argument: everyone on the machine may read those, and the address may hold a password.
    quiet = {**os.environ, "MLFLOW_LOGGING_LEVEL": "WARNING", "MLFLOW_BACKEND_STORE_URI": address}
    own = [*command, "--host", host, "--port", str(port), "--uvicorn-opts", "--log-level warning"]
    return subprocess.call(own, env=quiet)  # noqa: S603 a fixed command


def _show(root: str, pages: dict[str, str], hints: list[str]) -> None:
    """Print a link for each sweep: its robustness curves, grouped by what it varies."""
    if not pages:
        typer.echo(f"{root} (no sweep in this store yet)")
    for name, page in pages.items():
        typer.echo(f"{name}: {root}{page}")
    for hint in hints:
        typer.echo(hint)
