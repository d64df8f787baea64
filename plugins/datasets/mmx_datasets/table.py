"""A table of any length, read once in pieces into a file that is mapped into memory.

The user's CSV, Parquet or JSON Lines file is streamed, checked and written as one Arrow file a split, with
the columns `row`, `id`, `target` and one for each modality, where null is absence. Rows are then found
without reading those before them, and what is not looked at stays on the disk. The files are kept in the
cache folder under a hash of the table's path, size, time of change and of the options.
"""

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mmx.cache import key_of
from mmx.errors import DataError, did_you_mean
from mmx.protocols import uniforms
from mmx_datasets.saved_datasets import MARK
from mmx_datasets.table_formats import (
    SPLITS,
    TaskName,
    joined,
    label_texts,
    labels_in,
    number_or_text,
    texts,
)
from mmx_datasets.table_sources import batches, sources

FORMAT = 1
KEPT_SECONDS = 30 * 24 * 3600
SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}
LEAVES = r"^[^/\\].*[/\\]\.\.([/\\]|$)|^\.\.([/\\]|$)"
"""What a relative path that climbs out of its folder looks like."""


@dataclass(frozen=True)
class Columns:
    """Which column says what. `modalities`: name to (kind, columns); an empty `id` or `split` is made up."""

    modalities: Mapping[str, tuple[str, tuple[str, ...]]]
    label: str
    split: str
    id: str

    @property
    def names(self) -> list[str]:
        """All columns that are read, each once."""
        found = [self.id, self.split, self.label, *(c for _, cs in self.modalities.values() for c in cs)]
        return list(dict.fromkeys(name for name in found if name))


@dataclass
class Facts:
    """What one pass over a table finds out."""

    labels: list[str] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    absent: dict[str, dict[str, int]] = field(default_factory=dict)
    """For each split, in how many rows each modality is absent."""
    widths: dict[str, int] = field(default_factory=dict)
    """How many numbers each vector has."""


@dataclass(frozen=True)
class Table:
    """An indexed table: its folder, and what is known of it."""

    folder: Path
    facts: Facts

    def split(self, name: str) -> pa.Table:
        """Map the rows of a split; nothing is read before it is looked at."""
        return pa.ipc.open_file(pa.memory_map(str(self.folder / f"{name}.arrow"))).read_all()


def open_table(path: Path, columns: Columns, task: TaskName, cache: Path) -> Table:
    """Index a table, or find the index that an earlier call left (DataError where a row makes no sense)."""
    try:
        key = key_of(sources(path), {"table": FORMAT, "columns": asdict(columns), "task": task})
    except OSError as error:
        raise DataError(f"manifest: '{path}' cannot be read ({error})") from error
    folder = cache / "tables" / key
    if not (folder / "facts.json").is_file():
        _index_whole(path, columns, task, folder)
        _forget_old(folder.parent)
    folder.touch()
    return Table(folder, Facts(**json.loads((folder / "facts.json").read_text(encoding="utf-8"))))


