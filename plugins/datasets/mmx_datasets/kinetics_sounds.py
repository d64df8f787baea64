"""Kinetics-Sounds: the classes of Kinetics-400 that can be seen and heard, in OGM-GE's choice of 31.

Layout, as OGM-GE's scripts leave it: the lists `my_train.txt` and `my_test.txt` (lines `clip,10,class`; a
clip is `<YouTube id>_<start>`, 10 its seconds, the class a number from 0), and for each clip a folder
`train/<clip>/` or `test/<clip>/` with its frames and `<clip>.wav`. The names of the classes are not in the
lists, and are not given here.

Clips vanish from YouTube: hardly two copies are the same. `missing_files: absent` works with those that are
there; report how many (`mmx data verify`).
"""

from collections.abc import Mapping, Sequence

from mmx.contracts import DataCard
from mmx.errors import DataError
from mmx.tasks import SingleLabel
from mmx_datasets.layout_kinds import AudioVisual
from mmx_datasets.lists import csv_rows
from mmx_datasets.papers import KINETICS_SOUNDS_PAPER
from mmx_datasets.reading import Entry

CLASSES = 31
CARD = DataCard(
    description="Ten-second clips of actions that can be seen and heard, 31 classes",
    splits="OGM-GE's lists, 14,799 and 2,597 clips; MLA's are not released; Arandjelovic and Zisserman "
    "have 34 classes",
    modalities={"audio": "audio", "visual": "video or image"},
    source="Kinetics-400 (github.com/cvdfoundation/kinetics-dataset), with the lists in data/KineticSound of "
    "github.com/GeWu-Lab/OGM-GE_CVPR2022",
    licence="annotations CC BY 4.0 (Kinetics-400); the films belong to those who uploaded them",
    citation=KINETICS_SOUNDS_PAPER,
    sizes={"train and val of OGM-GE's lists": 14799, "test of OGM-GE's lists": 2597},
    natural_missing="none in the lists; clips that have vanished from YouTube, a rate that differs from copy "
    "to copy",
)


class KineticsSounds(AudioVisual):
    """The clips of Kinetics-Sounds."""

    name = "kinetics_sounds"
    needs = ("my_train.txt", "my_test.txt", "train", "test")
    published = card = CARD
    task = SingleLabel(CLASSES)

    def entries(self) -> Mapping[str, Sequence[Entry]]:
        """Read both lists."""
        return {split: self._entries(split) for split in ("train", "test")}

    def _entries(self, split: str) -> list[Entry]:
        found = []
        for clip, _, label in csv_rows(self.root / f"my_{split}.txt", 3):
            if not label.isdigit() or int(label) >= CLASSES:
                raise DataError(
                    f"kinetics_sounds: class '{label}' of '{clip}' in my_{split}.txt is not 0 to 30"
                )
            folder = self.root / split / clip
            found.append(Entry(clip, {"audio": folder / f"{clip}.wav", "visual": folder}, int(label)))
        return found
