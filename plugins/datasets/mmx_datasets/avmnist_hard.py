"""Makes avmnist hard: images keep a few principal components, clips are drowned in white noise.

Plain avmnist is saturated (late fusion of small networks: 99.9 %): it cannot tell methods apart.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]

VARIANCE_SHARE = 0.25
SNR_DECIBELS = -5.0


@dataclass(frozen=True)
class Cut:
    """A projection on leading principal components: mean (pixels,), components (count, pixels)."""

    mean: Array
    components: Array

    @classmethod
    def fit(cls, images: Array, share: float = VARIANCE_SHARE) -> "Cut":
        """Fit on images (count, pixels): the fewest components that hold `share` of the variance."""
        mean = images.mean(axis=0)
        with _one_thread():
            variances, vectors = torch.linalg.eigh(torch.cov(torch.from_numpy(images - mean).T))
        held = torch.cumsum(variances.flip(0), dim=0) / variances.sum()
        count = int((held < share).sum()) + 1
        return cls(mean, vectors.flip(1)[:, :count].T.contiguous().numpy())

    def __call__(self, image: Array) -> Array:
        """Project one image (pixels,) and bring it back to [0, 1], which clips under- and overshoots."""
        codes = self.components @ (image - self.mean)
        return np.clip(self.mean + codes @ self.components, 0.0, 1.0)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch to one thread: beside other busy processes many took 18 s for eigh (784, 784), one 0.2 s."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def in_noise(wave: Array, length: int, seed: int, name: str, decibels: float = SNR_DECIBELS) -> Array:
    """Pad a clip (samples,) to `length` and add white noise all over it, a pure function of (seed, name).

    The ratio is that of the clip's own mean power, before padding, to the noise's. What leaves [-1, 1] is
    clipped.
    """
    key = hashlib.blake2b(f"{seed}\x00{name}".encode(), digest_size=16).digest()
    noise = np.random.default_rng(int.from_bytes(key, "big")).standard_normal(length)
    power = float(np.mean(np.square(wave, dtype=np.float64))) if len(wave) else 0.0
    noise *= np.sqrt(power / 10 ** (decibels / 10))
    noise[: len(wave)] += wave
    return np.clip(noise, -1.0, 1.0)
