"""Overrides of the command line, key=value."""

from collections.abc import Sequence
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmx.config.paths import set_path
from mmx.errors import Fault

WHOLE_KEYS = ("search.axes.", "search.tune.")
"""What follows these is one key, dots included."""
METHODS = "search.methods."
"""What follows this is a label, and then one key."""


def apply_override(data: dict[str, Any], override: str, faults: list[Fault]) -> None:
    """Apply one key=value of the command line."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        faults.append(Fault("", f"override '{override}' is no key=value"))
        return
    try:
        value = OmegaConf.to_container(OmegaConf.create(f"value: {text or 'null'}"), resolve=False)["value"]  # type: ignore
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        faults.append(Fault(key, f"override value '{text}' is no YAML: {error}"))
        return
    try:
        set_path(data, _parts(key), value)
    except KeyError as error:
        faults.append(Fault(key, f"place {error} is in no list of this file; places count from 0"))


def _parts(key: str) -> list[str]:
    whole = next((prefix for prefix in WHOLE_KEYS if key.startswith(prefix)), None)
    if whole:
        return [*whole.strip(".").split("."), key[len(whole) :]]
    if key.startswith(METHODS):
        label, _, path = key[len(METHODS) :].partition(".")
        return [*METHODS.strip(".").split("."), label, *([path] if path else [])]
    return key.split(".")


def check_overrides(overrides: Sequence[str], axes: Any, faults: list[Fault]) -> None:
    """Refuse an override that an axis would set again for every cell."""
    for override in overrides:
        key = override.partition("=")[0].strip()
        for axis in axes if isinstance(axes, dict) else ():
            if axis in (key, f"{key}.name"):
                advice = f"override the axis instead: 'search.axes.{axis}=[…]'"
                faults.append(Fault(key, f"has no effect, since the file sweeps '{axis}'; {advice}"))


def check_against_methods(overrides: Sequence[str], methods: Any, faults: list[Fault]) -> None:
    """Refuse an override of what some methods set themselves: it would hold for the others only."""
    for override in overrides:
        key = override.partition("=")[0].strip()
        own = [
            label
            for label, settings in (methods.items() if isinstance(methods, dict) else ())
            if isinstance(settings, dict) and any(_touches(key, *item) for item in settings.items())
        ]
        if own:
            told = (
                f"{', '.join(own)} set it themselves; edit the file, or override 'search.methods.{own[0]}.…'"
            )
            faults.append(Fault(key, f"would not hold for every method: {told}"))


def _touches(key: str, path: str, value: Any) -> bool:
    """Tell whether an override and a method set the same thing, phases included."""
    if f"{key}.".startswith(f"{path}.") or f"{path}.".startswith(f"{key}."):
        return True
    phases = value if path == "training.phases" and isinstance(value, list) else []
    names = {f"training.{name}" for phase in phases if isinstance(phase, dict) for name in phase}
    return key in names
