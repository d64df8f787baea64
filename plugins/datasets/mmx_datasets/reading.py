"""Samples whose inputs are read when they are asked for: a modality that nobody reads is never decoded."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from mmx.cache import Cache, key_of
from mmx.contracts import Sample
from mmx.errors import DataError
from mmx.types import Modality
from mmx_datasets.media import MEDIA_KINDS, Array, Shapes, as_tensor, decode, files_of
from mmx_datasets.saved_datasets import Stored
from mmx_datasets.words import TextReader

Value = Any
"""What a row says of a modality: a path (image, audio, video), a text, or numbers (vector).

Several images or films as a tuple of paths are one: their first channels are its channels (optical flow, u
and v). A `Half` is one half of an image.
"""


@dataclass(frozen=True)
class Half:
    """One half of an image that shows two things side by side."""

    path: Path
    side: Literal["left", "right"]


def paths_of(value: Value) -> tuple[Path, ...]:
    """Give the files of an image, sound or film."""
    if isinstance(value, Stored):
        return (value.file,)
    if isinstance(value, tuple):
        return tuple(map(Path, value))
    return (value.path,) if isinstance(value, Half) else (Path(value),)


class Reader:
    """Turns what a row says of a modality into a tensor."""

    def __init__(
        self, kinds: Mapping[Modality, str], shapes: Shapes, text: TextReader, cache: Cache | None
    ) -> None:
        self.kinds, self.shapes, self.text, self.cache = kinds, shapes, text, cache

    def __call__(self, modality: Modality, value: Value) -> Tensor:
        """Read one input (DataError where that cannot be done, with the reason)."""
        kind = self.kinds[modality]
        if isinstance(value, Stored):
            return as_tensor(kind, self._stored(kind, value))
        if kind in MEDIA_KINDS:
            shapes = replace(self.shapes, half=value.side) if isinstance(value, Half) else self.shapes
            return as_tensor(kind, self._media(kind, paths_of(value), shapes))
        if kind == "text":
            return self.text(value)
        return torch.from_numpy(np.asarray(value, dtype=np.float32))

    def _media(self, kind: str, paths: Sequence[Path], shapes: Shapes) -> Array:
        """Decode one file, or lay the first channels of several over each other; the rest is zero."""
        if len(paths) == 1:
            return self._decoded(kind, paths[0], shapes)
        whole = np.zeros_like(self._decoded(kind, paths[0], shapes))
        for channel, path in enumerate(paths):
            whole[..., channel, :, :] = self._decoded(kind, path, shapes)[..., 0, :, :]
        return whole

    def stamp(self, modality: Modality, value: Value) -> str:
        """Give a text that differs where the input does; of files path, size and time of change count."""
        kind = self.kinds[modality]
        if kind not in MEDIA_KINDS:
            return hashlib.sha256(self(modality, value).numpy().tobytes()).hexdigest()
        if isinstance(value, Stored):
            return self._key_of_stored(kind, value)
        side = value.side if isinstance(value, Half) else ""
        files = [file for path in paths_of(value) for file in files_of(path)]
        return key_of(files, {"kind": kind, "side": side, **self.shapes.settings(kind)})

    def _stored(self, kind: str, value: Stored) -> Array:
        """Decode the bytes of a cell, which nobody copies where the cache has what they become."""

        def made() -> Array:
            return decode(kind, value.read(), self.shapes, str(value))

        return made() if self.cache is None else self.cache.get(self._key_of_stored(kind, value), made)

    def _key_of_stored(self, kind: str, value: Stored) -> str:
        cell = [value.column, value.batch, value.row]
        return key_of([value.file], {"kind": kind, "cell": cell, **self.shapes.settings(kind)})

    def _decoded(self, kind: str, path: Path, shapes: Shapes) -> Array:
        if self.cache is None:
            return decode(kind, path, shapes)
        try:
            key = key_of(files_of(path), {"kind": kind, **shapes.settings(kind)})
        except (OSError, ValueError) as error:
            raise DataError(f"'{path}' cannot be read as {kind} ({error})") from error
        return self.cache.get(key, lambda: decode(kind, path, shapes))


class Inputs(Mapping[Modality, Tensor]):
    """The inputs of one sample, each read at the first look and then kept as long as the sample is.

    What is known of them is asked for at the first look too: counting targets then costs nothing more.
    """

    def __init__(
        self, read: Reader, known: Callable[[], Mapping[Modality, Value]], place: Callable[[], str]
    ) -> None:
        self._read, self._known, self._place = read, known, place
        self._done: dict[Modality, Tensor] = {}

    @cached_property
    def _values(self) -> Mapping[Modality, Value]:
        return self._known()

    def __getitem__(self, modality: Modality) -> Tensor:
        """Read an input; DataError says where the value stands."""
        if modality not in self._done:
            value = self._values[modality]
            try:
                self._done[modality] = self._read(modality, value)
            except DataError as error:
                raise DataError(f"{self._place()}, '{modality}': {error}") from error
        return self._done[modality]

    def stamp(self, modality: Modality) -> str:
        """Give a text that differs where the input does, for mmx.data.Split."""
        return self._read.stamp(modality, self._values[modality])

    def __contains__(self, modality: object) -> bool:
        """Tell whether the sample has a modality, without reading it."""
        return modality in self._values

    def __iter__(self) -> Iterator[Modality]:
        """List the modalities."""
        return iter(self._values)

    def __len__(self) -> int:
        """Count the modalities."""
        return len(self._values)


class Entry(NamedTuple):
    """What is known of a sample before any of its files is opened."""

    id: str
    values: Mapping[Modality, Value]
    target: Any


class Entries(Sequence[Sample]):
    """The samples of some entries of the dataset `name`."""

    def __init__(self, entries: Sequence[Entry], read: Reader, name: str) -> None:
        self.entries, self.read, self.name = entries, read, name

    @property
    def contents(self) -> list[tuple[str, tuple[Modality, ...]]]:
        """Who has what, for mmx.data.Split."""
        return [(entry.id, tuple(entry.values)) for entry in self.entries]

    def __len__(self) -> int:
        """Count them."""
        return len(self.entries)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        """Give a sample, nothing of it read."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        entry = self.entries[index]
        inputs = Inputs(self.read, lambda: entry.values, lambda: f"{self.name}, sample '{entry.id}'")
        return Sample(entry.id, inputs, entry.target)
