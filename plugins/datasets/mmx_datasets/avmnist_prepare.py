"""Fetches what avmnist needs: MNIST's four idx files and the recordings of FSDD at one commit."""

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from mmx.errors import DataError
from mmx_datasets import avmnist_files, avmnist_sounds
from mmx_datasets.avmnist_files import find_images
from mmx_datasets.avmnist_pairs import ALL_RECORDINGS, check_images, check_recordings
from mmx_datasets.avmnist_sounds import find_recordings
from mmx_datasets.download import check, fetch, unpack

MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
MNIST_MD5 = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}
FSDD_COMMIT = "26eb9aaf76e81b692f806f9140c2d2777410d7a1"
FSDD_URLS = (
    f"https://codeload.github.com/Jakobovski/free-spoken-digit-dataset/zip/{FSDD_COMMIT}",
    f"https://github.com/Jakobovski/free-spoken-digit-dataset/archive/{FSDD_COMMIT}.zip",
)
FSDD_SAMPLES_SHA256 = "801bcecb25fa3bfb54fb3c0b1d94732d8456ce5b0c1f036667852a341a3aacd4"
LARGEST_RECORDING = 2**20
IN_RECORDINGS = re.compile(r"[^/]+/recordings/[^/]+")


def prepare(root: Path) -> str:
    """Make both parts be under `root`, what is there already untouched; say what there is."""
    return f"{_prepare_images(root)}\n{_prepare_recordings(root)}"


def _prepare_images(root: Path) -> str:
    if _is_there(find_images, root):
        check_images(find_images(root)())
        return f"MNIST images: already under '{root}', complete"
    for name, md5 in MNIST_MD5.items():
        target = root / "mnist" / name
        if target.is_file():
            check(target, md5, str(target))
            continue
        try:
            fetch([f"{mirror}{name}" for mirror in MNIST_MIRRORS], target, md5)
        except DataError as error:
            raise DataError(
                _by_hand(root, avmnist_files.PLACES, [MNIST_MIRRORS[0] + n for n in MNIST_MD5], error)
            ) from error
    return f"MNIST images: 4 files, checksums right, in '{root / 'mnist'}'"


def _prepare_recordings(root: Path) -> str:
    if _is_there(find_recordings, root):
        check_recordings(find_recordings(root)().names)
        return f"FSDD recordings: already under '{root}', complete"
    archive, folder = root / "fsdd" / f"{FSDD_COMMIT}.zip", root / "fsdd" / "recordings"
    if not archive.is_file():
        try:
            fetch(FSDD_URLS, archive)
        except DataError as error:
            raise DataError(_by_hand(root, avmnist_sounds.PLACES, list(FSDD_URLS), error)) from error
    return _unpack_recordings(root, archive, folder)


def _unpack_recordings(root: Path, archive: Path, folder: Path) -> str:
    """Unpack FSDD; an archive that lacks recordings is put away, so that the next try fetches it anew."""
    try:
        count = unpack(archive, folder, _recording_name, LARGEST_RECORDING)
    finally:
        archive.unlink()
    if count != ALL_RECORDINGS:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        raise DataError(f"FSDD's archive has {count} recordings instead of {ALL_RECORDINGS}; try again")
    same = find_recordings(root)().digest() == FSDD_SAMPLES_SHA256
    verdict = (
        "the samples that mmx was tried with" if same else "samples that DIFFER from those mmx was tried with"
    )
    return f"FSDD recordings: {count} in '{folder}', {verdict}"


def _is_there(find: Callable[[Path], object], root: Path) -> bool:
    try:
        find(root)
    except DataError:
        return False
    return True


def _recording_name(member: str) -> str | None:
    """Give the file name of a member that is a recording, else None."""
    name = PurePosixPath(member).name
    return name if IN_RECORDINGS.fullmatch(member) and avmnist_sounds.FILE_NAME.fullmatch(name) else None


def _by_hand(root: Path, places: str, urls: list[str], error: DataError) -> str:
    return f"{error}\nWithout a network, fetch by hand {', '.join(urls)} and put under '{root}' {places}"
