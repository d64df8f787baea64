"""Fetches files over https: checked, whole or not at all, and never outside the folder they are meant for."""

import hashlib
import http.client
import os
import shutil
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from mmx.errors import DataError

TIMEOUT_SECONDS = 30
LARGEST_BYTES = 512 * 2**20


def fetch(urls: Sequence[str], target: Path, md5: str = "") -> None:
    """Fetch `target` from the first mirror that has it (DataError where none has, with each one's reason)."""
    reasons = []
    for url in urls:
        try:
            with whole(target) as part:
                _copy(url, part)
                if md5:
                    check(part, md5, url)
            return
        except (OSError, http.client.HTTPException, DataError) as error:
            reasons.append(f"{url}: {error}")
    raise DataError(f"'{target.name}' could not be fetched. {'; '.join(reasons)}")


def check(path: Path, md5: str, label: str) -> None:
    """Refuse a file whose md5 is another (DataError); it is against damage, https is against forgery."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != md5:
        raise DataError(f"checksum of '{label}' is md5 {found} instead of {md5}; delete it and try again")


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """Give a temporary path beside `target` that takes its place when the block ends well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield folder / target.name
        (folder / target.name).replace(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def unpack(archive: Path, folder: Path, name_of: Callable[[str], str | None], largest: int) -> int:
    """Write the members of a zip that `name_of` gives a plain file name for into a new `folder`; count them.

    Raises DataError where any member would leave the folder, is larger than `largest` bytes, or is damaged.
    """
    try:
        with zipfile.ZipFile(archive) as file, whole(folder) as part:
            part.mkdir()
            members = [(member, _safe_name(member, name_of)) for member in file.infolist()]
            chosen = {name: member for member, name in members if name}
            for name, member in chosen.items():
                if member.file_size > largest:
                    raise DataError(f"'{member.filename}' in '{archive.name}' is larger than {largest} bytes")
                (part / name).write_bytes(file.read(member))
            return len(chosen)
    except (zipfile.BadZipFile, EOFError) as error:
        raise DataError(
            f"'{archive.name}' is no whole zip archive ({error}); delete it and try again"
        ) from error


def _safe_name(member: zipfile.ZipInfo, name_of: Callable[[str], str | None]) -> str | None:
    path = PurePosixPath(member.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in member.filename:
        raise DataError(
            f"the archive's member '{member.filename}' would leave its folder; do not use this archive"
        )
    name = name_of(str(path))
    if name is not None and PurePosixPath(name).name != name:
        raise DataError(f"'{name}' is no plain file name")
    return name


def _copy(url: str, target: Path) -> None:
    _https(url)
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer, target.open("wb") as file:  # noqa: S310 https only
        _https(answer.geturl())
        size = 0
        while block := answer.read(2**20):
            size += len(block)
            if size > LARGEST_BYTES:
                raise DataError(f"more than {LARGEST_BYTES} bytes")
            file.write(block)
        file.flush()
        os.fsync(file.fileno())


def _https(url: str) -> None:
    if not url.startswith("https://"):
        raise DataError(f"'{url}' is no https address")
