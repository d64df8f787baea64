"""AVE: audio-visual events in ten-second clips of AudioSet, 28 classes.

Layout, as published: `AVE/<YouTube id>.mp4`, `Annotations.txt`, and the lists `trainSet.txt`, `valSet.txt`
and `testSet.txt`, with lines `Category&VideoID&Quality&StartTime&EndTime`. Sounds and frames that were taken
out before may stand for the films: `audio/<id>.wav` and `visual/<id>/`, as OGM-GE's scripts write them.

A sample is a line of a list with its whole clip; the start and end of the event are not used (as in the
papers on classification, as far as their code is known). One clip may have several lines.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from mmx.contracts import DataCard
from mmx.errors import DataError
from mmx.tasks import SingleLabel
from mmx_datasets.layout_kinds import AudioVisual
from mmx_datasets.lists import number_of
from mmx_datasets.papers import AVE_PAPER
from mmx_datasets.reading import Entry

LISTS = {"train": "trainSet.txt", "val": "valSet.txt", "test": "testSet.txt"}
CARD = DataCard(
    description="Ten-second clips with an event that can be seen and heard, 28 classes",
    splits="the published lists; which papers hold to them is not known in every case",
    modalities={"audio": "audio", "visual": "video or image"},
    source="github.com/YapengTian/AVE-ECCV18",
    licence="not stated by the publishers; the films belong to those who uploaded them",
    citation=AVE_PAPER,
    sizes={"train": 3339, "val": 402, "test": 402},
    natural_missing="none known",
)


class Ave(AudioVisual):
    """The clips of AVE."""

    name = "ave"
    needs = ("Annotations.txt", *LISTS.values(), "AVE|audio", "AVE|visual")
    published = card = CARD
    task = SingleLabel(28)

    def entries(self) -> Mapping[str, Sequence[Entry]]:
        """Read the lists (DataError where the annotations do not have 28 classes)."""
        if len(self.classes) != self.task.classes:
            raise DataError(f"ave: 'Annotations.txt' has {len(self.classes)} classes instead of 28")
        return {split: self._entries(name) for split, name in LISTS.items()}

    @cached_property
    def classes(self) -> list[str]:
        """The classes, in the order of the alphabet."""
        return sorted({category for category, *_ in _lines(self.root / "Annotations.txt")})

    def _entries(self, name: str) -> list[Entry]:
        found = {}
        for category, clip, _, start, end in _lines(self.root / name):
            # The category too: one clip may have two events at one time.
            key = f"{clip}/{category}/{start}-{end}"
            values = {"audio": self._file("audio", clip, ".wav"), "visual": self._file("visual", clip, "")}
            found[key] = Entry(key, values, number_of(category, self.classes, f"ave, {name}"))
        return list(found.values())

    def _file(self, folder: str, clip: str, ending: str) -> Path:
        taken_out = self.root / folder
        return taken_out / f"{clip}{ending}" if taken_out.is_dir() else self.root / "AVE" / f"{clip}.mp4"


def _lines(path: Path) -> list[list[str]]:
    """Read a list, with its header or without."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        cells = line.strip().split("&")
        if len(cells) == 5:
            found.append(cells)
        elif line.strip():
            raise DataError(f"ave: line {number} of '{path}' has {len(cells)} parts between '&' instead of 5")
    return found[1:] if found and found[0][0] == "Category" else found
