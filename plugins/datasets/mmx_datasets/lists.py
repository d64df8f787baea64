"""Reads the lists that come with datasets; DataError names the line that is wrong."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmx.errors import DataError, did_you_mean


def csv_rows(path: Path, width: int) -> list[list[str]]:
    """Read a list without a header (DataError names a line that has not so many cells)."""
    rows = []
    with path.open(encoding="utf-8-sig", newline="", errors="replace") as file:
        for number, row in enumerate(csv.reader(file), start=1):
            if row and len(row) != width:
                raise DataError(f"line {number} of '{path}' has {len(row)} cells instead of {width}")
            if row:
                rows.append([cell.strip() for cell in row])
    return rows


def json_file(path: Path) -> Any:
    """Read a JSON file (DataError where it is none)."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"'{path}' cannot be read as JSON ({error}); get it again") from error


def json_lines(path: Path) -> list[dict[str, Any]]:
    """Read a JSON Lines file (DataError names a line that is none)."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if line.strip():
            try:
                rows.append(dict(json.loads(line)))
            except (ValueError, TypeError) as error:
                raise DataError(f"line {number} of '{path}' is no JSON object ({error})") from error
    return rows


def first_there(root: Path, names: Sequence[str]) -> Path | None:
    """Give the first of some files or folders that is there."""
    return next((root / name for name in names if (root / name).exists()), None)


def number_of(label: str, classes: Sequence[str], place: str) -> int:
    """Number a class (DataError where it is none)."""
    if label not in classes:
        raise DataError(f"{place}: '{label}' is no class.{did_you_mean(label, classes)}")
    return list(classes).index(label)
