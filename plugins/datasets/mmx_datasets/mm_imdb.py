"""MM-IMDb: posters and plots of films, 23 genres, any number of them a film.

Layout, as published: `split.json` (train, dev and test to lists of ids), `dataset/<id>.jpeg` and
`dataset/<id>.json`, whose `plot` is a list of texts and `genres` a list of names. `images/<id>.jpeg` and
`labels/<id>.json`, as missing-aware prompts sorts them, are read too.

Most films have several plots. A sample has the longest (our choice; of missing-aware prompts each plot is a
sample of its own, in training and in evaluation, so its figures weigh films by their plots). Genres other
than the 23 are left out.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from mmx.contracts import DataCard
from mmx.errors import DataError
from mmx.tasks import MultiLabel
from mmx_datasets.layout_kinds import ImageText
from mmx_datasets.lists import first_there, json_file
from mmx_datasets.papers import MM_IMDB_PAPER
from mmx_datasets.reading import Entry

GENRES = (
    "Drama", "Comedy", "Romance", "Thriller", "Crime", "Action", "Adventure", "Horror", "Documentary",
    "Mystery", "Sci-Fi", "Fantasy", "Family", "Biography", "War", "History", "Music", "Animation", "Musical",
    "Western", "Sport", "Short", "Film-Noir",
)  # fmt: skip
CARD = DataCard(
    description="Posters and plots of 25,959 films, 23 genres, several a film",
    splits="the published one, 15,552/2,608/7,799, in missing-aware prompts and the methods compared "
    "with it; SMIL too uses this dataset",
    modalities={"image": "image", "text": "text"},
    source="archive.org/download/mmimdb (code: github.com/johnarevalo/gmu-mmimdb)",
    licence="not stated by the publishers; posters and plots belong to IMDb and their makers",
    citation=MM_IMDB_PAPER,
    sizes={"train": 15552, "val": 2608, "test": 7799},
    natural_missing="none known",
)


class MmImdb(ImageText):
    """The posters and plots of MM-IMDb."""

    name = "mm_imdb"
    needs = ("split.json", "dataset|images", "dataset|labels")
    published = card = CARD
    task = MultiLabel(len(GENRES))

    def entries(self) -> Mapping[str, Sequence[Entry]]:
        """Read the split and each film's description."""
        names = {"train": "train", "val": "dev", "test": "test"}
        given = json_file(self.root / "split.json")
        return {split: [self._entry(film) for film in given.get(name, [])] for split, name in names.items()}

    def _entry(self, film: str) -> Entry:
        posters, described = (first_there(self.root, (name, "dataset")) for name in ("images", "labels"))
        assert posters is not None and described is not None  # noqa: S101 `needs` has made sure
        facts = json_file(described / f"{film}.json")
        if "genres" not in facts:
            raise DataError(f"mm_imdb: '{film}.json' has no genres; get it again")
        plots = facts.get("plot") or []
        target = np.array([genre in facts["genres"] for genre in GENRES], dtype=np.float32)
        texts = {"text": max(plots, key=len)} if any(plots) else {}
        return Entry(film, {"image": posters / f"{film}.jpeg", **texts}, target)
