"""Dotted paths into plain data; a number is a place in a list."""

from collections.abc import Mapping, Sequence
from typing import Any


def set_path(data: Any, parts: Sequence[str], value: Any) -> None:
    """Set a nested value, making mappings on the way; a component given as text becomes a mapping.

    A number is a place in a list (KeyError where the list has no such place).
    """
    for part in parts[:-1]:
        place: Any = _place(data, part)
        inner = data[place] if isinstance(data, list) else data.get(place)
        if isinstance(inner, str):
            inner = {"name": inner}
        data[place] = inner if isinstance(inner, (dict, list)) else {}
        data = data[place]
    data[_place(data, parts[-1])] = value


def _place(data: Any, part: str) -> Any:
    if not isinstance(data, list):
        return part
    if not part.isdigit() or int(part) >= len(data):
        raise KeyError(part)
    return int(part)


def get_path(data: Any, path: str) -> Any:
    """Look a dotted path up; a number is a place in a list; None where there is nothing."""
    value: Any = data
    for part in path.split("."):
        try:
            place = _place(value, part)
        except KeyError:
            return None
        if not isinstance(value, list) and (not isinstance(value, Mapping) or place not in value):
            return None
        value = value[place]
    return value
