"""manifest: your own table of images, sounds, films, texts and numbers, one row a sample.

An empty cell is natural absence. docs/datasets.md shows a table and its sweep file.
"""

import os
import warnings
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import pyarrow as pa

from mmx.cache import Cache, default_folder
from mmx.contracts import DataCard, Dataset, Sample
from mmx.errors import DataError, did_you_mean
from mmx.tasks import MultiLabel, Regression, SingleLabel, Task
from mmx.types import Modality
from mmx_datasets.media import MEDIA_KINDS, Fit, Shapes
from mmx_datasets.reading import Inputs, Reader
from mmx_datasets.saved_datasets import stored
from mmx_datasets.table import Columns, Table, open_table
from mmx_datasets.table_formats import SPLITS, TaskName, labels_in
from mmx_datasets.words import text_reader

KINDS = (*MEDIA_KINDS, "text", "vector")
CARD = DataCard(
    description="A table of the user's own: files, texts and numbers, one row a sample",
    source="the user's table",
    licence="the user's",
    natural_missing="empty cells",
)


class Manifest(Dataset):
    """Samples of a table: `table` is a CSV, TSV, Parquet or JSON Lines file, or a folder.

    A folder is one that Hugging Face `datasets` has saved (`save_to_disk`), or one of images or sounds in the
    Hub's layout: `train/CLASS/x.png`, or with a `metadata.csv` or `.jsonl` with a column `file_name`.

    `columns`: column to kind (image, audio, video: a path; text; vector: numbers in one cell), or modality to
    a list of columns with one number each. Paths are relative to the table's folder; what leaves it must be
    written as an absolute path. `label_column` holds a class, `|`-separated labels (multi_label) or a number
    (regression); `split_column` train, val or test, and where it is empty (""), rows are dealt out 80/10/10
    by a hash of their ids. `id_column`: what masks hang on; row numbers where it is empty.

    Every input of a kind is brought to one shape: `image_size`, `image_fit`, `sample_rate`, `audio_seconds`,
    `frames` (mmx_datasets.media), `text_length` with `tokenizer`, the path of a tokenizer.json, or with the
    `vocabulary_size` most frequent words of the training split. `on_error`: "raise" stops at a file that
    cannot be read and names its row; "absent" reads every file once at the start and takes what fails for
    absent. `cache` is the folder of indexes and decoded files (empty: the user's cache folder); decoded files
    take at most `cache_gigabytes`, and 0 keeps none.
    """

    card = CARD

    def __init__(
        self,
        table: str,
        columns: Mapping[str, Any],
        label_column: str = "label",
        split_column: str = "split",
        id_column: str = "",
        task_kind: TaskName = "single_label",
        image_size: int = 224,
        image_fit: Fit = "crop",
        sample_rate: int = 16_000,
        audio_seconds: float = 4.0,
        frames: int = 8,
        text_length: int = 64,
        tokenizer: str = "",
        vocabulary_size: int = 30_000,
        on_error: Literal["raise", "absent"] = "raise",
        cache: str = "",
        cache_gigabytes: float = 10.0,
    ) -> None:
        self.path, self.task_kind, self.on_error = Path(table).expanduser(), task_kind, on_error
        found = _modalities(columns)
        self.modalities = {m: kind for m, (kind, _) in found.items()}
        named = Columns(found, label_column, split_column, id_column)
        folder = Path(cache).expanduser() if cache else default_folder()
        self.table = open_table(self.path, named, task_kind, folder)
        self.task = _task(self.table, task_kind)
        self.numbers = {label: number for number, label in enumerate(self.table.facts.labels)}
        shapes = Shapes(image_size, image_fit, sample_rate, audio_seconds, frames)
        text = text_reader(tokenizer, text_length, vocabulary_size, self._training_texts)
        kept = Cache(folder / "decoded", int(cache_gigabytes * 1e9)) if cache_gigabytes > 0 else None
        self.read = Reader(self.modalities, shapes, text, kept)
        self.card = self._own_card()
        self.opened: dict[str, Rows] = {}

    def split(self, name: str) -> Sequence[Sample]:
        """Give the rows of a split, each file read when it is asked for."""
        if name not in SPLITS:
            raise DataError(f"manifest: no split '{name}'.{did_you_mean(name, SPLITS)}")
        if name not in self.opened:
            rows = Rows(self, self.table.split(name))
            self.opened[name] = rows.without_broken_files() if self.on_error == "absent" else rows
        return self.opened[name]

    @classmethod
    def prepare(cls, root: Path) -> str:
        """Say what a table looks like."""
        return (
            f"Write a table such as '{root / 'table.csv'}': a row a sample, a column for each modality, "
            "`label` and `split`; paths relative to it. Then set dataset.table and dataset.columns"
        )

    def target(self, text: str) -> Any:
        """Read a label."""
        if self.task_kind == "regression":
            return float(text)
        if self.task_kind == "single_label":
            return self.numbers[text]
        target = np.zeros(len(self.numbers), dtype=np.float32)
        target[[self.numbers[label] for label in labels_in(text, self.task_kind)]] = 1
        return target

    def _training_texts(self) -> Iterator[str]:
        for batch in self.table.split("train").to_batches():
            for m, kind in self.modalities.items():
                if kind == "text":
                    yield from (text for text in batch.column(f"m:{m}").to_pylist() if text is not None)

    def _own_card(self) -> DataCard:
        rows, absent = self.table.facts.rows, self.table.facts.absent
        shares = {m: sum(absent[s][m] for s in SPLITS) / max(1, sum(rows.values())) for m in self.modalities}
        told = ", ".join(f"{m} {share:.1%}" for m, share in shares.items())
        return DataCard(CARD.description, f"the table '{self.path.name}'", CARD.licence, "", rows, {}, told)


