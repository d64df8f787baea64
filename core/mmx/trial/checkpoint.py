"""Keeps a training under way on disk, so that a crash costs no more than the epoch in which it comes.

A file appears whole or not at all, under a temporary name of its own first, so that several processes may
share a folder.
"""

import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch

from mmx.worker import is_gone, this_worker

HALF = ".part"
"""How names of files end that are being written."""

_told: list[Path] = []
"""The file of which this process has told that it cannot be written; once is enough."""


class Checkpoint:
    """The file of one training, named by its key. No method raises where a disk or a file is bad."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Any] | None:
        """Give what was written last; None where there is nothing. What is not whole is dropped."""
        try:
            return _load(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Exception as error:  # noqa: BLE001 garbage may raise anything
            self.drop(f"{type(error).__name__}: {error}")
            return None

    def write(self, state: Mapping[str, Any]) -> None:
        """Put plain values and tensors in the place of those before; warn, once, where that fails."""
        try:
            write_whole(self.path, lambda half: _save({"key": self.path.stem, **state}, half))
        except OSError as error:
            if not _told:
                _told.append(self.path)
                warnings.warn(
                    f"no checkpoint can be written to '{self.path.parent}' ({error.strerror or error}): "
                    "training goes on, but a crash would lose a trial's epochs; free space there, or make it "
                    "writable",
                    stacklevel=2,
                )

    def drop(self, reason: str) -> None:
        """Remove a file that cannot be used, and say so."""
        told = (reason.splitlines() or ["empty"])[0][:200]
        warnings.warn(f"checkpoint '{self.path}' cannot be used ({told}): training starts over", stacklevel=2)
        self.remove()

    def remove(self) -> None:
        """Remove the file, if there is one."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
            _sweep(self.path)


def _load(path: Path) -> dict[str, Any]:
    with ZipFile(path) as archive:
        if archive.testzip() is not None:  # torch does not look at checksums
            raise ValueError("its checksums do not agree")
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state.pop("key") != path.stem:
        raise ValueError("it is of another training")
    return state


def _save(state: Mapping[str, Any], path: Path) -> None:
    try:
        with path.open("wb") as file:
            torch.save(state, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # torch's writer falls over the disk's error
            raise error.__context__ from error
        raise


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file by a function that is given another name in its folder, and rename it when it is whole.

    The folder is made where it is missing. Raises what the function raises, and OSError of the disk; the file
    that was there before stays then, and nothing of the half-written one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    half = path.with_name(f"{path.stem}-{this_worker()}{HALF}")
    try:
        write(half)
        half.replace(path)
    finally:
        with suppress(OSError):
            half.unlink(missing_ok=True)


def _sweep(path: Path) -> None:
    """Remove what processes that were killed have left half-written in a file's place."""
    for half in path.parent.glob(f"{path.stem}-*{HALF}"):
        if is_gone(half.name.removeprefix(f"{path.stem}-").removesuffix(HALF)):
            with suppress(OSError):
                half.unlink(missing_ok=True)
