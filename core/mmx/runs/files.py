"""Tables of raw inputs as files. A server never reads any: paths in its requests are text like any other."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from mmx.contracts import Modality
from mmx.errors import DataError, InputError
from mmx.runs.table import Faults, Input, check_columns

READ = (".parquet", ".csv", ".jsonl")
WRITTEN = (".parquet", ".csv")
NOTHING = {"", "null", "none", "nan"}
"""Cells of a CSV file, in any case, that stand for an absent modality."""


def read_file(path: Path, inputs: Mapping[Modality, Input]) -> pd.DataFrame:
    """Read a table. In CSV a cell is a JSON list, or the path of an .npy file below its folder."""
    if path.suffix not in READ:
        raise InputError(f"'{path}' is no table that can be read; write {', '.join(READ)}")
    if not path.is_file():
        raise InputError(f"there is no file '{path}'")
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        return _read_lines(path) if path.suffix == ".jsonl" else _read_csv(path, inputs)
    except (OSError, ValueError, pa.ArrowException) as error:
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"'{path}' cannot be read as {path.suffix[1:]}: {told}") from error


def _read_lines(path: Path) -> pd.DataFrame:
    """Read one JSON object a line, as it stands: nothing is taken for a date or a number that is none."""
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        record = json.loads(line)
        if not isinstance(record, dict):
            raise InputError(f"'{path}', line {number}: is no JSON object; write one object a row")
        records.append(record)
    names = dict.fromkeys(name for record in records for name in record)
    return pd.DataFrame({n: pd.Series([r.get(n) for r in records], dtype=object) for n in names})


def _read_csv(path: Path, inputs: Mapping[Modality, Input]) -> pd.DataFrame:
    table = pd.read_csv(path, dtype=str, na_filter=False)
    check_columns(list(table.columns), inputs)
    faults = Faults()
    for m in (m for m in inputs if m in table.columns):
        cells: list[Any] = []
        for row, text in enumerate(table[m]):
            try:
                cells.append(_read_cell(text.strip(), path.parent))
            except DataError as error:
                cells.append(None)
                faults.add(row, m, str(error))
        table[m] = pd.Series(cells, index=table.index, dtype=object)
    faults.raise_any()
    return table


def _read_cell(text: str, folder: Path) -> Any:
    """Read a cell of a CSV file (DataError where it is neither of what it may be)."""
    if text.lower() in NOTHING:
        return None
    if text.endswith(".npy"):
        return _read_array(text, folder)
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"'{text[:30]}' is neither a JSON list nor the path of an .npy file") from error


def _read_array(name: str, folder: Path) -> Any:
    """Read an .npy file that lies in the table's folder, or below."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise DataError(f"'{name}' lies outside of the table's folder; put it there")
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"'{name}' cannot be read: {error}") from error


def check_target(path: Path, data: Path) -> None:
    """Refuse a file that cannot be written by its suffix, and the table itself."""
    if path.suffix not in WRITTEN:
        raise InputError(f"--out '{path}' ends in none of {', '.join(WRITTEN)}; choose one")
    if path.exists() and data.exists() and path.samefile(data):
        raise InputError(f"--out '{path}' is the table itself; name another file")


def write_file(table: pd.DataFrame, path: Path) -> None:
    """Write predictions by the file's suffix (InputError where that cannot be)."""
    try:
        if path.suffix == ".csv":
            table.to_csv(path, index=False)
        else:
            table.to_parquet(path, index=False)
    except OSError as error:
        raise InputError(f"--out '{path}' cannot be written: {error.strerror or error}") from error