class Rows(Sequence[Sample]):
    """The samples of one split of a table; a (row of the split, modality) in `broken` is taken for absent."""

    def __init__(
        self, dataset: Manifest, rows: pa.Table, broken: frozenset[tuple[int, Modality]] = frozenset()
    ) -> None:
        self.dataset, self.rows, self.broken = dataset, rows, broken
        self.folder = dataset.path if dataset.path.is_dir() else dataset.path.parent
        self.pieces = rows.to_batches()
        self.starts = list(accumulate((piece.num_rows for piece in self.pieces), initial=0))
        self.contents = _Contents(self)

    def __len__(self) -> int:
        """Count the rows."""
        return self.rows.num_rows

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        """Give a sample, none of its files read."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        number = bisect_right(self.starts, place) - 1
        piece, offset = self.pieces[number], place - self.starts[number]
        identity, target = (piece.column(name)[offset].as_py() for name in ("id", "target"))
        inputs = Inputs(
            self.dataset.read,
            lambda: self._values(place, piece, offset),
            lambda: f"row {piece.column('row')[offset]} of '{self.dataset.path.name}'",
        )
        return Sample(identity, inputs, self.dataset.target(target))

    def _values(self, place: int, piece: pa.RecordBatch, offset: int) -> dict[Modality, Any]:
        """Give what stands in the cells of a row that are not empty or broken."""
        cells = {m: piece.column(f"m:{m}")[offset].as_py() for m in self.dataset.modalities}
        return {
            m: self._value(m, cell)
            for m, cell in cells.items()
            if cell is not None and (place, m) not in self.broken
        }

    def without_broken_files(self) -> "Rows":
        """Read every file once; leave out what fails (DataError where a row is left with nothing)."""
        broken = set()
        media = [m for m, kind in self.dataset.modalities.items() if kind in MEDIA_KINDS]
        for place, sample in enumerate(self):
            failed = [m for m in media if m in sample.inputs and not _can_read(sample, m)]
            if failed and len(failed) == len(sample.inputs):
                raise DataError(
                    f"manifest: no file of sample '{sample.id}' of '{self.dataset.path.name}' can be read; "
                    "take the row out of the table"
                )
            broken |= {(place, m) for m in failed}
        if broken:
            warnings.warn(
                f"manifest: {len(broken)} files of '{self.dataset.path.name}' cannot be read and count as "
                f"absent (on_error: absent); the first stands in row {self._row(min(broken)[0])}",
                stacklevel=2,
            )
        return Rows(self.dataset, self.rows, frozenset(broken))

    def _row(self, place: int) -> Any:
        """Give the number in the table of a row of this split."""
        number = bisect_right(self.starts, place) - 1
        return self.pieces[number].column("row")[place - self.starts[number]]

    def _value(self, modality: Modality, cell: Any) -> Any:
        """Give what stands in a cell; a path is seen from the table's folder."""
        if self.dataset.modalities[modality] not in MEDIA_KINDS:
            return cell
        return stored(cell, self.folder) or os.path.join(self.folder, cell)  # noqa: PTH118 20 times as fast as Path


class _Contents(Sequence[tuple[str, tuple[Modality, ...]]]):
    """Who has what in each row, read off the index piece by piece."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        sample = self.rows[index]
        return sample.id, tuple(sample.inputs)

    def __iter__(self) -> Iterator[tuple[str, tuple[Modality, ...]]]:
        names = list(self.rows.dataset.modalities)
        start = 0
        for batch in self.rows.pieces:
            here = np.stack([batch.column(f"m:{m}").is_valid().to_numpy(zero_copy_only=False) for m in names])
            for place, m in self.rows.broken:
                if start <= place < start + batch.num_rows:
                    here[names.index(m), place - start] = False
            # Few patterns and many rows: each pattern's tuple is made once.
            codes = (2 ** np.arange(len(names)) @ here).tolist()
            known = {c: tuple(m for k, m in enumerate(names) if c >> k & 1) for c in set(codes)}
            ids = batch.column("id").to_pylist()
            yield from ((i, known[code]) for i, code in zip(ids, codes, strict=True))
            start += batch.num_rows


def _modalities(columns: Mapping[str, Any]) -> dict[Modality, tuple[str, tuple[str, ...]]]:
    """Read the option `columns`."""
    if not columns:
        raise DataError("manifest: columns is empty; name at least one, such as columns: {photo: image}")
    found: dict[Modality, tuple[str, tuple[str, ...]]] = {}
    for name, said in columns.items():
        if not name.isidentifier():
            raise DataError(f"manifest: '{name}' must be letters, digits and '_'; rename the table's column")
        if isinstance(said, str) and said in KINDS:
            found[name] = said, (name,)
        elif isinstance(said, Sequence) and not isinstance(said, str) and said:
            found[name] = "vector", tuple(map(str, said))
        else:
            raise DataError(
                f"manifest: columns.{name}: '{said}' is neither a list of columns nor a kind."
                f"{did_you_mean(str(said), KINDS)}"
            )
    return found


def _task(table: Table, kind: TaskName) -> Task:
    """Give the task (DataError where all rows have one label)."""
    if kind == "regression":
        return Regression()
    count = len(table.facts.labels)
    if kind == "multi_label":
        return MultiLabel(max(1, count))
    if count < 2:
        raise DataError(f"manifest: all rows have the label {table.facts.labels}; two classes are needed")
    return SingleLabel(count)


def _can_read(sample: Sample, modality: Modality) -> bool:
    try:
        sample.inputs[modality]
    except DataError:
        return False
    return True
