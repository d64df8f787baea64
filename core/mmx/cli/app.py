"""All commands, each in its own module."""

import typer

from mmx.cli import (
    cite,
    data,
    doctor,
    eval,
    export,
    init,
    plugins,
    predict,
    report,
    repro,
    run,
    status,
    sync,
    ui,
    worker,
)

app = typer.Typer(
    name="mmx",
    help="Experiments in multimodal learning when modalities are missing.\n\nExample: mmx run sweep.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("run")(run.run)
app.command("worker")(worker.worker)
app.command("status")(status.status)
app.command("report")(report.report)
app.command("sync")(sync.sync)
app.command("ui")(ui.ui)
app.command("eval")(eval.evaluate)
app.command("repro")(repro.repro)
app.command("export")(export.export)
app.command("predict")(predict.predict)
app.command("doctor")(doctor.doctor)
app.command("init")(init.init)
app.command("cite")(cite.cite)
app.add_typer(plugins.app, name="plugins")
app.add_typer(data.app, name="data")


def show_version(asked: bool) -> bool:
    """Print the version and end."""
    if asked:
        from mmx import __version__

        typer.echo(f"mmx {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def root(
    version: bool = typer.Option(
        False, "--version", help="Show the version and exit.", is_eager=True, callback=show_version
    ),
) -> None:
    """Experiments in multimodal learning when modalities are missing.

    Example: mmx run sweep.yaml
    """
