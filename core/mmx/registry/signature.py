"""Constructor options: read off the signature, checked before any work, bound when building.

A component's options are the parameters of its constructor, less those that the engine fills in.
"""

import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Union

from mmx.errors import Fault, did_you_mean
from mmx.hookspecs import ENGINE_PARAMETERS

REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class Option:
    """One option of a component."""

    name: str
    annotation: Any
    default: Any

    @property
    def type_name(self) -> str:
        """Name the type as a reader would."""
        if self.annotation is REQUIRED:
            return "any"
        return (
            getattr(self.annotation, "__name__", "")
            if isinstance(self.annotation, type)
            else str(self.annotation).replace("typing.", "").replace("collections.abc.", "")
        )


def parameters(cls: type) -> dict[str, inspect.Parameter]:
    """Give the named constructor parameters of a class."""
    constructor = _constructor(cls)
    if constructor is object.__init__:
        return {}
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = list(inspect.signature(constructor).parameters.items())[1:]  # the first is self
    return {name: p for name, p in found if p.kind in named}


def _constructor(cls: type) -> Any:
    """Give the `__init__` that a class has or inherits."""
    return next(vars(c)["__init__"] for c in cls.__mro__ if "__init__" in vars(c))


@cache
def options(cls: type) -> Mapping[str, Option]:
    """Give the user's options of a component class."""
    try:
        hints = typing.get_type_hints(_constructor(cls))
    except (NameError, TypeError):
        hints = {}
    return {
        name: Option(name, hints.get(name, p.annotation), p.default)
        for name, p in parameters(cls).items()
        if name not in ENGINE_PARAMETERS
    }


def bind(cls: type, given: Mapping[str, Any], key: str, label: str) -> tuple[dict[str, Any], list[Fault]]:
    """Check given options against the signature; give all options, defaults included, and the faults."""
    known, faults, bound = options(cls), [], {}
    for name in given:
        if name in ENGINE_PARAMETERS and name not in known:
            faults.append(
                Fault(f"{key}.{name}", f"'{name}' of {label} is filled in by the engine; leave it out")
            )
        elif name not in known:
            faults.append(
                Fault(f"{key}.{name}", f"{label} has no option '{name}'.{did_you_mean(name, known)}")
            )
    for name, option in known.items():
        if name not in given:
            if option.default is REQUIRED:
                faults.append(
                    Fault(f"{key}.{name}", f"{label} needs the option '{name}' ({option.type_name})")
                )
            else:
                # As a file would say it, so that what was stored reads back the same.
                bound[name] = list(option.default) if isinstance(option.default, tuple) else option.default
            continue
        value = given[name]
        if not fits(value, option.annotation):
            faults.append(Fault(f"{key}.{name}", f"{value!r} is no {option.type_name}, as {label} asks for"))
        bound[name] = float(value) if _reads_as_float(value, option.annotation) else value
    return bound, faults


def _reads_as_float(value: Any, annotation: Any) -> bool:
    """Tell whether a whole number stands where a float is meant (1 and 1.0 must be one point)."""
    kinds = typing.get_args(annotation) or (annotation,)
    return isinstance(value, int) and not isinstance(value, bool) and float in kinds and int not in kinds


def fits(value: Any, annotation: Any) -> bool:
    """Tell whether a plain YAML value fits an annotation; True where the annotation says nothing."""
    origin = typing.get_origin(annotation)
    if annotation in (REQUIRED, Any):
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, part) for part in typing.get_args(annotation))
    if origin is Literal:
        return value in typing.get_args(annotation)
    if annotation in (type(None), None):
        return value is None
    return _fits_class(value, origin or annotation)


def _fits_class(value: Any, kind: Any) -> bool:
    if not isinstance(kind, type):
        return True
    if isinstance(value, bool):
        return kind in (bool, object)
    if kind is float:
        return isinstance(value, (int, float))
    if kind in (int, str):
        return isinstance(value, kind)
    if value is None:
        return kind is object
    if isinstance(value, (int, float)):
        return kind in (object, complex)
    if isinstance(value, str):
        return not issubclass(kind, (Mapping, Sequence, bool))
    if isinstance(value, list):
        return issubclass(kind, Sequence) or issubclass(list, kind)
    if isinstance(value, dict):
        return issubclass(kind, Mapping) or issubclass(dict, kind)
    return kind is not bool


def construct(cls: type, given: Mapping[str, Any], known: Mapping[str, Any]) -> Any:
    """Build a component from the user's options and, of what the engine knows, what it asks for by name."""
    asked = {name: known[name] for name in parameters(cls) if name in known and name not in given}
    return cls(**given, **asked)
