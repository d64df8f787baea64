"""SMIL's two networks: sizes, and cepstral coefficients against a plain reference."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.fft import dct

from mmx_encoders.lenet import LeNet
from mmx_encoders.mfcc_net import MfccNet

LENGTHS = (1700, 3400, 8000)


def clips() -> torch.Tensor:
    """Give three clips of growing length, filled up with zeros."""
    noise = 0.1 * torch.randn(3, 8000, generator=torch.Generator().manual_seed(0))
    ends = torch.tensor(LENGTHS)[:, None]
    return torch.where(torch.arange(8000) < ends, noise, 0.0)


def mel_filters() -> np.ndarray:
    """Build Slaney's filters a triangle at a time: linear below 1 kHz, logarithmic above, of unit area."""
    step = np.log(6.4) / 27

    def hertz(mel: float) -> float:
        return mel * 200 / 3 if mel < 15 else 1000 * np.exp(step * (mel - 15))

    top = 15 + np.log(4.0) / step
    edges = [hertz(mel) for mel in np.linspace(0, top, 130)]
    bins = np.linspace(0, 4000, 1025)
    filters = np.zeros((128, 1025))
    for band in range(128):
        low, peak, high = edges[band : band + 3]
        triangle = np.minimum((bins - low) / (peak - low), (high - bins) / (high - peak))
        filters[band] = np.maximum(0, triangle) * 2 / (high - low)
    return filters


def by_hand(clip: np.ndarray) -> np.ndarray:
    """Make the released features of one clip that has no zeros behind it."""
    kept = clip[::3]
    padded = np.pad(kept, 1024)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(2048) / 2048)
    columns = [
        np.abs(np.fft.rfft(padded[start : start + 2048] * window)) ** 2
        for start in range(0, len(kept) + 1, 512)
    ]
    decibels = 10 * np.log10(np.maximum(1e-10, mel_filters() @ np.array(columns).T))
    decibels = np.maximum(decibels, decibels.max() - 80)
    found = dct(decibels, axis=0, norm="ortho")[:20]
    return np.pad(found, ((0, 0), (0, 20 - found.shape[1])))


def test_released_coefficients_are_those_of_a_clip_without_its_padding() -> None:
    found = MfccNet().coefficients(clips()).numpy()
    for row, length in enumerate(LENGTHS):
        expected = by_hand(clips()[row, :length].double().numpy())
        assert np.allclose(found[row], expected, atol=1e-2)


def test_released_coefficients_fill_few_columns() -> None:
    found = MfccNet().coefficients(clips())
    assert [int((row != 0).any(dim=0).sum()) for row in found] == [2, 3, 6]


def test_dense_coefficients_fill_all_columns_whatever_the_length() -> None:
    found = MfccNet(mfcc="dense").coefficients(clips())
    assert bool((found != 0).any(dim=1).all())


@pytest.mark.parametrize("mfcc", ["smil", "dense"])
def test_zeros_behind_a_clip_change_nothing(mfcc: Any) -> None:
    encoder = MfccNet(mfcc=mfcc)
    short = clips()[1:2, :3400]
    filled = torch.nn.functional.pad(short, (0, 4600))
    assert torch.allclose(encoder.coefficients(short), encoder.coefficients(filled), atol=1e-4)


@pytest.mark.parametrize("mfcc", ["smil", "dense"])
def test_silence_is_finite(mfcc: Any) -> None:
    assert bool(torch.isfinite(MfccNet(mfcc=mfcc).eval()(torch.zeros(2, 8000)).values).all())


def test_networks_have_the_published_widths() -> None:
    assert LeNet().eval()(torch.rand(2, 1, 28, 28)).values.shape == (2, 1, 160)
    assert MfccNet().eval()(clips()).values.shape == (3, 1, 320)
    assert sum(p.numel() for p in LeNet().parameters()) == 1 * 5 * 25 + 5 + 5 * 10 * 25 + 10
