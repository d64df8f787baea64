"""Folders that Hugging Face `datasets` writes by `save_to_disk`, read by pyarrow alone.

A folder has `state.json`, which lists its Arrow files, and `dataset_info.json` with the features; one with
several splits has `dataset_dict.json`, which lists them, and such a folder for each. Images and sounds are
structs of bytes and path. The files are mapped into memory, and a cell is copied when it is read.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from mmx.errors import DataError, did_you_mean

SPLIT = "split"
"""The column that says which of several splits a row is of."""
MARK = "\0"
"""What a reference to a cell begins with and no path can."""
FILES_OPEN = 64


class Stored(NamedTuple):
    """The bytes of a file that stand in a cell of an Arrow file."""

    file: Path
    column: str
    batch: int
    row: int
    """Its number within the batch."""

    def __str__(self) -> str:
        """Say where it stands."""
        return f"{self.file.name}, column {self.column}, batch {self.batch}, row {self.row}"

    def read(self) -> bytes:
        """Give the bytes."""
        content: bytes = _mapped(self.file, self.file.stat().st_mtime_ns)[self.batch][self.column][self.row][
            "bytes"
        ].as_py()
        return content


def is_saved(folder: Path) -> bool:
    """Tell whether `save_to_disk` has written a folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def files_of_saved(folder: Path) -> list[Path]:
    """List the files that decide what a folder says (DataError where one is not as it should be)."""
    described = [
        part / name for part in _parts(folder).values() for name in ("state.json", "dataset_info.json")
    ]
    return [*described, *(shard for part in _parts(folder).values() for shard in _shards(part))]


def saved_batches(folder: Path, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Stream some columns: classes by name, for files in cells references (`stored`), or their paths."""
    parts = _parts(folder)
    for split, part in parts.items():
        features = _json(part / "dataset_info.json").get("features") or {}
        for shard in _shards(part):
            for number, batch in enumerate(_mapped(shard, shard.stat().st_mtime_ns)):
                found = [*batch.schema.names, *([SPLIT] if split else [])]
                for name in names:
                    if name not in found:
                        raise DataError(_lacking(folder, name, found))
                place = f"{shard.relative_to(folder)}{MARK}{number}{MARK}"
                columns = [
                    _cells(batch[name], features.get(name), f"{name}{MARK}{place}")
                    if name in batch.schema.names
                    else pa.array([split] * batch.num_rows, pa.string())
                    for name in names
                ]
                yield pa.RecordBatch.from_arrays(columns, names=list(names))


def stored(cell: str, folder: Path) -> Stored | None:
    """Read a reference; None where the cell is a path."""
    if not cell.startswith(MARK):
        return None
    column, shard, batch, row = cell[1:].split(MARK)
    return Stored(folder / shard, column, int(batch), int(row))


def _lacking(folder: Path, name: str, found: Sequence[str]) -> str:
    if name == SPLIT:
        return (
            f"manifest: '{folder.name}' has one split alone and no column 'split'; deal its rows out by "
            'split_column: ""'
        )
    return f"manifest: '{folder.name}' has no column '{name}'.{did_you_mean(name, found)}"


def _parts(folder: Path) -> dict[str, Path]:
    """Give the folder of each split; one without splits is named ""."""
    if (folder / "dataset_dict.json").is_file():
        return {name: folder / name for name in _json(folder / "dataset_dict.json")["splits"]}
    return {"": folder}


def _shards(folder: Path) -> list[Path]:
    state = _json(folder / "state.json")
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise DataError(
            f"manifest: '{folder}' holds a selection of rows that an old version of datasets wrote; "
            "save it anew"
        )
    return [folder / file["filename"] for file in state["_data_files"]]


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"manifest: '{path}' cannot be read ({error}); save the dataset anew by save_to_disk"
        ) from error
    return found


@lru_cache(maxsize=FILES_OPEN)
def _mapped(shard: Path, changed: int) -> list[pa.RecordBatch]:
    """Map the pieces of an Arrow file; `changed` tells apart what was written later under the name."""
    del changed
    with pa.ipc.open_stream(pa.memory_map(str(shard))) as stream:
        return list(stream)


def _cells(column: pa.Array, feature: Any, place: str) -> pa.Array:
    """Turn classes into their names, and files into references or paths."""
    if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        there = column.is_valid()
        has_bytes = pc.and_(there, column.field("bytes").is_valid())
        rows = pa.array(range(len(column)), pa.int64()).cast(pa.string())
        references = pc.binary_join_element_wise(MARK + place, rows, "")
        paths = pc.if_else(there, column.field("path").cast(pa.string()), None)
        return pc.if_else(has_bytes, references, paths)
    classes = _class_names(feature)
    if not classes:
        return column
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        named = [cell and [classes[number] for number in cell] for cell in column.to_pylist()]
        return pa.array(named, pa.list_(pa.string()))
    numbers = pc.if_else(pc.less(column, 0), None, column)  # -1 stands for what is not known
    return pa.array(classes, pa.string()).take(numbers)


def _class_names(feature: Any) -> list[str]:
    """Give the names of a ClassLabel, or of the ClassLabel in a list; none for all else."""
    if isinstance(feature, list) and feature:
        return _class_names(feature[0])
    if not isinstance(feature, Mapping):
        return []
    if feature.get("_type") == "ClassLabel":
        return list(feature.get("names") or [])
    return _class_names(feature.get("feature"))
