"""What front ends of audio networks share: frames of sound, mel filters, the sample rate."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

RATE = 16000
"""Samples a second that published audio networks hear."""


@contextmanager
def exactly(device: torch.device) -> Iterator[None]:
    """Compute in single precision without gradients: logarithms of half-precision energies are noise."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def at_rate(raw: Float[Tensor, "batch samples"], rate: int) -> Float[Tensor, "batch resampled"]:
    """Give the sound in single precision at 16 kHz."""
    if rate == RATE:
        return raw.float()
    from torchaudio.functional import resample

    with exactly(raw.device):
        return resample(raw.float(), rate, RATE)


def padded(raw: Float[Tensor, "batch samples"], length: int) -> Float[Tensor, "batch length"]:
    """Fill up with silence at the end, or cut the end off."""
    return F.pad(raw, (0, length - raw.shape[1]))


def magnitudes(
    sound: Float[Tensor, "batch samples"], frame: int, hop: int, size: int = 512
) -> Float[Tensor, "batch frames bins"]:
    """Give the magnitudes of the short-time spectrum: whole frames only, a periodic Hann window."""
    window = torch.hann_window(frame, device=sound.device)
    return torch.fft.rfft(sound.unfold(1, frame, hop) * window, size).abs()


def mel_filters(
    bins: int, bands: int, lowest: float, highest: float, rate: int = RATE
) -> Float[Tensor, "bins bands"]:
    """Give triangles that are straight on the mel scale (torchaudio's are so in Hz), none over 0 Hz.

    Source: tf.signal.linear_to_mel_weight_matrix.
    """

    def mel(hertz: Tensor) -> Tensor:
        return 1127.0 * torch.log1p(hertz / 700.0)

    place = mel(torch.linspace(0, rate / 2, bins, dtype=torch.float64)[1:, None])
    ends = mel(torch.tensor([lowest, highest], dtype=torch.float64))
    edges = torch.linspace(float(ends[0]), float(ends[1]), bands + 2, dtype=torch.float64)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    slopes = torch.minimum((place - left) / (centre - left), (right - place) / (right - centre))
    return F.pad(slopes.clamp(min=0), (0, 0, 1, 0)).float()


def cosines(bands: int, coefficients: int) -> Float[Tensor, "bands coefficients"]:
    """Give the cosine transform that makes cepstral coefficients of log-mel energies.

    Source: tf.signal.mfccs_from_log_mel_spectrograms.
    """
    place = torch.arange(bands, dtype=torch.float64)[:, None] + 0.5
    angles = math.pi / bands * place * torch.arange(coefficients, dtype=torch.float64)
    return (angles.cos() * math.sqrt(2 / bands)).float()
