"""UCF-101: 101 actions in films, with optical flow.

Layout: the lists as published, `ucfTrainTestlist/classInd.txt` (lines `number class`), `trainlist01.txt`
(lines `class/clip.avi number`) and `testlist01.txt` (lines `class/clip.avi`); frames and flow as
Feichtenhofer and others published them for two-stream networks: `jpegs_256/<clip>/` and
`tvl1_flow/u/<clip>/`, `tvl1_flow/v/<clip>/`, one image a frame. In place of `jpegs_256`, the films
`UCF-101/<class>/<clip>.avi` (PyAV is needed).

Flow is one film whose first channel is u, its second v, its third empty (our choice). Split 1. Validation
holds out whole groups: clips of one group come from one film.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

from mmx.contracts import DataCard
from mmx.errors import DataError
from mmx.tasks import SingleLabel
from mmx_datasets.layout_kinds import Visual
from mmx_datasets.lists import number_of
from mmx_datasets.papers import UCF101_PAPER
from mmx_datasets.reading import Entry

LISTS = Path("ucfTrainTestlist")
CARD = DataCard(
    description="13,320 clips of 101 actions, with TV-L1 optical flow",
    splits="split 1 of 3, 9,537 and 3,783; BalanceBenchmark uses RGB and flow, its split is not known here",
    modalities={"rgb": "video or image", "flow": "video or image"},
    source="crcv.ucf.edu/data/UCF101.php; frames and flow: github.com/feichtenhofer/twostreamfusion",
    licence="not stated by the publishers; the films belong to those who uploaded them",
    citation=UCF101_PAPER,
    sizes={"train and val of split 1": 9537, "test of split 1": 3783},
    natural_missing="none known",
)


class Ucf101(Visual):
    """The clips of UCF-101, as RGB and as optical flow."""

    name = "ucf101"
    needs = (str(LISTS), "jpegs_256|UCF-101", "tvl1_flow/u", "tvl1_flow/v")
    published = card = CARD
    streams = ("rgb", "flow")
    task = SingleLabel(101)

    def entries(self) -> Mapping[str, Sequence[Entry]]:
        """Read the lists of split 1 (DataError where there are not 101 classes)."""
        if len(self.classes) != self.task.classes:
            raise DataError(f"ucf101: classInd.txt has {len(self.classes)} classes instead of 101")
        return {split: self._entries(self.root / LISTS / f"{split}list01.txt") for split in ("train", "test")}

    def group_of(self, entry: Entry) -> str:
        """Name the film that a clip was cut from: `v_Class_g01_c02` without the last part."""
        return entry.id.rpartition("_c")[0] or entry.id

    @cached_property
    def classes(self) -> list[str]:
        """The classes, in the order of their numbers."""
        lines = (self.root / LISTS / "classInd.txt").read_text(encoding="utf-8").splitlines()
        return [line.split()[1] for line in lines if len(line.split()) == 2]

    def _entries(self, path: Path) -> list[Entry]:
        found = []
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.strip():
                film = PurePosixPath(line.split()[0])
                label = number_of(film.parent.name, self.classes, f"ucf101, {path.name}")
                found.append(Entry(film.stem, self._files(film), label))
        return found

    def _files(self, film: PurePosixPath) -> dict[str, Path | tuple[Path, ...]]:
        frames = self.root / "jpegs_256"
        whole = self.root / "UCF-101" / film.parent.name / film.name
        flow = tuple(self.root / "tvl1_flow" / part / film.stem for part in ("u", "v"))
        return {"rgb": frames / film.stem if frames.is_dir() else whole, "flow": flow}
