"""What a table may be: a file, a folder that Hugging Face `datasets` saved, or one of images or sounds."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from mmx.errors import DataError
from mmx_datasets.media_folders import files_of_media, media_batches
from mmx_datasets.saved_datasets import files_of_saved, is_saved, saved_batches
from mmx_datasets.table_formats import file_batches


def sources(path: Path) -> list[Path]:
    """List the files, or folders, whose change changes the table (DataError where there is none)."""
    if path.is_dir():
        return files_of_saved(path) if is_saved(path) else files_of_media(path)
    if not path.is_file():
        raise DataError(
            f"manifest: table '{path}' is not there; give the path of a CSV, Parquet or JSONL file, or of a "
            "folder of Hugging Face datasets"
        )
    return [path]


def batches(path: Path, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Stream some columns of a table, whatever it is (DataError where it cannot be read)."""
    if not path.is_dir():
        yield from file_batches(path, names)
        return
    reader = saved_batches if is_saved(path) else media_batches
    try:
        yield from reader(path, names)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"manifest: '{path}' cannot be read ({str(error).splitlines()[0]})") from error
