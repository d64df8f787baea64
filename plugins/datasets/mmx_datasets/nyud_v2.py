"""NYU Depth V2: rooms in colour and depth, as scenes of ten kinds.

Layout, as the code of QMF reads it: `train/<scene>/<name>.png` and `test/<scene>/<name>.png`, each image with
the colours in its left half and the depth, as three channels, in its right half. Which script made these
images of the published .mat file, and with which coding of depth, is not known here.

Only the scenes are read. Segmentation, for which Reza and others use this dataset, is out of reach: mmx has
no task of one label a pixel.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property

from mmx.contracts import DataCard
from mmx.errors import DataError
from mmx.tasks import SingleLabel
from mmx_datasets.layout_kinds import Stills
from mmx_datasets.lists import number_of
from mmx_datasets.papers import NYUD_PAPER
from mmx_datasets.reading import Entry, Half

CARD = DataCard(
    description="Rooms in colour and depth, 10 kinds of scenes",
    splits="the folders train and test, in QMF; CMNeXt and Reza and others segment 40 classes instead",
    modalities={"rgb": "image", "depth": "image"},
    source="cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html; the images side by side: links in "
    "github.com/QingyangZhang/QMF",
    licence="not stated by the publishers",
    citation=NYUD_PAPER,
    sizes={"images of the published labelled set": 1449},
    natural_missing="none known",
)


class NyudV2(Stills):
    """The scenes of NYU Depth V2."""

    name = "nyud_v2"
    needs = ("train", "test")
    published = card = CARD
    modalities: Mapping[str, str] = {"rgb": "image", "depth": "image"}
    task = SingleLabel(10)

    def entries(self) -> Mapping[str, Sequence[Entry]]:
        """List the images of both folders (DataError where there are not ten scenes)."""
        if len(self.classes) != self.task.classes:
            raise DataError(f"nyud_v2: '{self.root / 'train'}' has {len(self.classes)} scenes instead of 10")
        return {split: self._entries(split) for split in ("train", "test")}

    @cached_property
    def classes(self) -> list[str]:
        """The scenes, in the order of the alphabet."""
        return sorted(path.name for path in (self.root / "train").iterdir() if path.is_dir())

    def _entries(self, split: str) -> list[Entry]:
        found = []
        for path in sorted((self.root / split).glob("*/*.png")):
            label = number_of(path.parent.name, self.classes, f"nyud_v2, {split}")
            halves = {"rgb": Half(path, "left"), "depth": Half(path, "right")}
            found.append(Entry(f"{split}/{path.parent.name}/{path.stem}", halves, label))
        return found
