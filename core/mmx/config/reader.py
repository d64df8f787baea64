"""Reads plain data into frozen dataclasses by their type hints, and collects every fault with its key."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, Union

from mmx.config.specs import ComponentSpec, TrialSpec
from mmx.errors import ConfigError, Fault, did_you_mean

NOTHING: Any = object()
"""Stands for a value that could not be read; a fault tells why."""


def read(cls: type, data: Any, key: str, faults: list[Fault]) -> Any:
    """Read a mapping into a dataclass; unknown keys, wrong types and missing keys become faults.

    NOTHING where there was a fault.
    """
    if not isinstance(data, Mapping):
        faults.append(Fault(key, f"{data!r} is no mapping of keys to values"))
        return NOTHING
    hints = _hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls)}
    for name in data:
        if name not in known:
            faults.append(Fault(_join(key, name), f"unknown key.{did_you_mean(str(name), known)}"))
    values = {n: convert(data[n], hints[n], _join(key, n), faults) for n in known if n in data}
    for name, f in known.items():
        if _is_required(f) and name not in data:
            faults.append(Fault(_join(key, name), "is missing; write it down"))
    missing = [n for n, f in known.items() if n not in data and _is_required(f)]
    if any(v is NOTHING for v in values.values()) or missing or set(data) - set(known):
        return NOTHING
    return cls(**values)


def read_trial(data: Any, source: str) -> TrialSpec:
    """Read a trial's spec back from what `TrialSpec.to_dict` gave (ConfigError, naming `source`)."""
    faults: list[Fault] = []
    spec: TrialSpec = read(TrialSpec, data, "", faults)
    if faults:
        raise ConfigError(source, faults)
    return spec


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _is_required(f: dataclasses.Field[Any]) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def convert(value: Any, hint: Any, key: str, faults: list[Fault]) -> Any:
    """Read one value as its type hint says."""
    if hint is Any:
        return value
    if hint is types.NoneType:
        if value is not None:
            faults.append(Fault(key, f"{value!r} is not nothing"))
        return None
    if hint is ComponentSpec:
        return component(value, key, faults)
    if dataclasses.is_dataclass(hint):
        return read(typing.cast(type, hint), value, key, faults)
    if hint in _SCALARS:
        return _scalar(value, hint, key, faults)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _either(value, arguments, key, faults)
    if origin is tuple:
        items = value if isinstance(value, (list, tuple)) else [value]
        found = [convert(v, arguments[0], f"{key}[{i}]", faults) for i, v in enumerate(items)]
        return NOTHING if any(v is NOTHING for v in found) else tuple(found)
    return _mapping(value, arguments[1], key, faults)


_SCALARS = {int: "whole number", float: "number", str: "text", bool: "true or false"}


def _scalar(value: Any, hint: type, key: str, faults: list[Fault]) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool):
        return value
    faults.append(Fault(key, f"{value!r} is no {_SCALARS[hint]}"))
    return NOTHING


def _either(value: Any, choices: tuple[Any, ...], key: str, faults: list[Fault]) -> Any:
    """Read as the first choice that fits; a mapping or list is told by the faults of its own kind."""
    attempts: list[list[Fault]] = []
    for choice in choices:
        own: list[Fault] = []
        result = convert(value, choice, key, own)
        if not own:
            return result
        attempts.append(own)
    structured = isinstance(value, (Mapping, list))
    faults.extend(attempts[-1] if structured else attempts[0])
    return NOTHING


def _mapping(value: Any, hint: Any, key: str, faults: list[Fault]) -> Any:
    if not isinstance(value, Mapping):
        faults.append(Fault(key, f"{value!r} is no mapping of keys to values"))
        return NOTHING
    found = {str(k): convert(v, hint, _join(key, str(k)), faults) for k, v in value.items()}
    return NOTHING if any(v is NOTHING for v in found.values()) else found


def _join(key: str, name: Any) -> str:
    return f"{key}.{name}" if key else str(name)


def component(data: Any, key: str, faults: list[Fault]) -> Any:
    """Read a component: a name, or a mapping with `name` and options."""
    if isinstance(data, str) and data:
        return ComponentSpec(data)
    if isinstance(data, Mapping) and isinstance(data.get("name"), str):
        return ComponentSpec(data["name"], {k: v for k, v in data.items() if k != "name"})
    faults.append(Fault(key, f"{data!r} is no component; write a name, or a mapping with 'name' and options"))
    return NOTHING
