"""Hateful Memes: pictures with a text on them, hateful or not; neither alone tells.

Layout, as published: `img/<id>.png`, and `train.jsonl`, `dev_seen.jsonl` (or `dev.jsonl`) and
`test_seen.jsonl` (or `test.jsonl`) with lines that have `id`, `img`, `label` and `text`. The first release of
`test.jsonl` has no labels and cannot be scored: take that of the later release, `test_seen.jsonl`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmx.contracts import DataCard
from mmx.errors import DataError
from mmx.tasks import SingleLabel
from mmx_datasets.layout_kinds import ImageText
from mmx_datasets.lists import first_there, json_lines
from mmx_datasets.papers import HATEFUL_MEMES_PAPER
from mmx_datasets.reading import Entry

LISTS = {
    "train": ("train.jsonl",),
    "val": ("dev_seen.jsonl", "dev.jsonl"),
    "test": ("test_seen.jsonl", "test.jsonl"),
}
CARD = DataCard(
    description="10,000 memes, picture and text, hateful or not; benign twins make either alone useless",
    splits="train, dev and test_seen, in missing-aware prompts and the methods compared with it; the "
    "measure is AUROC",
    modalities={"image": "image", "text": "text"},
    source="Facebook AI (Meta), hatefulmemeschallenge.com; by agreement",
    licence="Hateful Memes Challenge dataset licence agreement: research only, no copies to others",
    citation=HATEFUL_MEMES_PAPER,
    sizes={"train": 8500, "val": 500, "test": 1000},
    natural_missing="none",
)


class HatefulMemes(ImageText):
    """The memes; class 1 is hateful."""

    name = "hateful_memes"
    needs = ("img", *("|".join(names) for names in LISTS.values()))
    published = card = CARD
    task = SingleLabel(2)

    def entries(self) -> Mapping[str, Sequence[Entry]]:
        """Read the three lists (DataError where one has no labels)."""
        return {split: self._entries(names) for split, names in LISTS.items()}

    def _entries(self, names: Sequence[str]) -> list[Entry]:
        path = first_there(self.root, names)
        rows = json_lines(path) if path else []
        if any("label" not in row for row in rows):
            raise DataError(f"hateful_memes: '{path}' has no labels; get {names[0]} of the later release")
        return [
            Entry(
                str(row["id"]),
                {"image": self.root / "img" / Path(row["img"]).name, "text": row["text"]},
                int(row["label"]),
            )
            for row in rows
        ]
