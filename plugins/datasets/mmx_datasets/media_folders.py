"""Folders of images, sounds or films in the layout of the Hugging Face Hub (imagefolder, audiofolder).

Either `train/CLASS/x.png`, where the folder is the class, or a `metadata.csv`, `.jsonl` or `.parquet` beside
the files, whose column `file_name` has paths relative to it. Folders named like splits say the split.
"""

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from mmx.errors import DataError, did_you_mean
from mmx_datasets.media import FILMS, IMAGES
from mmx_datasets.table_formats import ROWS_AT_ONCE, SPLITS, file_batches

SOUNDS = frozenset({".wav", ".flac", ".ogg", ".mp3", ".opus", ".aiff", ".aif", ".au"})
FILE, LABEL, SPLIT = "file_name", "label", "split"
FILE_NAMES = frozenset({FILE, "image", "audio", "video"})
"""Under which names the column with the file may be asked for."""
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
SPLIT_NAMES = frozenset(alias for aliases in SPLITS.values() for alias in aliases)


def files_of_media(folder: Path) -> list[Path]:
    """List what decides what a folder says: its folders, whose time is that of their lists, and metadata."""
    folders = list(_folders(folder))
    return [*folders, *_metadata(folders)]


def media_batches(folder: Path, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Stream some columns of a folder; paths are relative to it."""
    folders = list(_folders(folder))
    described = _metadata(folders)
    if described:
        for table in described:
            yield from _from_metadata(folder, table, names)
    else:
        yield from _from_classes(folder, folders, names)


def _folders(folder: Path) -> Iterator[Path]:
    """Give a folder and those in it, in the order of names; hidden ones are left out."""
    yield folder
    inner = sorted(e.path for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))
    for path in inner:
        yield from _folders(Path(path))


def _metadata(folders: Sequence[Path]) -> list[Path]:
    return [path for folder in folders for path in (folder / name for name in METADATA) if path.is_file()]


def _has_splits(folder: Path) -> bool:
    return any(e.is_dir() and e.name.lower() in SPLIT_NAMES for e in os.scandir(folder))


def _from_metadata(folder: Path, table: Path, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Read a table of metadata; the split is the first folder of a file's path where folders say it."""
    by_folder = SPLIT in names and _has_splits(folder)
    place = table.parent.relative_to(folder).as_posix()
    asked = [FILE if name in FILE_NAMES else name for name in names if not (by_folder and name == SPLIT)]
    asked = list(dict.fromkeys([*asked, *([FILE] if by_folder else [])]))
    for batch in file_batches(table, asked):
        paths = {name: batch[name] for name in asked if name.endswith(FILE)}
        if place != ".":
            paths = {n: pc.binary_join_element_wise(place, cells, "/") for n, cells in paths.items()}
        known = {name: paths.get(name, batch[name]) for name in asked}
        if by_folder:
            known[SPLIT] = pc.list_element(pc.split_pattern(known[FILE], "/", max_splits=1), 0)
        columns = [known[FILE if name in FILE_NAMES else name] for name in names]
        yield pa.RecordBatch.from_arrays(columns, names=list(names))


def _from_classes(folder: Path, folders: Sequence[Path], names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Read a folder without metadata: a file is a row, and the folder that it lies in its class."""
    found = [*sorted(FILE_NAMES), LABEL, *([SPLIT] if _has_splits(folder) else [])]
    for name in names:
        if name not in found:
            hint = ' Deal its rows out by split_column: ""' if name == SPLIT else did_you_mean(name, found)
            raise DataError(
                f"manifest: folder '{folder.name}' has no metadata.csv and no column '{name}'.{hint}"
            )
    rows = ((path, inner) for inner in folders for path in _media(inner))
    while piece := list(islice(rows, ROWS_AT_ONCE)):
        paths = [path.relative_to(folder).as_posix() for path, _ in piece]
        known = {
            LABEL: [inner.name if inner != folder else None for _, inner in piece],
            SPLIT: [path.partition("/")[0] for path in paths],
        }
        columns = [pa.array(known.get(name, paths), pa.string()) for name in names]
        yield pa.RecordBatch.from_arrays(columns, names=list(names))


def _media(folder: Path) -> Iterator[Path]:
    endings = IMAGES | SOUNDS | FILMS
    with os.scandir(folder) as entries:
        found = sorted(e.name for e in entries if Path(e.name).suffix.lower() in endings)
    return (folder / name for name in found)
