"""The small convolutional network of SMIL's sounds, on 20 by 20 cepstral coefficients."""

import math
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mmx.contracts import Encoder, Tokens
from mmx.errors import PluginError

RATE = 8000
SIZE = 20
"""Coefficients, and columns."""
QUIETEST = 80.0
"""Decibels under a clip's loudest band at which it counts as silence."""


class MfccNet(Encoder):
    """Waveforms (batch, samples) at 8 kHz to one token of width 320; not pretrained.

    Three convolutions of 2x2 (32, 48, 20 maps), each with batch norm and ReLU, max-pooling of stride 4 and
    dropout. A clip ends with its last sample that is not zero, since zeros fill clips up [choice].

    `mfcc`: "smil" is what the release has: every third sample, called 8 kHz, windows of 2,048 samples every
    512, 128 mel bands, so that a digit fills 1 to 6 of the 20 columns and zeros the others. "dense" has 20
    windows of 256 samples, evenly spread over the clip, 40 mel bands [choice].

    Source: released code of SMIL (Ma et al., AAAI 2021), network `SNetPluse` without its linear layers, which
    are the fusion's business. Features as librosa's `feature.mfcc` makes them, zeros beside the clip.
    """

    kind: ClassVar[str] = "audio"
    lora_targets: ClassVar[str] = r"conv\d"

    def __init__(self, mfcc: Literal["smil", "dense"] = "smil", dropout: float = 0.25) -> None:
        super().__init__()
        self.width, self.mfcc = 320, mfcc
        self.window = 2048 if mfcc == "smil" else 256
        filters, cosines = _tables(self.window // 2 + 1, 128 if mfcc == "smil" else 40)
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("cosines", cosines, persistent=False)
        self.conv1, self.norm1 = nn.Conv2d(1, 32, 2), nn.BatchNorm2d(32)
        self.conv2, self.norm2 = nn.Conv2d(32, 48, 2), nn.BatchNorm2d(48)
        self.conv3, self.norm3 = nn.Conv2d(48, 20, 2), nn.BatchNorm2d(20)
        self.dropout = nn.Dropout(dropout)

    def forward(self, raw: Float[Tensor, "batch samples"], prompts: Any = None) -> Tokens:
        """Encode each clip as one token."""
        if prompts is not None:
            raise ValueError("mfcc_net takes no prompts")
        maps = 2 * self.coefficients(raw)[:, None] - 1
        maps = F.relu(self.norm1(self.conv1(maps)))
        maps = F.relu(self.norm2(self.conv2(maps)))
        maps = F.relu(self.norm3(self.conv3(maps)))
        maps = self.dropout(F.max_pool2d(maps, 2, stride=4))
        valid = torch.ones(len(raw), 1, dtype=torch.bool, device=raw.device)
        return Tokens(maps.flatten(1)[:, None], valid)

    def coefficients(self, raw: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch 20 20"]:
        """Give 20 coefficients in 20 columns."""
        with torch.no_grad(), torch.autocast(raw.device.type, enabled=False):
            frames, real = (self._decimated if self.mfcc == "smil" else self._spread)(raw.float())
            window = torch.hann_window(self.window, device=raw.device)
            power = torch.fft.rfft(frames * window).abs().square()
            decibels = 10 * (power @ self.get_buffer("filters")).clamp(min=1e-10).log10()
            loudest = torch.where(real[:, :, None], decibels, -math.inf).amax(dim=(1, 2), keepdim=True)
            found = torch.maximum(decibels, loudest - QUIETEST) @ self.get_buffer("cosines")
            found = torch.where(real[:, :, None], found, 0.0)[:, :SIZE]
            return F.pad(found, (0, 0, 0, SIZE - found.shape[1])).transpose(1, 2)

    def _decimated(self, raw: Tensor) -> tuple[Float[Tensor, "batch frames window"], Tensor]:
        """Cut every third sample into windows around every 512th, and say which the clip reaches."""
        kept = raw[:, ::3]
        frames = F.pad(kept, (self.window // 2, self.window // 2)).unfold(1, self.window, 512)
        count = 1 + (_length(raw) + 2) // 3 // 512
        return frames, torch.arange(frames.shape[1], device=raw.device) < count[:, None]

    def _spread(self, raw: Tensor) -> tuple[Float[Tensor, "batch frames window"], Tensor]:
        """Cut 20 windows, evenly spread over the clip."""
        room = (_length(raw) - self.window).clamp(min=0)[:, None]
        starts = (torch.arange(SIZE, device=raw.device) * room / (SIZE - 1)).round().long()
        places = starts[:, :, None] + torch.arange(self.window, device=raw.device)
        padded = F.pad(raw, (0, self.window))
        frames = padded.gather(1, places.flatten(1)).unflatten(1, (SIZE, self.window))
        return frames, torch.ones(starts.shape, dtype=torch.bool, device=raw.device)


def _length(raw: Float[Tensor, "batch samples"]) -> Tensor:
    """Count the samples up to the last that is not zero."""
    places = torch.arange(1, raw.shape[1] + 1, device=raw.device)
    return (places * (raw != 0)).amax(dim=1)


def _tables(bins: int, bands: int) -> tuple[Tensor, Tensor]:
    """Give Slaney's mel filters (bins, bands) and the cosine transform (bands, 20) as librosa has them."""
    try:
        from torchaudio.functional import create_dct, melscale_fbanks
    except (ImportError, RuntimeError) as error:
        raise PluginError(
            f"mfcc_net needs torchaudio, which does not load here ({error}); install torch<2.15 with "
            "torchaudio 2.11, and run `mmx doctor`"
        ) from error
    filters = melscale_fbanks(bins, 0.0, RATE / 2, bands, RATE, norm="slaney", mel_scale="slaney")
    return filters, create_dct(SIZE, bands, "ortho")