def _index_whole(path: Path, columns: Columns, task: TaskName, folder: Path) -> None:
    """Write an index beside its place, then move it there: it is whole or not there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".part-"))
    try:
        _Indexer(path, columns, task).write(part)
        try:
            os.replace(part, folder)  # noqa: PTH105 Path.replace of folders reads worse
        except OSError:
            if not (folder / "facts.json").is_file():  # else another process was faster
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _forget_old(folder: Path) -> None:
    """Remove indexes that nobody has opened for long, and what a killed process left half written."""
    for index in folder.iterdir():
        with contextlib.suppress(OSError):  # another process may be at it
            if index.stat().st_mtime < time.time() - KEPT_SECONDS:
                shutil.rmtree(index, ignore_errors=True)


class _Indexer:
    """One pass over a table."""

    def __init__(self, path: Path, columns: Columns, task: TaskName) -> None:
        self.path, self.columns, self.task = path, columns, task
        self.facts = Facts(absent={s: dict.fromkeys(columns.modalities, 0) for s in SPLITS})
        self.labels: set[str] = set()
        self.seen: set[str] = set()
        self.names = {alias: split for split, aliases in SPLITS.items() for alias in aliases}
        kinds = {m: pa.list_(pa.float32()) if kind == "vector" else pa.string()
                 for m, (kind, _) in columns.modalities.items()}  # fmt: skip
        plain = {"row": pa.int64(), "id": pa.string(), "target": pa.string()}
        self.schema = pa.schema({**plain, **{f"m:{m}": kind for m, kind in kinds.items()}})

    def write(self, folder: Path) -> None:
        """Stream the table into one file a split, and the facts."""
        writers = {s: pa.ipc.new_file(str(folder / f"{s}.arrow"), self.schema) for s in SPLITS}
        start = 1
        try:
            for batch in batches(self.path, self.columns.names):
                for split, rows in self._normal(batch, start).items():
                    writers[split].write_batch(rows)
                start += batch.num_rows
        finally:
            for writer in writers.values():
                writer.close()
        self.facts.labels = sorted(self.labels, key=number_or_text)
        (folder / "facts.json").write_text(json.dumps(asdict(self.facts)), encoding="utf-8")

    def _normal(self, batch: pa.RecordBatch, start: int) -> dict[str, pa.RecordBatch]:
        """Check a piece of the table and divide it among the splits."""
        rows = pa.array(range(start, start + batch.num_rows), pa.int64())
        modalities = {m: self._cells(batch, m, start) for m in self.columns.modalities}
        self._refuse_empty(modalities, start)
        ids = self._ids(batch, rows)
        columns = [rows, ids, self._targets(batch, start), *modalities.values()]
        whole = pa.RecordBatch.from_arrays(columns, schema=self.schema)
        names = self._splits(batch, ids, start)
        found = {}
        for split in SPLITS:
            part = whole.filter(pc.equal(names, split))
            if part.num_rows:
                found[split] = part
                self.facts.rows[split] += part.num_rows
                for m in self.columns.modalities:
                    self.facts.absent[split][m] += part.column(f"m:{m}").null_count
        return found

    def _place(self, start: int, index: int, column: str) -> str:
        return f"manifest: row {start + index} of '{self.path.name}', column '{column}'"

    def _ids(self, batch: pa.RecordBatch, rows: pa.Array) -> pa.Array:
        if not self.columns.id:
            return pc.binary_join_element_wise("row", rows.cast(pa.string()), " ")
        ids = texts(batch.column(self.columns.id))
        start = rows[0].as_py()
        self._refuse_where(ids.is_null(), start, self.columns.id, "is empty; masks hang on ids")
        return ids

    def _targets(self, batch: pa.RecordBatch, start: int) -> pa.Array:
        labels = label_texts(batch.column(self.columns.label))
        self._refuse_where(labels.is_null(), start, self.columns.label, "is empty; every row needs a label")
        for text in set(pc.unique(labels).to_pylist()) - self.seen:
            try:
                self.labels.update(labels_in(text, self.task))
            except ValueError as error:
                self._refuse_where(pc.equal(labels, text), start, self.columns.label, str(error))
            self.seen.add(text)
        return labels

    def _refuse_where(self, wrong: pa.Array, start: int, column: str, reason: str) -> None:
        """Name the first row that is wrong, if there is one."""
        index = pc.index(wrong, True).as_py()
        if index >= 0:
            raise DataError(f"{self._place(start, index, column)}: {reason}")

    def _splits(self, batch: pa.RecordBatch, ids: pa.Array, start: int) -> pa.Array:
        """Read the split of each row, or deal rows out by a hash of their ids."""
        if not self.columns.split:
            draws = uniforms(ids.to_pylist(), 0, "manifest", "splits")
            held = {True: "test", False: "val"}
            least = SHARES["train"], SHARES["train"] + SHARES["val"]
            return pa.array(["train" if d < least[0] else held[bool(d >= least[1])] for d in draws])
        given = texts(batch.column(self.columns.split))
        for index, text in enumerate(given.to_pylist()):
            if text is None or text.lower() not in self.names:
                raise DataError(
                    f"{self._place(start, index, self.columns.split)}: '{text}' is no split."
                    f"{did_you_mean(str(text), SPLITS)}"
                )
        return pa.array([self.names[text.lower()] for text in given.to_pylist()])

    def _cells(self, batch: pa.RecordBatch, modality: str, start: int) -> pa.Array:
        kind, names = self.columns.modalities[modality]
        if kind != "vector":
            found = texts(batch.column(names[0]))
            if kind == "text":
                files = pc.fill_null(pc.starts_with(found, MARK), False)
                reason = "holds a file, no text; write image, audio or video for its kind"
                self._refuse_where(files, start, names[0], reason)
            else:
                leaves = pc.fill_null(pc.match_substring_regex(found, LEAVES), False)
                reason = "the path leaves the table's folder; write it as an absolute one"
                self._refuse_where(leaves, start, names[0], reason)
            return found
        cells = [batch.column(name).to_pylist() for name in names]
        rows = []
        for index in range(batch.num_rows):
            try:
                rows.append(self._vector(modality, [column[index] for column in cells]))
            except (ValueError, TypeError) as error:
                raise DataError(f"{self._place(start, index, ', '.join(names))}: {error}") from error
        return pa.array(rows, pa.list_(pa.float32()))

    def _vector(self, modality: str, cells: Sequence[Any]) -> list[float] | None:
        """Read the numbers of a row; None where there are none. ValueError says what is wrong."""
        found = joined(cells)
        if found is None or all(n is None for n in found):
            return None
        finite = [n for n in found if n is not None and abs(n) < float("inf")]
        if len(finite) < len(found):
            raise ValueError("a number is empty or not finite; fill it, or make it a modality of its own")
        width = self.facts.widths.setdefault(modality, len(finite))
        if len(finite) != width:
            raise ValueError(f"it has {len(finite)} numbers, the rows before {width}")
        return finite

    def _refuse_empty(self, modalities: Mapping[str, pa.Array], start: int) -> None:
        present = None
        for cells in modalities.values():
            here = cells.is_valid()
            present = here if present is None else pc.or_(present, here)
        empty = pc.index(present, False).as_py()
        if empty >= 0:
            raise DataError(
                f"manifest: row {start + empty} of '{self.path.name}' has none of {list(modalities)}; "
                "take it out"
            )
