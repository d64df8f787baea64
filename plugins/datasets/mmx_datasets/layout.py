"""What the readers of published layouts share: options, missing files, a validation split, samples.

A reader says which files must be there and gives its entries, read from the lists that came with the data.
Nothing else of the data is opened before a batch asks for it.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from mmx.cache import Cache, default_folder
from mmx.contracts import DataCard, Dataset, Sample
from mmx.errors import DataError, did_you_mean
from mmx.protocols import uniforms
from mmx_datasets.media import MEDIA_KINDS, Shapes
from mmx_datasets.reading import Entries, Entry, Reader, paths_of
from mmx_datasets.words import text_reader

SPLITS = ("train", "val", "test")
MissingFiles = Literal["raise", "absent"]


class Layout(Dataset):
    """Samples of a published dataset that lies under `root`, or under `root/<name>`, as it was published.

    `missing_files`: "raise" refuses a copy that is not whole; "absent" takes a file that is not there for
    natural absence, and leaves out samples that have nothing. `val_share` of the training samples, chosen by
    a hash of their ids, are the validation split where the dataset has none of its own. The other options
    are those of `manifest`.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    """What must lie under the root; `|` stands between what may stand for each other."""
    published: ClassVar[DataCard]

    def __init__(
        self,
        root: str,
        shapes: Shapes,
        missing_files: MissingFiles = "raise",
        val_share: float = 0.1,
        text_length: int = 64,
        tokenizer: str = "",
        vocabulary_size: int = 30_000,
        cache: str = "",
        cache_gigabytes: float = 10.0,
    ) -> None:
        if not 0 < val_share < 1:
            raise DataError(f"{self.name}: val_share {val_share} must be above 0 and below 1")
        self.root = self._find(Path(root).expanduser())
        self.missing_files, self.val_share = missing_files, val_share
        folder = (Path(cache).expanduser() if cache else default_folder()) / "decoded"
        kept = Cache(folder, int(cache_gigabytes * 1e9)) if cache_gigabytes > 0 else None
        text = text_reader(tokenizer, text_length, vocabulary_size, self._training_texts)
        self.read = Reader(self.modalities, shapes, text, kept)

    @abstractmethod
    def entries(self) -> Mapping[str, Sequence[Entry]]:
        """Read the lists: the entries of "train" and "test", and of "val" where it has its own."""

    def group_of(self, entry: Entry) -> str:
        """Name what must not be cut in two when validation samples are held out; the sample by default."""
        return entry.id

    @classmethod
    def prepare(cls, root: Path) -> str:
        """Say what to put where: none of these datasets may be fetched without asking or agreeing."""
        wanted = "\n".join(f"  {need.replace('|', '  or  ')}" for need in cls.needs)
        return f"Get {cls.name} from {cls.published.source}, and put under '{root}':\n{wanted}"

    def split(self, name: str) -> Sequence[Sample]:
        """Give the samples of a split, each file read when it is asked for."""
        if name not in SPLITS:
            raise DataError(f"{self.name}: no split '{name}'.{did_you_mean(name, SPLITS)}")
        return Entries(self.complete[name], self.read, self.name)

    @cached_property
    def complete(self) -> Mapping[str, Sequence[Entry]]:
        """The entries of all three splits, of files that are there (DataError where a split is empty)."""
        found = {split: self._existing(entries) for split, entries in self.entries().items()}
        if "val" not in found:
            groups = [self.group_of(entry) for entry in found["train"]]
            held = uniforms(groups, 0, self.name, "val") < self.val_share
            pairs = list(zip(found["train"], held.tolist(), strict=True))
            found["val"] = [entry for entry, is_held in pairs if is_held]
            found["train"] = [entry for entry, is_held in pairs if not is_held]
        for split in SPLITS:
            if not found.get(split):
                raise DataError(f"{self.name}: the split '{split}' under '{self.root}' holds no samples")
        return found

    def _existing(self, entries: Sequence[Entry]) -> list[Entry]:
        """Leave out files that are not there, or refuse."""
        media = [m for m, kind in self.modalities.items() if kind in MEDIA_KINDS]
        for entry in entries:
            files = [path for m in media if m in entry.values for path in paths_of(entry.values[m])]
            if any(".." in path.parts for path in files):
                raise DataError(f"{self.name}: '{entry.id}' of a list leaves the folder; get the list again")
        gone = {
            (e.id, m)
            for e in entries
            for m in media
            if m in e.values and not all(path.exists() for path in paths_of(e.values[m]))
        }
        if gone and self.missing_files == "raise":
            sample, m = min(gone)
            wanted = paths_of(next(e for e in entries if e.id == sample).values[m])
            first = next(path for path in wanted if not path.exists())
            raise DataError(
                f"{self.name}: {len(gone)} files are not there, such as '{first}'; get them, or set "
                "missing_files: absent"
            )
        left = [
            entry._replace(values={m: v for m, v in entry.values.items() if (entry.id, m) not in gone})
            for entry in entries
        ]
        return [entry for entry in left if entry.values]

    def _find(self, root: Path) -> Path:
        """Find the folder that has all that is needed."""
        for folder in (root, root / self.name):
            if all(any((folder / part).exists() for part in need.split("|")) for need in self.needs):
                return folder
        lacks = [n for n in self.needs if not any((root / part).exists() for part in n.split("|"))]
        raise DataError(
            f"{self.name}: no {', '.join(lacks).replace('|', ' or ')} under root '{root}'; "
            f"`mmx data prepare {self.name}` says what to put there"
        )

    def _training_texts(self) -> Iterator[str]:
        names = [m for m, kind in self.modalities.items() if kind == "text"]
        return (entry.values[m] for entry in self.complete["train"] for m in names if m in entry.values)


def dealt(entries: Mapping[str, Sequence[Entry]], name: str) -> dict[str, list[Entry]]:
    """Deal groups of entries out to train, val and test, 80/10/10, in the order of a hash of their names."""
    groups = sorted(entries)
    ordered = np.array(groups)[np.argsort(uniforms(groups, 0, name, "splits"))].tolist()
    ends = (0, round(0.8 * len(groups)), round(0.9 * len(groups)), len(groups))
    return {
        split: [entry for group in sorted(ordered[start:end]) for entry in entries[group]]
        for split, start, end in zip(SPLITS, ends[:-1], ends[1:], strict=True)
    }
