"""UPMC Food-101: photos of dishes and the titles of the pages that they stood on, 101 classes.

Layout, as published: `images/train/<class>/<photo>`, `images/test/<class>/<photo>`, and
`texts/train_titles.csv` and `texts/test_titles.csv` with lines `photo,title,class` and no header. With
`split.json` of the code of missing-aware prompts (split to list of photos; `dev` or `val` is validation) the
split is theirs: 61,142, 6,846 and 22,716 photos.

A photo without a title lacks its text by nature; missing-aware prompts leaves such photos out. Photos on the
disk that no list names are not used.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property

from mmx.contracts import DataCard
from mmx.errors import DataError
from mmx.tasks import SingleLabel
from mmx_datasets.layout_kinds import ImageText
from mmx_datasets.lists import csv_rows, json_file, number_of
from mmx_datasets.papers import FOOD101_PAPER
from mmx_datasets.reading import Entry

VALIDATION = ("val", "dev", "valid")
CARD = DataCard(
    description="Photos of dishes with the titles of their web pages, 101 classes; labels are noisy",
    splits="missing-aware prompts (and methods compared with it) 61,142/6,846/22,716 by split.json; MLA "
    "62,970 and 22,714; QMF 22,715 in test",
    modalities={"image": "image", "text": "text"},
    source="visiir.isir.upmc.fr (UPMC), or its copy kaggle.com/datasets/gianmarco96/upmcfood101",
    licence="not stated by the publishers; photos and titles belong to the pages that they stood on",
    citation=FOOD101_PAPER,
    sizes={"train of split.json": 61142, "val of split.json": 6846, "test of split.json": 22716},
    natural_missing="texts of a few photos (the split files name photos that have no title); rate unknown",
)


class Food101(ImageText):
    """The photos and titles of UPMC Food-101."""

    name = "food101"
    needs = ("images/train", "images/test", "texts/train_titles.csv", "texts/test_titles.csv")
    published = card = CARD
    task = SingleLabel(101)

    def entries(self) -> Mapping[str, Sequence[Entry]]:
        """Read split.json, or the published parts."""
        if not (self.root / "split.json").is_file():
            return {
                part: [
                    self._entry(photo, part) for photo, (where, *_) in self.titles.items() if where == part
                ]
                for part in ("train", "test")
            }
        given = json_file(self.root / "split.json")
        names = {"val" if split in VALIDATION else split: photos for split, photos in given.items()}
        return {
            split: [self._entry(photo, "test" if split == "test" else "train") for photo in photos]
            for split, photos in names.items()
        }

    @cached_property
    def titles(self) -> Mapping[str, tuple[str, str, str]]:
        """Part, title and class of each photo."""
        return {
            photo: (part, title, label)
            for part in ("train", "test")
            for photo, title, label in csv_rows(self.root / "texts" / f"{part}_titles.csv", 3)
        }

    @cached_property
    def classes(self) -> list[str]:
        """The classes, in the order of the alphabet (DataError where there are not 101)."""
        found = sorted({label for _, _, label in self.titles.values()})
        if len(found) != self.task.classes:
            raise DataError(f"food101: the titles have {len(found)} classes instead of 101")
        return found

    def _entry(self, photo: str, part: str) -> Entry:
        label = photo.rpartition("_")[0]
        values = {"image": self.root / "images" / part / label / photo}
        title = self.titles[photo][1] if photo in self.titles else ""
        texts = {"text": title} if title else {}
        return Entry(photo, {**values, **texts}, number_of(label, self.classes, f"food101, '{photo}'"))
