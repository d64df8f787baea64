"""CREMA-D: six emotions, played by 91 actors; face and voice.

Layout: `AudioWAV/<clip>.wav` and `VideoFlash/<clip>.flv` as published, where a clip is called
`<actor>_<sentence>_<emotion>_<level>`. Frames that were taken out before may stand for the films, one folder
a clip: `Image-01-FPS/<clip>/` or `visual/<clip>/`, as OGM-GE's scripts write them.

The publishers give no split. With the lists of OGM-GE, `train.csv` and `test.csv` (lines `clip,emotion`), the
split is theirs: 6,698 and 744 clips at random, every actor in both. Without them actors are dealt out
80/10/10, so that no voice and face is in two splits (our choice).
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from mmx.contracts import DataCard
from mmx.errors import DataError
from mmx.tasks import SingleLabel
from mmx_datasets.layout import dealt
from mmx_datasets.layout_kinds import AudioVisual
from mmx_datasets.lists import csv_rows, first_there, number_of
from mmx_datasets.papers import CREMA_D_PAPER
from mmx_datasets.reading import Entry

EMOTIONS = ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG")
"""In the order of OGM-GE's code."""
CARD = DataCard(
    description="Twelve sentences in six emotions by 91 actors, 7,442 clips with face and voice",
    splits="OGM-GE and MLA use random clips, 6,698 and 744; U2A's is not known",
    modalities={"audio": "audio", "visual": "video or image"},
    source="github.com/CheyneyComputerScience/CREMA-D",
    licence="Open Database License 1.0; contents under the Database Contents License",
    citation=CREMA_D_PAPER,
    sizes={"train and val of OGM-GE's lists": 6698, "test of OGM-GE's lists": 744},
    natural_missing="none known",
)


class CremaD(AudioVisual):
    """The clips of CREMA-D."""

    name = "crema_d"
    needs = ("AudioWAV", "VideoFlash|Image-01-FPS|visual")
    published = card = CARD
    task = SingleLabel(len(EMOTIONS))

    def entries(self) -> Mapping[str, Sequence[Entry]]:
        """Read the lists, or deal actors out."""
        lists = {split: self.root / f"{split}.csv" for split in ("train", "test")}
        if all(path.is_file() for path in lists.values()):
            return {
                split: [self._entry(clip, emotion, path.name) for clip, emotion in csv_rows(path, 2)]
                for split, path in lists.items()
            }
        actors: dict[str, list[Entry]] = {}
        # Both folders, so that a sound or film that is not there is noticed.
        folders = (self.root / "AudioWAV", self._frames or self.root / "VideoFlash")
        for clip in sorted({path.stem for folder in folders for path in folder.iterdir()}):
            parts = clip.split("_")
            if len(parts) != 4:
                raise DataError(f"crema_d: '{clip}' is not called <actor>_<sentence>_<emotion>_<level>")
            actors.setdefault(parts[0], []).append(self._entry(clip, parts[2], clip))
        return dealt(actors, self.name)

    def _entry(self, clip: str, emotion: str, place: str) -> Entry:
        sound = self.root / "AudioWAV" / f"{clip}.wav"
        label = number_of(emotion, EMOTIONS, f"crema_d, {place}")
        return Entry(clip, {"audio": sound, "visual": self._visual(clip)}, label)

    def _visual(self, clip: str) -> Path:
        return self._frames / clip if self._frames else self.root / "VideoFlash" / f"{clip}.flv"

    @cached_property
    def _frames(self) -> Path | None:
        """Where frames lie that were taken out before."""
        return first_there(self.root, ("Image-01-FPS", "visual"))
