"""`mmx doctor`: whether this installation works, and what to do where it does not."""

import importlib
import json
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

Finding = tuple[str, str, str]
"""State (ok, warning or problem), what, and what is known or to be done."""


def doctor(
    store: Annotated[str | None, typer.Option(help="Address of the result store.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Check libraries that break each other, the result store and the plugins.

    Example: mmx doctor
    """
    findings: list[Finding] = []
    checks: list[Callable[[], Iterator[Finding]]] = [_libraries, _device, lambda: _store(store), _plugins]
    for check in checks:
        findings += check()
    if as_json:
        typer.echo(
            json.dumps([dict(zip(("state", "what", "told"), f, strict=True)) for f in findings], indent=2)
        )
    else:
        for state, what, told in findings:
            typer.echo(f"{state:<8} {what}: {told}")
    return 1 if any(state == "problem" for state, _, _ in findings) else 0


def _libraries() -> Iterator[Finding]:
    for name in ("torch", "torchvision", "torchaudio", "peft", "mlflow", "optuna", "pluggy", "omegaconf"):
        try:
            importlib.import_module(name)
        except PackageNotFoundError as error:
            yield "problem", name, f"is not installed: {error}"
        except Exception as error:  # noqa: BLE001 a broken pair of libraries raises anything
            yield "problem", name, f"{type(error).__name__}: {str(error).splitlines()[0]}. {_pair_advice()}"
        else:
            yield "ok", name, version(name)


def _pair_advice() -> str:
    """Tell the known way out of torch and torchaudio builds that do not match."""
    return "torch and torchaudio must be built for the same CUDA: install 'torch<2.15' with torchaudio 2.11"


def _device() -> Iterator[Finding]:
    try:
        import torch
    except Exception:  # noqa: BLE001 told above
        return
    if torch.cuda.is_available():
        yield "ok", "device", f"cuda: {torch.cuda.get_device_name(0)}"
    else:
        yield "ok", "device", f"cpu, {torch.get_num_threads()} threads"


def _store(store: str | None) -> Iterator[Finding]:
    from mmx.errors import MmxError
    from mmx.registry import Registry
    from mmx.sweep import open_tracker, tracking_address

    address = tracking_address(None, store)
    if address.startswith("sqlite:///") and not _exists(address):
        yield "ok", "store", f"{address} is not there yet; the first run makes it"
        return
    try:
        sweeps = open_tracker(Registry.load(), address).find_sweeps()
    except MmxError as error:
        yield "problem", "store", str(error)
        return
    yield "ok", "store", f"{len(sweeps)} sweep(s)"
    if address.startswith("sqlite:"):
        yield (
            "ok",
            "store",
            "SQLite serves a handful of workers on one machine; beyond that use PostgreSQL or a server",
        )
    elif not address.startswith(("http:", "https:")):
        yield (
            "ok",
            "store",
            "files of trials lie beside the first run, where every worker must find that folder",
        )


def _exists(address: str) -> bool:
    from pathlib import Path

    return Path(address.removeprefix("sqlite:///")).exists()


def _plugins() -> Iterator[Finding]:
    from mmx.registry import Registry

    registry = Registry.load()
    yield "ok", "plugins", f"{len(registry.offers)} components"
    for problem in registry.problems:
        state = "warning" if problem.state == "disabled" else "problem"
        yield state, f"plugin {problem.distribution}:{problem.name}", problem.reason
    for kind, name, found in registry.clashes():
        yield "warning", f"{kind} {name}", f"offered by {', '.join(found)}; write distribution:name"
