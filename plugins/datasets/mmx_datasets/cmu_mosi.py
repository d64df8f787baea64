"""CMU-MOSI and CMU-MOSEI: opinions in films, with words, voice and face, and how positive they are.

Layout, as MMSA gives the raw data: `label.csv` with a header and the columns `video_id`, `clip_id`, `text`,
`label` (-3 to 3) and `mode` (train, valid, test), and `Raw/<video_id>/<clip_id>.mp4`, from which both frames
and sound are read (PyAV is needed). The features of the papers (GloVe, COVAREP, FACET) come as pickles, which
mmx does not open: write them as a table of vectors and use `manifest`.

Task: regression. Acc-2 in both readings and Acc-7 are scores of `mmx eval`.
"""

import csv
from collections.abc import Mapping, Sequence

from mmx.contracts import DataCard
from mmx.errors import DataError
from mmx.tasks import Regression
from mmx_datasets.layout_kinds import Spoken
from mmx_datasets.papers import CMU_MOSEI_PAPER, CMU_MOSI_PAPER
from mmx_datasets.reading import Entry

MODES = {"train": "train", "valid": "val", "test": "test"}
COLUMNS = ("video_id", "clip_id", "text", "label", "mode")
LICENCE = "not stated with MMSA's copy; the films belong to those who uploaded them"
MOSI_CARD = DataCard(
    description="2,199 opinion clips from 93 films, sentiment from -3 to 3",
    splits="1,284/229/686 in MMSA and in MulT; another feature release has 1,447 and 752",
    modalities={"text": "text", "audio": "audio", "visual": "video"},
    source="github.com/thuiar/MMSA (raw data); multicomp.cs.cmu.edu",
    licence=LICENCE,
    citation=CMU_MOSI_PAPER,
    sizes={"train": 1284, "val": 229, "test": 686},
    natural_missing="none known",
)
MOSEI_CARD = DataCard(
    description="22,856 opinion clips of more than 1,000 speakers, sentiment from -3 to 3",
    splits="16,326/1,871/4,659 in MMSA and in MulT",
    modalities={"text": "text", "audio": "audio", "visual": "video"},
    source="github.com/thuiar/MMSA (raw data); multicomp.cs.cmu.edu",
    licence=LICENCE,
    citation=CMU_MOSEI_PAPER,
    sizes={"train": 16326, "val": 1871, "test": 4659},
    natural_missing="none known",
)


class CmuMosi(Spoken):
    """The clips of CMU-MOSI."""

    name = "cmu_mosi"
    needs = ("label.csv", "Raw")
    published = card = MOSI_CARD
    modalities: Mapping[str, str] = {"text": "text", "audio": "audio", "visual": "video"}
    task = Regression()

    def entries(self) -> Mapping[str, Sequence[Entry]]:
        """Read label.csv (DataError names a line that is wrong)."""
        path = self.root / "label.csv"
        found: dict[str, list[Entry]] = {split: [] for split in MODES.values()}
        with path.open(encoding="utf-8-sig", newline="", errors="replace") as file:
            for number, row in enumerate(csv.DictReader(file), start=2):
                try:
                    video, clip, text, label, mode = (str(row[name]).strip() for name in COLUMNS)
                    found[MODES[mode]].append(self._entry(video, clip, text, float(label)))
                except (KeyError, ValueError) as error:
                    raise DataError(f"{self.name}: line {number} of '{path}' is wrong ({error})") from error
        return found

    def _entry(self, video: str, clip: str, text: str, label: float) -> Entry:
        film = self.root / "Raw" / video / f"{clip}.mp4"
        words = {"text": text} if text else {}
        return Entry(f"{video}/{clip}", {**words, "audio": film, "visual": film}, label)


class CmuMosei(CmuMosi):
    """The clips of CMU-MOSEI, in the same layout."""

    name = "cmu_mosei"
    published = card = MOSEI_CARD
