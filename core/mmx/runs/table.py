"""Reads a table of raw inputs, a column a modality, for a model that takes absent ones.

A cell that is null (None, NaN), and every cell of a column that is not there, says that the row lacks the
modality. Whatever cannot be read is told with its row, counted from 0, and nothing is guessed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mmx.contracts import Modality, Presence
from mmx.errors import DataError, InputError, did_you_mean

ID = "id"
"""The one column that is no modality: it is handed through."""
TOLD = 5
"""How many bad rows a message names."""


@dataclass(frozen=True)
class Input:
    """What a model takes of one modality."""

    kind: str
    """image, audio, text, video or vector."""
    shape: tuple[int, ...]
    """Of one raw input."""
    dtype: str
    """Of torch: float32, int64, …"""

    @property
    def count(self) -> int:
        """Numbers in one raw input."""
        return int(np.prod(self.shape))

    def blank(self, rows: int = 1) -> Tensor:
        """Give zeros of the right shape and type."""
        return torch.zeros(rows, *self.shape, dtype=getattr(torch, self.dtype))

    @classmethod
    def of(cls, kind: str, example: Tensor) -> "Input":
        """Read it off one raw input."""
        return cls(kind, tuple(example.shape), str(example.dtype).removeprefix("torch."))


@dataclass(frozen=True)
class Rows:
    """A table that was read."""

    ids: Sequence[Any] | None
    """None where it has no column `id`."""
    inputs: Mapping[Modality, Tensor]
    """Zeros where a row lacks the modality."""
    presence: Presence


@dataclass
class Faults:
    """Collects what is wrong with a table's rows, to tell the first few at once."""

    told: list[str] = field(default_factory=list)

    def add(self, row: int, column: str, message: str) -> None:
        """Note what is wrong with a cell."""
        self.told.append(f"row {row}, column '{column}': {message}")

    def raise_any(self) -> None:
        """Raise DataError where there was anything."""
        if self.told:
            more = f"; and {len(self.told) - TOLD} more" if len(self.told) > TOLD else ""
            raise DataError("; ".join(self.told[:TOLD]) + more)


def read_table(table: pd.DataFrame, inputs: Mapping[Modality, Input]) -> Rows:
    """Read a table; DataError names bad rows, InputError bad columns."""
    check_columns([str(name) for name in table.columns], inputs)
    faults = Faults()
    values, presence = {}, {}
    for m, wanted in inputs.items():
        cells = table[m].tolist() if m in table.columns else [None] * len(table)
        values[m], presence[m] = _read_column(m, cells, wanted, faults)
    _refuse_empty_rows(presence, faults)
    faults.raise_any()
    handed = ID in table.columns and ID not in inputs
    return Rows(table[ID].tolist() if handed else None, values, presence)


def check_columns(names: Sequence[str], inputs: Mapping[Modality, Input]) -> None:
    """Refuse columns that are no modality, columns that stand twice, and a table without any modality."""
    strange = [n for n in names if n not in inputs and n != ID]
    if strange:
        hint = did_you_mean(strange[0], inputs)
        raise InputError(
            f"column '{strange[0]}' is neither a modality nor '{ID}'; rename it or leave it out.{hint}"
        )
    twice = [n for n in names if names.count(n) > 1]
    if twice:
        raise InputError(f"column '{twice[0]}' stands in the table more than once; leave one of them")
    if not any(m in names for m in inputs):
        raise InputError(f"the table has none of the columns {', '.join(inputs)}; a model needs at least one")


def _read_column(m: Modality, cells: Sequence[Any], wanted: Input, faults: Faults) -> tuple[Tensor, Tensor]:
    """Give a modality's raw inputs and who has it; a cell that cannot be read counts as present."""
    values = wanted.blank(len(cells))
    present = torch.tensor([not is_null(cell) for cell in cells], dtype=torch.bool)
    for row in present.nonzero()[:, 0].tolist():
        try:
            values[row] = _read_cell(cells[row], wanted)
        except DataError as error:
            faults.add(row, m, str(error))
    return values, present


def _refuse_empty_rows(presence: Presence, faults: Faults) -> None:
    empty = (~torch.stack(list(presence.values())).any(dim=0)).nonzero()[:, 0].tolist()
    if empty:
        rows = ", ".join(map(str, empty[:TOLD])) + (", …" if len(empty) > TOLD else "")
        noun = "row" if len(empty) == 1 else "rows"
        faults.told.append(
            f"{noun} {rows}: no modality at all; a prediction needs at least one of {', '.join(presence)}"
        )


def is_null(cell: Any) -> bool:
    """Tell whether a cell says that there is nothing."""
    if isinstance(cell, (float, np.floating)):
        return bool(np.isnan(cell))
    return cell is None or cell is pd.NA or cell is pd.NaT


def _read_cell(cell: Any, wanted: Input) -> Tensor:
    """Read one raw input, nested or flat (DataError says what is wrong with it)."""
    numbers = _numbers(cell)
    if numbers.shape != wanted.shape and not (numbers.ndim <= 1 and numbers.size == wanted.count):
        raise DataError(
            f"has shape {list(numbers.shape)}, wanted {list(wanted.shape)} (or {wanted.count} numbers in "
            f"one list)"
        )
    if not np.isfinite(numbers).all():
        raise DataError("holds NaN or infinite numbers")
    return _as_type(numbers.reshape(wanted.shape), wanted.dtype)


def _as_type(numbers: np.ndarray, name: str) -> Tensor:
    """Give numbers another type (DataError where it cannot hold them)."""
    dtype = getattr(torch, name)
    if dtype.is_floating_point:
        # Copied, since arrays from files and tables may be read-only.
        found = torch.from_numpy(numbers.astype(np.float64)).to(dtype)
        if not bool(torch.isfinite(found).all()):
            raise DataError(f"holds numbers that are too large for {name}")
        return found
    with np.errstate(invalid="ignore"):  # what overflows is no longer equal below
        whole = numbers.astype(np.int64)
    found = torch.from_numpy(whole).to(dtype)
    if not (whole == numbers).all() or not bool((found == torch.from_numpy(whole)).all()):
        raise DataError(f"holds numbers that are no {name}")
    return found


def _numbers(cell: Any) -> np.ndarray:
    """Make a cell an array of numbers."""
    if isinstance(cell, (str, bytes)):
        raise DataError(f"is text ({cell[:20]!r}) where numbers are wanted")
    try:
        found = np.asarray(_unpacked(cell))
    except ValueError as error:
        raise DataError("is a nested list whose parts differ in length") from error
    if found.dtype.kind not in "iuf":
        raise DataError("holds something else than numbers")
    return found


def _unpacked(cell: Any) -> Any:
    """Make one array of arrays in arrays, as which Parquet gives nested lists."""
    if isinstance(cell, np.ndarray) and cell.dtype == object:
        return np.asarray([_unpacked(part) for part in cell])
    return cell
