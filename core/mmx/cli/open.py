"""What several commands begin with: the registry and the sweep."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmx.config import SweepSpec, load_sweep
from mmx.errors import InputError, PluginError
from mmx.registry import Registry

if TYPE_CHECKING:
    from mmx.runs import StoredRun
    from mmx.sweep import Plan


def open_sweep(path: Path, overrides: Sequence[str] = (), strict: bool = False) -> tuple[SweepSpec, Registry]:
    """Read a sweep file and load the plugins, those that the file names included."""
    sweep = load_sweep(path, overrides)
    registry = Registry.load(files=[path.parent / file for file in sweep.plugins])
    broken = [p for p in registry.problems if p.state == "broken"]
    own = [p for p in broken if p.version == "file"]
    if own or (strict and broken):
        told = "; ".join(f"'{p.distribution}': {p.reason}" for p in (broken if strict else own))
        raise PluginError(f"plugins that cannot be used: {told}")
    return sweep, registry


def open_plan(path: Path, overrides: Sequence[str] = (), strict: bool = False) -> "Plan":
    """Read, load and plan."""
    from mmx.sweep import plan_sweep

    return plan_sweep(*open_sweep(path, overrides, strict))


def open_stored(
    run: str, store: str | None = None, plugins: Sequence[Path] = (), whole: bool = True
) -> tuple["StoredRun", Registry]:
    """Find a finished trial in the result store, and load the plugins, one-off files included.

    `whole`: its model, or its data, will be built, so that one-off files that it came from must be given.
    """
    from mmx.runs import open_run
    from mmx.sweep import open_tracker, tracking_address

    registry = Registry.load(files=list(plugins))
    found = open_run(open_tracker(registry, tracking_address(None, store)), run)
    for name in found.files_used() if whole else ():
        if name not in {offer.distribution for offer in registry.offers}:
            raise InputError(f"the run used the one-off plugin '{name}'; give the file: --plugin {name}")
    return found, registry
