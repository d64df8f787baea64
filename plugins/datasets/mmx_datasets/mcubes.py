"""MCubeS: street scenes in colour, polarisation and near infrared; which of 20 materials are in sight.

Layout, as published: `list_folder/train.txt`, `val.txt` and `test.txt` with one name a line, and for each
name `polL_color/<name>.png`, `polL_aolp_sin/<name>.npy` and `polL_aolp_cos/<name>.npy` (sine and cosine of
the angle of polarisation), `polL_dolp/<name>.npy` (its degree), `NIR_warped/<name>.png`, and `GT/<name>.png`
with a number of a material, 0 to 19, for each pixel.

The papers segment. That is out of reach here: mmx has no task of one label a pixel. In its place (our choice)
the task is to say which materials cover at least 1 % of the pixels that have one; figures cannot be compared
with the papers'. The angle is one image whose channels are sine, cosine and nothing.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from mmx.cache import key_of
from mmx.contracts import DataCard
from mmx.errors import DataError
from mmx.tasks import MultiLabel
from mmx_datasets.layout_kinds import Stills
from mmx_datasets.media import Array
from mmx_datasets.papers import MCUBES_PAPER
from mmx_datasets.reading import Entry

MATERIALS = 20
LEAST_SHARE = 0.01
CARD = DataCard(
    description="500 street scenes in colour, polarisation and near infrared, 20 materials",
    splits="the published one, 302/96/102, in CMNeXt and in Reza and others, who segment",
    modalities=dict.fromkeys(("rgb", "aolp", "dolp", "nir"), "image"),
    source="github.com/kyotovision-public/multimodal-material-segmentation",
    licence="not known here; see the publishers' page",
    citation=MCUBES_PAPER,
    sizes={"train": 302, "val": 96, "test": 102},
    natural_missing="parts of the near-infrared images (NIR_warped_mask), not counted as absence",
)


class MCubeS(Stills):
    """The scenes of MCubeS."""

    name = "mcubes"
    needs = ("list_folder", "polL_color", "polL_aolp_sin", "polL_aolp_cos", "polL_dolp", "NIR_warped", "GT")
    published = card = CARD
    modalities: Mapping[str, str] = dict.fromkeys(("rgb", "aolp", "dolp", "nir"), "image")
    task = MultiLabel(MATERIALS)

    def entries(self) -> Mapping[str, Sequence[Entry]]:
        """Read the three lists, and from the labels of the pixels which materials are in sight."""
        return {split: self._entries(split) for split in ("train", "val", "test")}

    def _entries(self, split: str) -> list[Entry]:
        lines = (self.root / "list_folder" / f"{split}.txt").read_text(encoding="utf-8").split()
        return [self._entry(name) for name in lines]

    def _entry(self, name: str) -> Entry:
        def at(folder: str, ending: str) -> str:
            return str(self.root / folder / f"{name}{ending}")

        aolp = (at("polL_aolp_sin", ".npy"), at("polL_aolp_cos", ".npy"))
        still = {"rgb": at("polL_color", ".png"), "dolp": at("polL_dolp", ".npy")}
        return Entry(name, {**still, "aolp": aolp, "nir": at("NIR_warped", ".png")}, self._materials(name))

    def _materials(self, name: str) -> Array:
        path = self.root / "GT" / f"{name}.png"
        if not path.is_file():
            raise DataError(f"mcubes: '{path}' is not there; without it the scene has no labels")

        def count() -> Array:
            from PIL import Image

            with Image.open(path) as image:
                labels = np.asarray(image)
            if labels.ndim != 2:
                raise DataError(f"mcubes: '{path}' has {labels.ndim} axes; one number a pixel is needed")
            counts = np.bincount(labels[labels < MATERIALS], minlength=MATERIALS)
            return (counts >= LEAST_SHARE * max(1, counts.sum())).astype(np.float32)

        cache = self.read.cache
        key = key_of([path], {"materials": LEAST_SHARE})
        return count() if cache is None else np.array(cache.get(key, count))
