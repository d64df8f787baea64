"""MVSA-Single: tweets with a photo, and whether they are positive, neutral or negative.

Layout, as published: `data/<id>.jpg` and `data/<id>.txt`, and `labelResultAll.txt` with a header and lines
`id<tab>text label,image label`. One label is made of two by the rule of MultiSentiNet (Xu and Mao 2017): the
same, or else the one that is not neutral; tweets with a positive and a negative one are left out.

The publishers give no split. With the lists of QMF, `train.jsonl`, `dev.jsonl` and `test.jsonl` (of each line
the `id` and the `label` are read), the split is theirs: 1,555, 518 and 519. Without them tweets are dealt out
80/10/10 by a hash of their ids (our choice). Texts are read as UTF-8; bytes that are none become a
replacement sign, since the files mix encodings.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmx.contracts import DataCard
from mmx.errors import DataError
from mmx.tasks import SingleLabel
from mmx_datasets.layout import dealt
from mmx_datasets.layout_kinds import ImageText
from mmx_datasets.lists import json_lines, number_of
from mmx_datasets.papers import MVSA_PAPER
from mmx_datasets.reading import Entry

SENTIMENTS = ("negative", "neutral", "positive")
LISTS = {"train": "train.jsonl", "val": "dev.jsonl", "test": "test.jsonl"}
CARD = DataCard(
    description="Tweets with a photo and their sentiment, 3 classes",
    splits="QMF and MLA 1,555/518/519 (MLA leaves the 518 unused)",
    modalities={"image": "image", "text": "text"},
    source="mcrlab.net/research/mvsa-sentiment-analysis-on-multi-view-social-data; the lists in "
    "text-image-classification/datasets/MVSA_Single of github.com/QingyangZhang/QMF",
    licence="not stated by the publishers; tweets belong to those who wrote them",
    citation=MVSA_PAPER,
    sizes={"train of QMF's lists": 1555, "val of QMF's lists": 518, "test of QMF's lists": 519},
    natural_missing="none known",
)


class MvsaSingle(ImageText):
    """The tweets of MVSA-Single."""

    name = "mvsa_single"
    needs = ("data", "labelResultAll.txt|train.jsonl")
    published = card = CARD
    task = SingleLabel(len(SENTIMENTS))

    def entries(self) -> Mapping[str, Sequence[Entry]]:
        """Read QMF's lists, or the labels as published."""
        if all((self.root / name).is_file() for name in LISTS.values()):
            return {split: self._listed(self.root / name) for split, name in LISTS.items()}
        labels = _labels(self.root / "labelResultAll.txt")
        return dealt({tweet: [self._entry(tweet, label)] for tweet, label in labels.items()}, self.name)

    def _listed(self, path: Path) -> list[Entry]:
        rows = json_lines(path)
        if any("id" not in row or "label" not in row for row in rows):
            raise DataError(f"mvsa_single: a line of '{path}' has no id or no label")
        return [self._entry(str(row["id"]), str(row["label"])) for row in rows]

    def _entry(self, tweet: str, label: str) -> Entry:
        stem = self.root / "data" / tweet
        text = stem.with_name(f"{tweet}.txt")
        words = text.read_text(encoding="utf-8", errors="replace").strip() if text.is_file() else ""
        texts = {"text": words} if words else {}
        number = number_of(label, SENTIMENTS, f"mvsa_single, tweet {tweet}")
        return Entry(tweet, {"image": stem.with_name(f"{tweet}.jpg"), **texts}, number)


def _labels(path: Path) -> dict[str, str]:
    """Read the labels and make one of two."""
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        cells = line.replace(",", "\t").split()
        if number == 1 or not cells:
            continue
        if len(cells) != 3:
            raise DataError(f"mvsa_single: line {number} of '{path}' has {len(cells)} cells instead of 3")
        tweet, *both = cells
        if set(both) != {"positive", "negative"}:
            found[tweet] = next((label for label in both if label != "neutral"), "neutral")
    return found
