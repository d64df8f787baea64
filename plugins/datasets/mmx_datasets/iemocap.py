"""IEMOCAP: emotions in conversations of two actors; words and voice.

Layout, as published, for sessions k from 1 to 5: `Session<k>/dialog/EmoEvaluation/<dialog>.txt` with lines
`[start - end]<tab>utterance<tab>emotion<tab>[...]`, `Session<k>/dialog/transcriptions/<dialog>.txt` with
lines `utterance [start-end]: text`, and `Session<k>/sentences/wav/<dialog>/<utterance>.wav`.

Four classes, as is usual: neutral, happy with excited, angry, sad; 5,531 utterances. The films show both
actors for a whole dialog and would have to be cut and cropped to a face; they are not read. Split: sessions 1
to 3 train, 4 val, 5 test, so that no speaker is in two (our choice; MLA deals utterances out at random,
60/20/20).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mmx.contracts import DataCard
from mmx.tasks import SingleLabel
from mmx_datasets.layout_kinds import Spoken
from mmx_datasets.papers import IEMOCAP_PAPER
from mmx_datasets.reading import Entry

CLASSES = ("neu", "hap", "ang", "sad")
NUMBERS = {**{name: number for number, name in enumerate(CLASSES)}, "exc": CLASSES.index("hap")}
SESSIONS = {"train": (1, 2, 3), "val": (4,), "test": (5,)}
RATED = re.compile(r"^\[[\d.]+ - [\d.]+\]\t(\S+)\t(\w+)\t")
SAID = re.compile(r"^(\S+) \[[\d.]+-[\d.]+\]:\s*(.*)$")
CARD = DataCard(
    description="Conversations of ten actors in five sessions, 5,531 utterances in 4 classes",
    splits="here by sessions; MLA deals out at random, 3,318 and 1,107; leaving one session out in turn is "
    "common too",
    modalities={"text": "text", "audio": "audio"},
    source="sail.usc.edu/iemocap; by agreement",
    licence="IEMOCAP release form: research only, no copies to others",
    citation=IEMOCAP_PAPER,
    sizes={"all": 5531},
    natural_missing="none known",
)


class Iemocap(Spoken):
    """The utterances of IEMOCAP."""

    name = "iemocap"
    needs = tuple(f"Session{session}" for session in range(1, 6))
    published = card = CARD
    modalities: Mapping[str, str] = {"text": "text", "audio": "audio"}
    task = SingleLabel(len(CLASSES))

    def entries(self) -> Mapping[str, Sequence[Entry]]:
        """Read the ratings of all sessions."""
        return {
            split: [entry for session in sessions for entry in self._session(self.root / f"Session{session}")]
            for split, sessions in SESSIONS.items()
        }

    def _session(self, folder: Path) -> Iterator[Entry]:
        for path in sorted((folder / "dialog" / "EmoEvaluation").glob("*.txt")):
            said = dict(_matches(folder / "dialog" / "transcriptions" / path.name, SAID))
            for utterance, emotion in _matches(path, RATED):
                if emotion in NUMBERS:
                    sound = folder / "sentences" / "wav" / path.stem / f"{utterance}.wav"
                    words = {"text": said[utterance]} if said.get(utterance) else {}
                    yield Entry(utterance, {**words, "audio": sound}, NUMBERS[emotion])


def _matches(path: Path, pattern: re.Pattern[str]) -> list[tuple[str, str]]:
    """Give both groups of each line that fits; the files have other lines too."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [(m[1], m[2].strip()) for m in map(pattern.match, lines) if m]
