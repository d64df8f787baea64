"""Streams the columns of a CSV, Parquet or JSON Lines file in pieces, and reads its cells."""

import csv as plain
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from mmx.errors import DataError, did_you_mean

TaskName = Literal["single_label", "multi_label", "regression"]
SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
ROWS_AT_ONCE = 20_000
JSON_ROWS_AT_ONCE = 2_000  # dictionaries take much more memory than columns


def file_batches(path: Path, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Stream some columns of a file, whatever its format (DataError where it cannot be read)."""
    readers = {".csv": _csv, ".tsv": _csv, ".parquet": _parquet, ".pq": _parquet, ".jsonl": _jsonl,
               ".ndjson": _jsonl}  # fmt: skip
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"manifest: '{path.name}' is none of {', '.join(readers)}; name it by its format")
    try:
        yield from reader(path, names)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"manifest: '{path}' cannot be read ({str(error).splitlines()[0]})") from error


def _known(path: Path, names: Sequence[str], found: Sequence[str]) -> None:
    for name in names:
        if name not in found:
            raise DataError(f"manifest: '{path.name}' has no column '{name}'.{did_you_mean(name, found)}")


def _csv(path: Path, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    from pyarrow import csv

    parse = csv.ParseOptions(
        delimiter="\t" if path.suffix.lower() == ".tsv" else ",", newlines_in_values=True
    )
    with path.open(encoding="utf-8-sig", newline="") as file:
        _known(path, names, next(plain.reader(file, delimiter=parse.delimiter), []))
    convert = csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()),
        include_columns=list(names),
        strings_can_be_null=True,
        null_values=[""],  # a text may well be "NA" or "null"
    )
    with csv.open_csv(path, parse_options=parse, convert_options=convert) as reader:
        yield from (batch for batch in reader if batch.num_rows)


def _parquet(path: Path, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    from pyarrow import parquet

    with parquet.ParquetFile(path, memory_map=True) as file:
        _known(path, names, file.schema_arrow.names)
        yield from file.iter_batches(ROWS_AT_ONCE, columns=list(names))


def _jsonl(path: Path, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Read objects line by line: a key that the first rows lack is a column none the less."""
    found: set[str] = set()
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = dict(json.loads(line))
            except (ValueError, TypeError) as error:
                raise DataError(
                    f"manifest: line {number} of '{path.name}' is no JSON object ({error})"
                ) from error
            found.update(row)
            rows.append(row)
            if len(rows) == JSON_ROWS_AT_ONCE:
                yield _batch_of(rows, names)
                rows = []
    _known(path, names, sorted(found))
    if rows:
        yield _batch_of(rows, names)


def _batch_of(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> pa.RecordBatch:
    """Make every cell text, since rows may differ in type: lists of names joined by `|`, the rest JSON."""

    def cell(value: Any) -> str | None:
        if isinstance(value, list) and all(isinstance(part, str) for part in value):
            return "|".join(value)
        return value if value is None or isinstance(value, str) else json.dumps(value)

    return pa.RecordBatch.from_arrays(
        [pa.array([cell(row.get(name)) for row in rows], pa.string()) for name in names], names=list(names)
    )


def texts(column: pa.Array) -> pa.Array:
    """Give cells as text without spaces around it; null where nothing is left, or where a number is NaN."""
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    trimmed = pc.utf8_trim_whitespace(column.cast(pa.string()))
    return pc.if_else(pc.equal(trimmed, ""), None, trimmed)


def label_texts(column: pa.Array) -> pa.Array:
    """Give labels as text; whole numbers without a fraction, lists joined by `|`."""
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        joined = [None if cell is None else "|".join(map(str, cell)) for cell in column.to_pylist()]
        return pa.array(joined, pa.string())
    return texts(column)


def numbers(cell: Any) -> list[float] | None:
    """Read a cell of numbers: a number, a list, or a text of either, with spaces, commas or `;` between."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None
    if isinstance(cell, str):
        return [
            float(part) for part in cell.strip("[] \t").replace(",", " ").replace(";", " ").split()
        ] or None
    return [float(part) for part in cell] if isinstance(cell, list) else [float(cell)]


def number_or_text(label: str) -> tuple[int, float, str]:
    """Order labels that are numbers by value, before all others."""
    try:
        return 0, float(label), label
    except ValueError:
        return 1, 0.0, label


def labels_in(text: str, task: TaskName) -> list[str]:
    """Cut a label's text into single labels; none for a number, which ValueError refuses where it is none."""
    if task == "multi_label":
        return [part.strip() for part in text.split("|") if part.strip()]
    if task == "single_label":
        return [text]
    if not abs(float(text)) < float("inf"):
        raise ValueError(f"'{text}' is not finite")
    return []


def joined(cells: Sequence[Any]) -> list[float | None] | None:
    """Read one cell of numbers, or several of one number each."""
    if len(cells) == 1:
        alone = numbers(cells[0])
        return None if alone is None else [*alone]
    found: list[float | None] = []
    for cell in cells:
        found += numbers(cell) or [None]
    return found
