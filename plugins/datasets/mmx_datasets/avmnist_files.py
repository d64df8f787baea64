"""Reads MNIST from a folder, in any layout that people have it in, and says where files may lie.

    mnist.npz                                        train_images, train_labels, test_images, test_labels
    train-images-idx3-ubyte[.gz] and its sisters     the four files of yann.lecun.com
    training/<digit>/<number>.png and testing/...    number: the place in the original order

All layouts give the same images in the original order.
"""

import gzip
import wave
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmx.errors import DataError

Array = npt.NDArray[Any]

FOLDERS = ("", "mnist", "MNIST", "MNIST/raw", "raw", "mnist_png", "mnist-pngs")
PNG_FOLDERS = {"train": ("training", "train"), "test": ("testing", "test")}
IDX_PARTS = {"train": "train", "test": "t10k"}
IDX_KINDS = ("images-idx3-ubyte", "labels-idx1-ubyte")
BROKEN = (OSError, EOFError, KeyError, ValueError, IndexError, zipfile.BadZipFile, zlib.error, wave.Error)

PLACES = (
    "mnist.npz, or train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and "
    "t10k-labels-idx1-ubyte.gz (gzipped or not, also in mnist/ or MNIST/raw/), or "
    "training/<digit>/<number>.png and testing/<digit>/<number>.png"
)


@dataclass(frozen=True)
class PngFiles:
    """Images that are read when they are asked for."""

    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Array:
        """Read one image (28, 28) uint8."""
        from PIL import Image

        with reading(self.paths[index]), Image.open(self.paths[index]) as image:
            return np.asarray(image.convert("L"))


@dataclass(frozen=True)
class Images:
    """One part of MNIST in its original order: labels (count,), and pixels (28, 28) uint8 by index."""

    labels: Array
    pixels: Array | PngFiles


def find_images(root: Path) -> Callable[[], Mapping[str, Images]]:
    """Look for MNIST under `root`; give what reads its parts "train" and "test" (DataError if not there)."""
    for folder in folders(root, FOLDERS):
        if (folder / "mnist.npz").is_file():
            return partial(_npz_images, folder / "mnist.npz")
        idx = {(part, kind): _idx_path(folder, part, kind) for part in IDX_PARTS for kind in IDX_KINDS}
        if all(idx.values()):
            return partial(_idx_images, {key: path for key, path in idx.items() if path})
        png = {part: _png_folder(folder, names) for part, names in PNG_FOLDERS.items()}
        if all(png.values()):
            return partial(_png_images, {part: path for part, path in png.items() if path})
    raise DataError(not_found("MNIST images", root, PLACES))


def not_found(what: str, root: Path, places: str) -> str:
    """Say what is not there and where to put what."""
    return (
        f"avmnist: no {what} under root '{root}'. Put there {places}; or run "
        f"`mmx data prepare avmnist --root {root}` on a machine with a network"
    )


def folders(root: Path, names: Sequence[str]) -> Iterator[Path]:
    """List where to look: `root` itself, and `root/avmnist` for those who keep all datasets in one folder."""
    return (place / name for place in (root, root / "avmnist") for name in names if (place / name).is_dir())


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what a damaged file raises into one message that names the file."""
    try:
        yield
    except BROKEN as error:
        raise DataError(
            f"'{path}' cannot be read ({type(error).__name__}: {error}); "
            "delete it and get it again with `mmx data prepare avmnist`"
        ) from error


def _npz_images(path: Path) -> dict[str, Images]:
    with reading(path), np.load(path, allow_pickle=False) as file:
        return {part: Images(file[f"{part}_labels"], file[f"{part}_images"]) for part in IDX_PARTS}


def _idx_path(folder: Path, part: str, kind: str) -> Path | None:
    """Find one idx file, also as `train-images.idx3-ubyte`, as some mirrors spell it."""
    name = f"{IDX_PARTS[part]}-{kind}"
    spellings = [
        f"{spelling}{end}" for spelling in (name, name.replace("-idx", ".idx")) for end in ("", ".gz")
    ]
    return next((folder / spelling for spelling in spellings if (folder / spelling).is_file()), None)


def _idx_images(paths: Mapping[tuple[str, str], Path]) -> dict[str, Images]:
    pixels, labels = IDX_KINDS
    return {
        part: Images(_idx_array(paths[part, labels]), _idx_array(paths[part, pixels])) for part in IDX_PARTS
    }


def _idx_array(path: Path) -> Array:
    """Read an idx file of bytes: 0, 0, 8, number of axes, their sizes (big-endian), the values."""
    with reading(path):
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if data[:3] != b"\x00\x00\x08":
            raise ValueError("no idx file of bytes")
        sizes = np.frombuffer(data, dtype=">i4", count=data[3], offset=4)
        return np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * data[3]).reshape(sizes.tolist())


def _png_folder(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if any((folder / name).glob("[0-9]/*.png"))), None)


def _png_images(places: Mapping[str, Path]) -> dict[str, Images]:
    return {part: _png_part(folder) for part, folder in places.items()}


def _png_part(folder: Path) -> Images:
    paths = sorted(folder.glob("[0-9]/*.png"), key=lambda path: (_file_number(path), path.parent.name))
    return Images(np.array([int(path.parent.name) for path in paths], dtype=np.uint8), PngFiles(paths))


def _file_number(path: Path) -> int:
    if not path.stem.isdigit():
        raise DataError(f"'{path}' is not named by a number; MNIST's place in the original order is needed")
    return int(path.stem)
