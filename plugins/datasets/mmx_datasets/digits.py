"""Digits seen and heard: scikit-learn's 8x8 images, paired within class with synthetic spoken digits.

Everything comes with the package, so that a whole experiment runs without a network. Images are split by a
fixed hash, stratified by class; voices are disjoint between the splits. Noise keeps either modality alone
from being enough.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import NamedTuple, overload

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mmx.contracts import DataCard, Dataset, Sample
from mmx.errors import DataError
from mmx.tasks import SingleLabel

SAMPLE_RATE = 8000
SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}


class Source(NamedTuple):
    """Images of one split, in scikit-learn's order, and clips by digit."""

    ids: Sequence[str]
    images: Sequence[Float[Tensor, "1 8 8"]]
    labels: Sequence[int]
    clips: Mapping[int, Sequence[Float[Tensor, " samples"]]]


class Digits(Dataset):
    """Images (1, 8, 8), about [0, 1], and sounds (8000,), 1 s at 8 kHz in [-1, 1]; ten classes.

    `pairing_seed` decides which clip goes with an image, its shift and all noise. `image_noise` is the
    standard deviation of Gaussian noise on each pixel; `snr_db` the power of speech over that of white noise,
    in decibels; `max_shift` the latest start of the speech in seconds (as far as the clip then still fits).
    """

    modalities: Mapping[str, str] = MappingProxyType({"image": "image", "audio": "audio"})
    task = SingleLabel(classes=10)
    in_memory = True
    card = DataCard(
        description="Handwritten digits (8x8), paired within class with spoken digits (8 kHz, 1 s); noisy.",
        source=(
            "Images: scikit-learn's load_digits, the test part of UCI optdigits (1,797). Sounds: 580 clips "
            "in 58 voices rendered by espeak-ng 1.51 (mmx_datasets/render_spoken_digits.py)."
        ),
        licence="Images CC BY 4.0 (UCI); clips MIT, as mmx.",
        citation=(
            "@misc{optdigits, author={Alpaydin, E. and Kaynak, C.}, title={Optical Recognition of "
            "Handwritten Digits}, year={1998}, howpublished={UCI Machine Learning Repository}, "
            "doi={10.24432/C50P49}}"
        ),
        sizes={"train": 1078, "val": 360, "test": 359},
        natural_missing="none",
    )

    def __init__(
        self, pairing_seed: int = 0, image_noise: float = 0.35, snr_db: float = 0.0, max_shift: float = 0.6
    ) -> None:
        self.pairing_seed, self.image_noise = pairing_seed, image_noise
        self.snr_db, self.max_shift = snr_db, max_shift

    def split(self, name: str) -> Sequence[Sample]:
        """Give the samples of a split, each made when it is read."""
        if name not in SHARES:
            raise DataError(f"digits has no split '{name}'; ask for one of {', '.join(SHARES)}")
        return _Samples(self, _source(name))

    def sample(self, source: Source, index: int) -> Sample:
        """Make one sample: a pure function of the constructor's options and the image's id."""
        name, label = source.ids[index], source.labels[index]
        generator = torch.Generator().manual_seed(_hash(f"{self.pairing_seed}/{name}"))
        choices = source.clips[label]
        clip = choices[int(torch.randint(len(choices), (), generator=generator))]
        audio = self._place(clip, generator)
        image = source.images[index]
        image = image + self.image_noise * torch.randn(image.shape, generator=generator)
        return Sample(name, {"image": image, "audio": audio}, label)

    def _place(self, clip: Float[Tensor, " samples"], generator: torch.Generator) -> Float[Tensor, "8000"]:
        """Shift the clip within one second, add noise and scale the peak to at most 1."""
        free = min(SAMPLE_RATE - len(clip), round(self.max_shift * SAMPLE_RATE))
        start = int(torch.randint(free + 1, (), generator=generator))
        noise = torch.randn(SAMPLE_RATE, generator=generator)
        audio = noise * clip.square().mean().sqrt() * 10 ** (-self.snr_db / 20)
        audio[start : start + len(clip)] += clip
        return audio / audio.abs().max().clamp(min=1.0)


class _Samples(Sequence[Sample]):
    """Samples of one split, made on access."""

    def __init__(self, dataset: Digits, source: Source) -> None:
        self.dataset, self.source = dataset, source

    def __len__(self) -> int:
        return len(self.source.ids)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.dataset.sample(self.source, range(len(self))[index])


def _hash(text: str) -> int:
    """Give 63 bits that depend on the text alone, on any machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@cache
def _source(split: str) -> Source:
    """Read one split's images and clips."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    rows = sorted(_rows(labels)[split])
    pixels = torch.from_numpy(images[rows] / 16).float().view(-1, 1, 8, 8)
    ids = [f"digits-{row:04d}" for row in rows]
    return Source(ids, list(pixels), [int(labels[row]) for row in rows], _clips(split))


def _rows(labels: np.ndarray) -> dict[str, list[int]]:
    """Deal the images of each class out to the splits, in the order of a hash of their row."""
    rows: dict[str, list[int]] = defaultdict(list)
    for label in range(10):
        of_class = sorted(np.flatnonzero(labels == label).tolist(), key=lambda row: _hash(f"image/{row}"))
        count, start, share = len(of_class), 0, 0.0
        for split, part in SHARES.items():
            share += part
            end = round(share * count)
            rows[split] += of_class[start:end]
            start = end
    return rows


def _clips(split: str) -> dict[int, list[Float[Tensor, " samples"]]]:
    """Read the clips of a split by digit, undoing the mu-law."""
    with (files("mmx_datasets") / "data" / "spoken_digits.npz").open("rb") as file:
        data = dict(np.load(file, allow_pickle=False))
    clips = defaultdict(list)
    for i in np.flatnonzero(data["split"] == split):
        squeezed = data["wave"][data["offset"][i] : data["offset"][i + 1]] / 255 * 2 - 1
        sound = np.sign(squeezed) * np.expm1(np.abs(squeezed) * np.log(256)) / 255
        clips[int(data["label"][i])].append(torch.from_numpy(sound).float())
    return dict(clips)
