"""Keeps arrays that were costly to make: files, each decoded and resampled once, and encoded splits.

One `.npy` file an entry, read as a memory map: processes share its pages, and no reader needs a lock, because
an entry is written beside its place and then renamed. An entry's name is a hash of all that it was made of
(`key_of`: path, size and time of change of files, and settings): what has changed finds no old entry.
"""

import contextlib
import hashlib
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock

Array = npt.NDArray[Any]

FORMAT = 1
ASKED_BETWEEN_LOOKS = 256
IN_USE_SECONDS = 24 * 3600
TOUCH_SECONDS = 3600


class FullError(Exception):
    """An array has no room in its cache."""


class Cache:
    """Arrays by key, in a folder of at most about `bytes_allowed`.

    A full cache makes room by removing what nobody has read for `idle` seconds, the oldest first, and takes
    nothing new where that is not enough: an epoch that is larger than the cache would else push each entry
    out just before it is read again. An entry that goes while somebody reads it stays readable to him. Each
    process counts its own writes between two looks at the folder, so several may together overshoot by 256
    entries each.
    """

    def __init__(self, folder: Path, bytes_allowed: int, idle: float = IN_USE_SECONDS) -> None:
        self.folder, self.bytes_allowed, self.idle = folder, bytes_allowed, idle
        self._asked = 0
        self._room: int | None = None
        self._process = os.getpid()

    def get(self, key: str, make: Callable[[], Array]) -> Array:
        """Give the entry, made now where there is none. What `make` raises goes through; nothing is kept."""
        path = self._path(key)
        found = _read(path)
        if found is not None:
            return found
        array = make()
        if self._has_room(array.nbytes):
            # A full or read-only disk must not end a training that can do without the cache.
            with contextlib.suppress(OSError):
                _write(path, lambda file: np.save(file, array, allow_pickle=False))
        return array

    def fill(
        self, key: str, shape: Sequence[int], kind: npt.DTypeLike, blocks: Callable[[], Iterator[Array]]
    ) -> Array:
        """Give the entry, where there is none written now from blocks of rows, of which memory holds one.

        Of several processes that ask at once one writes, and the others wait for it. Raises `FullError` where
        there is no room; what `blocks` raises, and OSError of a full disk, go through, and nothing is kept.
        """
        path, size = self._path(key), math.prod(shape) * np.dtype(kind).itemsize
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            found = _read(path)
            if found is None:
                if self.bytes_allowed - self._clean(size) < size:
                    raise FullError(
                        f"{size / 1e9:.3g} GB are needed, {self.bytes_allowed / 1e9:.3g} GB allowed"
                    )
                head = {"descr": np.dtype(kind).str, "fortran_order": False, "shape": tuple(shape)}
                _write(path, lambda file: _write_blocks(file, head, blocks()))
                found = _read(path)
        if found is None:
            raise OSError(f"'{path}' cannot be read back")
        return found

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.npy"

    def size(self) -> int:
        """Count the bytes of all entries."""
        return sum(size for _, size, _ in self._entries())

    def _has_room(self, needed: int) -> bool:
        """Tell whether an entry may be added; look at the folder now and then."""
        if self._process != os.getpid():  # a loader process, which has inherited its parent's count
            self._process, self._room = os.getpid(), None
        if self._room is None or self._asked % ASKED_BETWEEN_LOOKS == 0:
            self._room = self.bytes_allowed - self._clean(needed)
        self._asked += 1
        if self._room < needed:
            return False
        self._room -= needed
        return True

    def _clean(self, needed: int) -> int:
        """Remove old entries as far as there is no room, and what a killed process left half written; give
        the bytes that remain."""
        for part in (*self.folder.glob("??/*.part"), *self.folder.glob("??/*.lock")):
            with contextlib.suppress(FileNotFoundError):
                if part.stat().st_mtime < time.time() - IN_USE_SECONDS:
                    part.unlink()
        entries = sorted(self._entries())
        total = sum(size for _, size, _ in entries)
        for used, size, path in entries:
            if total + needed <= self.bytes_allowed or used > time.time() - self.idle:
                break
            path.unlink(missing_ok=True)
            total -= size
        return total

    def _entries(self) -> list[tuple[float, int, Path]]:
        """List (time of last use, bytes, path)."""
        found = []
        for path in self.folder.glob("??/*.npy"):
            with contextlib.suppress(FileNotFoundError):  # another process has just removed it
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        return found


def key_of(files: Sequence[Path], settings: Mapping[str, Any]) -> str:
    """Name what files become under some settings (OSError where one is not there)."""
    facts = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps([FORMAT, facts, settings], sort_keys=True).encode()).hexdigest()


def default_folder() -> Path:
    """Give the user's own cache folder: `$XDG_CACHE_HOME/mmx`, or `~/.cache/mmx`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mmx"


def _read(path: Path) -> Array | None:
    """Map an entry; None where there is none, or one that a dying disk has cut short."""
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    with contextlib.suppress(OSError):
        if path.stat().st_mtime < time.time() - TOUCH_SECONDS:
            path.touch()
    return array


def _write_blocks(file: Any, head: dict[str, Any], blocks: Iterator[Array]) -> None:
    """Write one array by a file's own writes, which tell of a full disk, as a memory map would not."""
    np.lib.format.write_array_header_1_0(file, head)
    rows = 0
    for block in blocks:
        file.write(np.ascontiguousarray(block, dtype=head["descr"]).data)
        rows += len(block)
    if rows != head["shape"][0]:
        raise ValueError(f"{rows} rows were written of {head['shape'][0]}")


def _write(path: Path, write: Callable[[Any], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        Path(part).replace(path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
