"""avmnist: MNIST images and Free Spoken Digit recordings of the same ten classes, paired by class.

Nothing of it comes with the package (27 MB and two licences): `mmx data prepare avmnist` fetches it, or put
the files under `root` by hand (mmx_datasets.avmnist_files lists all layouts).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from mmx.contracts import DataCard, Dataset, Sample
from mmx.errors import DataError, did_you_mean
from mmx.tasks import SingleLabel
from mmx_datasets.avmnist_files import Array, Images, find_images
from mmx_datasets.avmnist_hard import Cut, in_noise
from mmx_datasets.avmnist_pairs import Pair, Splits, official_pairs, smil_pairs
from mmx_datasets.avmnist_prepare import FSDD_COMMIT, FSDD_SAMPLES_SHA256, MNIST_MD5, prepare
from mmx_datasets.avmnist_sounds import SAMPLE_RATE, Recordings, find_recordings

CARD = DataCard(
    description="Handwritten digits (MNIST) and spoken digits (FSDD, 6 speakers), paired by digit",
    source="MNIST: LeCun, Cortes, Burges, the four idx files; "
    f"FSDD: github.com/Jakobovski/free-spoken-digit-dataset at commit {FSDD_COMMIT}",
    licence="MNIST: CC BY-SA 3.0 (as usually given); FSDD: CC BY-SA 4.0",
    citation="""@article{lecun1998gradient,
  title = {Gradient-Based Learning Applied to Document Recognition},
  author = {LeCun, Yann and Bottou, L{\\'e}on and Bengio, Yoshua and Haffner, Patrick},
  journal = {Proceedings of the IEEE}, volume = {86}, number = {11}, pages = {2278--2324}, year = {1998}
}
@misc{jackson2018fsdd,
  title = {Free Spoken Digit Dataset},
  author = {Jackson, Zohar and Souza, C{\\'e}sar and Flaks, Jason and Pan, Yuxin and Nicolas, Hereman and
            Thite, Adhish},
  year = {2018}, doi = {10.5281/zenodo.1342401}
}""",
    sizes={"train": 2400, "val": 300, "test": 1500},
    checksums={**{f"md5 {name}": value for name, value in MNIST_MD5.items()},
               "sha256 of all FSDD samples": FSDD_SAMPLES_SHA256},
)  # fmt: skip


class AvMnist(Dataset):
    """Images (1, 28, 28) in [0, 1] and waveforms (8000,) in [-1, 1], 1 s at 8 kHz, cut or padded with zeros.

    `split_rule`: "official" pairs all 3,000 recordings of FSDD, takes 0-4 for test, and "smil" is the small
    setting of SMIL (AAAI 2021); mmx_datasets.avmnist_pairs has the rules. `val_takes`: takes a speaker and
    digit that are held out of training (official: from take 5 on; smil: 3 * val_takes pairs a class).
    `audio_share` (smil only): the share of the pairs outside test that have sound.
    `images_per_test_recording` (None: 5, and 1 under smil): the test set is then 300 recordings with five
    images each; its 1,500 pairs are not independent in sound, so intervals of sound alone are too narrow.
    `difficulty` "hard": images cut to the leading principal components of the training images that hold 25 %
    of their variance (4), clips in white noise at -5 dB. `pairing_seed` decides noise, and pairs (official).
    """

    modalities: Mapping[str, str] = {"image": "image", "audio": "audio"}
    task = SingleLabel(classes=10)
    card = CARD
    in_memory = True

    def __init__(
        self,
        root: str = "data/avmnist",
        split_rule: Literal["official", "smil"] = "official",
        difficulty: Literal["plain", "hard"] = "plain",
        pairing_seed: int = 0,
        val_takes: int = 5,
        audio_share: float = 1.0,
        images_per_test_recording: int | None = None,
    ) -> None:
        smil = split_rule == "smil"
        if not smil and audio_share != 1.0:
            raise DataError(
                f"avmnist: audio_share {audio_share} needs split_rule: smil; else use missing.train.rate"
            )
        if not 0.0 < audio_share <= 1.0 or not 1 <= val_takes <= 30:
            raise DataError(
                f"avmnist: audio_share {audio_share} must be in (0, 1], val_takes {val_takes} in 1 to 30"
            )
        each = (1 if smil else 5) if images_per_test_recording is None else images_per_test_recording
        if each < 1 or (smil and each > 1):
            raise DataError(f"avmnist: images_per_test_recording {each} must be above 0, and is 1 under smil")
        self.split_rule, self.hard, self.pairing_seed = split_rule, difficulty == "hard", pairing_seed
        self.val_takes, self.audio_share, self.images_per_test_recording = val_takes, audio_share, each
        self._read_images, self._read_recordings = _find(Path(root).expanduser())
        self.card = self._own_card()

    @classmethod
    def prepare(cls, root: Path) -> str:
        """Fetch MNIST and FSDD into `root`, 27 MB in all, and check them; say what is there."""
        return prepare(root)

    def split(self, name: str) -> Sequence[Sample]:
        """Build the samples of a split (DataError where there is no such split, or files are broken)."""
        if name not in self.pairs:
            raise DataError(f"avmnist: no split '{name}'.{did_you_mean(name, self.pairs)}")
        return [self._sample(pair) for pair in self.pairs[name]]

    @cached_property
    def images(self) -> Mapping[str, Images]:
        """MNIST's parts "train" and "test"."""
        return self._read_images()

    @cached_property
    def recordings(self) -> Recordings:
        """All recordings."""
        return self._read_recordings()

    @cached_property
    def pairs(self) -> Splits:
        """Pairs of each split."""
        names = self.recordings.names
        if self.split_rule == "smil":
            return smil_pairs(self.images, names, self.val_takes, self.audio_share)
        return official_pairs(
            self.images, names, self.pairing_seed, self.val_takes, self.images_per_test_recording
        )

    @cached_property
    def cut(self) -> Cut:
        """What hard images go through, fitted on the images of the training pairs."""
        return Cut.fit(np.stack([self._pixels(pair) for pair in self.pairs["train"]]))

    def _sample(self, pair: Pair) -> Sample:
        name = f"mnist/{pair.part}/{pair.image}"
        pixels = self.cut(self._pixels(pair)) if self.hard else self._pixels(pair)
        inputs = {"image": torch.from_numpy(pixels).float().reshape(1, 28, 28)}
        if pair.clip is not None:
            name = f"{self.recordings.names[pair.clip].id}+{name}"
            inputs["audio"] = torch.from_numpy(self._wave(pair.clip, name)).float()
        return Sample(name, inputs, pair.digit)

    def _pixels(self, pair: Pair) -> Array:
        return self.images[pair.part].pixels[pair.image].reshape(-1) / 255.0

    def _wave(self, clip: int, name: str) -> Array:
        wave = self.recordings.waves[clip][:SAMPLE_RATE] / 32768.0
        if self.hard:
            return in_noise(wave, SAMPLE_RATE, self.pairing_seed, name)
        return np.pad(wave, (0, SAMPLE_RATE - len(wave)))

    def _own_card(self) -> DataCard:
        if self.split_rule == "official":
            val = 60 * self.val_takes
            sizes = {"train": 2700 - val, "val": val, "test": 300 * self.images_per_test_recording}
            return replace(CARD, sizes=sizes)
        val = 30 * self.val_takes
        share = "none" if self.audio_share == 1.0 else f"{self.audio_share:.0%} of train and val have sound"
        return replace(CARD, sizes={"train": 1050 - val, "val": val, "test": 450}, natural_missing=share)


def _find(root: Path) -> tuple[Callable[[], Mapping[str, Images]], Callable[[], Recordings]]:
    """Look for both; where images are missing, say at once whether sounds are missing too."""
    try:
        images = find_images(root)
    except DataError as error:
        try:
            find_recordings(root)
        except DataError as other:
            raise DataError(f"{error}\n{other}") from error
        raise
    return images, find_recordings(root)
