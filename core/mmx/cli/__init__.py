"""The command `mmx`. Nothing heavy is imported before a command needs it."""

import sys


def main() -> None:
    """Run the command; a user's mistake becomes one message and an exit code, never a traceback."""
    import os

    import typer

    from mmx.cli.app import app
    from mmx.errors import MmxError, Stopped

    # Threads of torch that spin while they wait waste whole cores of a shared machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code = app(standalone_mode=False)
    except MmxError as error:
        _fail(str(error), error.exit_code)
    except typer.Abort:
        _fail("stopped", 130)
    except Exception as error:
        # The parser's own usage errors; typer brings a copy of click, whose base class has no public name.
        show = getattr(error, "show", None)
        if show is None:
            raise
        show()
        sys.exit(getattr(error, "exit_code", 2))
    except (Stopped, KeyboardInterrupt):
        _fail("stopped; what was finished is kept, the next `mmx run` carries on from the last epoch", 130)
    else:
        sys.exit(code or 0)


def _fail(message: str, code: int) -> None:
    sys.stderr.write(f"mmx: {message}\n")
    sys.exit(code)
