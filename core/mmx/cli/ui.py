"""`mmx ui`: MLflow's page on the right store."""

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
    from mmx.sweep import tracking_address

    address = tracking_address(None, store)
    if address.startswith(("http://", "https://")):
        typer.echo(f"The results are on a server already: {address}")
        return 0
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", address]
    typer.echo(f"MLflow: http://{host}:{port} (Ctrl-C ends it)")
    return subprocess.call([*command, "--host", host, "--port", str(port)])  # noqa: S603 a fixed command
