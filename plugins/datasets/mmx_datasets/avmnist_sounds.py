"""Reads the Free Spoken Digit Dataset (FSDD) from a folder, in either layout that people have it in.

    fsdd.npz                                         wave, offset, label, speaker, take, speaker_names
    recordings/<digit>_<speaker>_<take>.wav          8 kHz, mono, 16 bit

Both give the same recordings, sorted by digit, speaker and take.
"""

import hashlib
import re
import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmx.errors import DataError
from mmx_datasets.avmnist_files import Array, folders, not_found, reading

SAMPLE_RATE = 8000
FILE_NAME = re.compile(r"([0-9])_([A-Za-z]+)_([0-9]+)\.wav")
FOLDERS = ("", "fsdd", "FSDD", "free-spoken-digit-dataset", "free-spoken-digit-dataset-master")
PLACES = (
    "fsdd.npz, or recordings/<digit>_<speaker>_<take>.wav of the Free Spoken Digit Dataset (also in fsdd/ or "
    "free-spoken-digit-dataset/)"
)


class Recording(NamedTuple):
    """Which digit a speaker says, and which of the takes it is."""

    digit: int
    speaker: str
    take: int

    @property
    def id(self) -> str:
        """Name as in FSDD."""
        return f"fsdd/{self.digit}_{self.speaker}_{self.take}"


@dataclass(frozen=True)
class Slices:
    """Clips end to end: row r is `wave[offset[r]:offset[r + 1]]`, and clip i stands in row `order[i]`."""

    wave: Array
    offset: Array
    order: Sequence[int]

    def __getitem__(self, index: int) -> Array:
        """Cut one clip (samples,) int16 out."""
        row = self.order[index]
        return self.wave[self.offset[row] : self.offset[row + 1]]


@dataclass(frozen=True)
class WavFiles:
    """Clips that are read when they are asked for."""

    paths: Sequence[Path]

    def __getitem__(self, index: int) -> Array:
        """Read one clip (samples,) int16 (DataError where it is not 8 kHz, mono, 16 bit)."""
        path = self.paths[index]
        with reading(path), wave.open(str(path), "rb") as clip:
            form = (clip.getframerate(), clip.getnchannels(), clip.getsampwidth())
            frames = clip.readframes(clip.getnframes())
        if form != (SAMPLE_RATE, 1, 2):
            raise DataError(
                f"'{path}' has {form[0]} Hz, {form[1]} channels, {form[2]} bytes a sample; "
                f"FSDD has {SAMPLE_RATE} Hz, mono, 2 bytes: put the original file there"
            )
        return np.frombuffer(frames, dtype="<i2").astype(np.int16)


@dataclass(frozen=True)
class Recordings:
    """Names, sorted, and waves, each (samples,) int16 at 8 kHz by its index."""

    names: Sequence[Recording]
    waves: Slices | WavFiles

    def digest(self) -> str:
        """Give the sha256 of all samples (little-endian int16) end to end."""
        total = hashlib.sha256()
        for index in range(len(self.names)):
            total.update(self.waves[index].astype("<i2").tobytes())
        return total.hexdigest()


def find_recordings(root: Path) -> Callable[[], Recordings]:
    """Look for FSDD under `root`; give what reads it (DataError if not there)."""
    for folder in folders(root, FOLDERS):
        if (folder / "fsdd.npz").is_file():
            return partial(_npz_recordings, folder / "fsdd.npz")
        if (folder / "recordings").is_dir():
            return partial(_wav_recordings, folder / "recordings")
    raise DataError(not_found("spoken digits (FSDD)", root, PLACES))


def _npz_recordings(path: Path) -> Recordings:
    with reading(path), np.load(path, allow_pickle=False) as file:
        people = file["speaker_names"][file["speaker"]].tolist()
        rows = zip(file["label"].tolist(), people, file["take"].tolist(), strict=True)
        names = [Recording(*row) for row in rows]
        order = sorted(range(len(names)), key=names.__getitem__)
        return Recordings([names[row] for row in order], Slices(file["wave"], file["offset"], order))


def _wav_recordings(folder: Path) -> Recordings:
    found = {}
    for path in folder.glob("*.wav"):
        if match := FILE_NAME.fullmatch(path.name):
            found[Recording(int(match[1]), match[2], int(match[3]))] = path
    names = sorted(found)
    return Recordings(names, WavFiles([found[name] for name in names]))
