"""Enumerates the cells of a sweep: every combination of its axes, as plain data.

mmx owns this grid (hashes, retries, extension); Optuna only searches `tune` inside each cell.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from mmx.config.load import TRIAL_KEYS, expand_components
from mmx.config.paths import get_path, set_path
from mmx.config.specs import SearchSpec, digest
from mmx.errors import ConfigError, Fault, did_you_mean

SECTIONS = ("training", "missing", "missing.train", "missing.eval")
"""Keys that hold settings and are no components: a method sets what is inside them, one by one."""
RANGE_KEYS = ("low", "high", "log", "step", "when")
CHOICE_KEYS = ("choices", "when")


@dataclass(frozen=True)
class RawCell:
    """One combination of the axes: the trial's data, what the axes set, and what is tuned inside it."""

    trial: dict[str, Any]
    assigned: Mapping[str, Any]
    tune: Mapping[str, Mapping[str, Any]]
    method: str = ""
    """Its label under search.methods, where the sweep has methods."""

    @property
    def place(self) -> str:
        """Say where in the file the cell's settings stand, for messages."""
        return f"search.methods.{self.method}" if self.method else ""


def cells(trial: Mapping[str, Any], search: SearchSpec, faults: list[Fault]) -> list[RawCell]:
    """List the different cells of a sweep, in the order of its axes."""
    axes = {path: _axis(path, axis, faults) for path, axis in search.axes.items()}
    tune = {path: _tuned(path, tuned, faults) for path, tuned in search.tune.items()}
    methods = {label: _method(label, settings, axes, faults) for label, settings in search.methods.items()}
    for section, paths in (("axes", axes), ("tune", tune)):
        for path in paths:
            _check_path(f"search.{section}", path, faults)
    if faults:
        return []
    found: dict[str, RawCell] = {}
    try:
        for label, settings in methods.items() or [("", {})]:
            for assigned in _combinations(apply(trial, settings), axes, label):
                whole = {**settings, **assigned}
                data = apply(trial, whole)
                told = {**data, "method": label}
                inside = {p: t for p, t in tune.items() if _holds(told, t.get("when", {}))}
                found.setdefault(digest([label, data, inside]), RawCell(data, whole, inside, label))
    except ConfigError as error:
        faults += error.faults
        return []
    return list(found.values())


def apply(trial: Mapping[str, Any], assigned: Mapping[str, Any]) -> dict[str, Any]:
    """Set dotted paths in a copy of a trial's data (ConfigError where a list has no such place)."""
    data = copy.deepcopy(dict(trial))
    for path, value in sorted(assigned.items(), key=lambda item: _depth(item[0])):
        try:
            set_path(data, path.split("."), copy.deepcopy(value))
        except KeyError as error:
            reason = f"place {error} is in no list of this trial; places count from 0"
            raise ConfigError("search", [Fault(path, reason)]) from error
        expand_components(data)
    return data


def _method(label: str, settings: Any, axes: Mapping[str, Any], faults: list[Fault]) -> Mapping[str, Any]:
    """Check a method: a mapping of dotted paths of a trial to values."""
    key = f"search.methods.{label}"
    if not isinstance(settings, Mapping):
        faults.append(
            Fault(key, f"{settings!r} is no mapping such as {{strategy: skip, fusion: mean_logits}}")
        )
        return {}
    for path, value in settings.items():
        _check_path(key, path, faults)
        if path in SECTIONS and isinstance(value, Mapping):
            inside = ", ".join(f"{path}.{name}" for name in value)
            faults.append(Fault(f"{key}.{path}", f"would replace all of '{path}'; write {inside}"))
        if path in axes:
            faults.append(Fault(f"{key}.{path}", "is also an axis, which would set it again"))
    return settings


def _depth(path: str) -> tuple[int, bool]:
    """Order whole components before their options, names first."""
    return path.count("."), not path.endswith(".name")


