"""Journals of what a result store could not take: one folder a trial, whole lines, safe from crashes."""

import contextlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmx.errors import MmxError

PREFIX = "spooled-"
NOTE = 512
"""Bytes set aside for what is noted of a trial: a disk writes as many at once or none."""

Entry = dict[str, Any]


class BusyError(MmxError):
    """A journal that is another process's business just now."""


class Journal:
    """One trial's folder. Lines are complete or not there: what a crash tore off is no line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.name

    @classmethod
    def begin(cls, spool: Path, header: Entry) -> "Journal":
        """Make a folder; it appears with its first line in it."""
        name = f"{PREFIX}{time.time_ns():x}-{uuid.uuid4().hex[:8]}"
        spool.mkdir(parents=True, exist_ok=True)
        made = spool / f".{name}"
        made.mkdir()
        try:
            cls(made).note()
            _append(made / "journal.jsonl", header)
            made.rename(spool / name)
        except OSError:
            shutil.rmtree(made, ignore_errors=True)
            raise
        _flush(spool)
        return cls(spool / name)

    @staticmethod
    def all(spool: Path) -> list["Journal"]:
        """List what a spool holds, the oldest first; remove what a crash left of those that were sent."""
        found = [Journal(path) for path in sorted(spool.glob(f"{PREFIX}*"))]
        kept = [journal for journal in found if (journal.folder / "journal.jsonl").exists()]
        for journal in set(found) - set(kept):
            shutil.rmtree(journal.folder, ignore_errors=True)
        return kept

    def add(self, entry: Entry) -> None:
        """Write an entry so that a crash cannot lose it."""
        _append(self.folder / "journal.jsonl", entry)

    def add_file(self, entry: Entry, path: Path) -> None:
        """Copy a file, then write its entry."""
        place = self.folder / "files" / uuid.uuid4().hex / path.name
        try:
            place.parent.mkdir(parents=True)
            shutil.copyfile(path, place)
            _flush(place)
            self.add({**entry, "file": str(place.relative_to(self.folder))})
        except OSError:
            shutil.rmtree(place.parent, ignore_errors=True)
            raise

    def read(self) -> tuple[Entry, list[Entry]]:
        """Give the header and the entries."""
        header, *entries = _lines(self.folder / "journal.jsonl")
        return header, entries

    def note(self, **fact: Any) -> None:
        """Remember what the store has by now; in place, so that it can be done on a full disk."""
        text = json.dumps(self.noted() | fact).ljust(NOTE)
        number = os.open(self.folder / "sent.json", os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(number, text.encode(), 0)
            os.fsync(number)
        finally:
            os.close(number)

    def noted(self) -> Entry:
        """Give what the store has by now; what cannot be read may be anything."""
        try:
            noted: Entry = json.loads((self.folder / "sent.json").read_bytes())
        except FileNotFoundError:
            return {}
        except ValueError:
            return {"opening": True}
        return noted

    def remove(self) -> None:
        """Remove it; first the journal, so that half a folder is never sent."""
        (self.folder / "journal.jsonl").unlink()
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextlib.contextmanager
    def held(self) -> Iterator[bool]:
        """Keep others from sending it meanwhile (BusyError where one does); False: it is sent."""
        import fcntl

        path = self.folder / "journal.jsonl"
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(path.open("r+b"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except FileNotFoundError:
                pass
            except BlockingIOError:
                raise BusyError("another process is sending it just now") from None
            yield path.exists()


def waiting(folder: Path) -> int:
    """Count the trials that a spool keeps."""
    return len(Journal.all(folder))


def _flush(path: Path) -> None:
    """See that a file, or a folder's list of names, is on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _append(path: Path, entry: Entry) -> None:
    """Add one line and flush it to the disk; where that fails, nothing of it stays."""
    data = json.dumps(entry).encode() + b"\n"
    with path.open("a+b", buffering=0) as file:
        start = _whole(file)
        file.truncate(start)
        try:
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(start)
            raise


def _whole(file: Any) -> int:
    """Give the length of the whole lines: a crash may have torn the last one."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 1, 0))
    if file.read() in {b"", b"\n"}:
        return int(size)
    file.seek(0)
    return int(file.read().rfind(b"\n")) + 1


def _lines(path: Path) -> list[Entry]:
    """Read the whole lines of a file; none where there is no file."""
    if not path.exists():
        return []
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    return [json.loads(line) for line in whole.splitlines()]