def _combinations(
    trial: Mapping[str, Any], axes: Mapping[str, tuple[list[Any], Mapping[str, Any]]], method: str
) -> Iterator[dict[str, Any]]:
    """Combine the free axes, then, where their conditions hold, the conditional ones."""
    free = {path: values for path, (values, when) in axes.items() if not when}
    bound = {path: axis for path, axis in axes.items() if axis[1]}
    for chosen in product(*free.values()):
        assigned = dict(zip(free, chosen, strict=True))
        data = {**apply(trial, assigned), "method": method}
        holding = {path: values for path, (values, when) in bound.items() if _holds(data, when)}
        for extra in product(*holding.values()):
            yield {**assigned, **dict(zip(holding, extra, strict=True))}


def _holds(data: Mapping[str, Any], when: Mapping[str, Any]) -> bool:
    return all(
        get_path(data, path) in (allowed if isinstance(allowed, list) else [allowed])
        for path, allowed in when.items()
    )


def _axis(path: str, axis: Any, faults: list[Fault]) -> tuple[list[Any], Mapping[str, Any]]:
    """Read an axis: a list of values, or {values, when}."""
    key = f"search.axes.{path}"
    when: Any = {}
    if isinstance(axis, Mapping):
        for name in axis:
            if name not in ("values", "when"):
                faults.append(Fault(f"{key}.{name}", f"unknown key.{did_you_mean(name, ('values', 'when'))}"))
        axis, when = axis.get("values"), axis.get("when") or {}
    if not isinstance(axis, list) or not axis:
        faults.append(Fault(key, f"{axis!r} is no list of values; write [first, second]"))
        return [], {}
    if len({digest(v) for v in axis}) < len(axis):
        faults.append(Fault(key, f"{axis} has a value twice"))
    return axis, _when(key, when, faults)


def _tuned(path: str, tuned: Any, faults: list[Fault]) -> Mapping[str, Any]:
    """Check a tuned parameter: {low, high, log, step} or {choices}, each with an optional `when`."""
    key = f"search.tune.{path}"
    if not isinstance(tuned, Mapping) or ("choices" not in tuned and not {"low", "high"} <= set(tuned)):
        faults.append(Fault(key, "needs {low, high} (and log, step) or {choices}"))
        return {}
    allowed = CHOICE_KEYS if "choices" in tuned else RANGE_KEYS
    for name in tuned:
        if name not in allowed:
            faults.append(Fault(f"{key}.{name}", f"unknown key.{did_you_mean(name, allowed)}"))
    if "choices" in tuned:
        if not isinstance(tuned["choices"], list) or not tuned["choices"]:
            faults.append(Fault(f"{key}.choices", "is no list of values"))
    else:
        _check_range(key, tuned, faults)
    _when(key, tuned.get("when") or {}, faults)
    return tuned


def _check_range(key: str, tuned: Mapping[str, Any], faults: list[Fault]) -> None:
    low, high = tuned["low"], tuned["high"]
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (low, high))
    if not numbers or not low < high:
        faults.append(Fault(key, f"low {low!r} and high {high!r} must be numbers, low below high"))
    elif tuned.get("log") and low <= 0:
        faults.append(Fault(key, f"a logarithmic range needs low above 0, not {low!r}"))
    elif tuned.get("log") and "step" in tuned:
        faults.append(Fault(key, "a range has either log or step"))


def _when(key: str, when: Any, faults: list[Fault]) -> Mapping[str, Any]:
    if not isinstance(when, Mapping):
        faults.append(Fault(f"{key}.when", f"{when!r} is no mapping such as {{strategy.name: prompt}}"))
        return {}
    for path in when:
        if path != "method":
            _check_path(f"{key}.when", path, faults)
    return when


def _check_path(key: str, path: str, faults: list[Fault]) -> None:
    root = path.split(".", maxsplit=1)[0]
    if root == "seed":
        faults.append(Fault(f"{key}.{path}", "write seeds under search.seeds"))
    elif root not in TRIAL_KEYS:
        faults.append(
            Fault(f"{key}.{path}", f"'{root}' is no part of a trial.{did_you_mean(root, TRIAL_KEYS)}")
        )
