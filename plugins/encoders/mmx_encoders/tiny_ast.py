"""An audio spectrogram transformer small enough to ship with its weights and to train on two cores."""

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmx.contracts import Tokens
from mmx.errors import PluginError
from mmx.transformer import Transformer
from mmx_encoders.transformer_encoder import TransformerEncoder
from mmx_encoders.weights import load_shipped

MELS = 40
FRAMES_A_SECOND = 80
PATCH = (20, 5)
"""Mel bands and frames a patch: two patches high, 62.5 ms long; 32 a second."""
QUIETEST = -60.0
"""Decibels under a clip's loudest point at which it counts as silence."""


class TinyAst(TransformerEncoder):
    """Waveforms (batch, samples) in [-1, 1] to a class token and 32 patch tokens a second, of width 96.

    Log-mel energies (40 bands up to 4 kHz, 80 frames a second) relative to the clip's loudest point, so that
    neither gain nor zero padding matters and silence is a constant. Clips of any length are padded with
    silence to whole patches. The shipped weights come from synthetic words, 1 s each (data/tiny_ast.md); at
    another `sample_rate` windows keep their length in seconds, so the weights still fit.

    Source: Gong et al., AST: Audio Spectrogram Transformer, Interspeech 2021.
    """

    kind: ClassVar[str] = "audio"

    def __init__(self, pretrained: bool = True, sample_rate: int = 8000) -> None:
        super().__init__(width=96, depth=4)
        self.mel = mel_spectrogram(sample_rate)
        self.patches = nn.Conv2d(1, self.width, PATCH, stride=PATCH)
        self.class_token = nn.Parameter(0.02 * torch.randn(self.width))
        self.bands = nn.Parameter(0.02 * torch.randn(MELS // PATCH[0], 1, self.width))
        self.transformer = Transformer(self.width, depth=self.prompt_layers, heads=4)
        if pretrained:
            load_shipped(self, "tiny_ast")

    def class_embedding(self) -> Float[Tensor, " width"]:
        """Give the class token, which has no position."""
        return self.class_token

    def embed(self, raw: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch tokens width"]:
        """Give class token and patches."""
        return self.embed_spectrogram(self.spectrogram(raw))

    def spectrogram(self, raw: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch mels frames"]:
        """Give log-mel energies from -1 (silence) to 1 (the clip's loudest point)."""
        with torch.no_grad():
            energy = self.mel(raw.float())[:, :, :-1]  # the last frame is centred on the clip's end
            loudest = energy.amax(dim=(1, 2), keepdim=True).clamp(min=1e-10)
            decibels = 10 * (energy / loudest).clamp(min=10 ** (QUIETEST / 10)).log10()
            return 1 - 2 * decibels / QUIETEST

    def encode(self, spectrogram: Float[Tensor, "batch mels frames"]) -> Tokens:
        """Encode a spectrogram as `spectrogram` gives it."""
        return self.encode_embedded(self.embed_spectrogram(spectrogram))

    def embed_spectrogram(
        self, spectrogram: Float[Tensor, "batch mels frames"]
    ) -> Float[Tensor, "batch tokens width"]:
        """Give class token and patches of a spectrogram."""
        missing = -spectrogram.shape[2] % PATCH[1]
        spectrogram = nn.functional.pad(spectrogram, (0, missing), value=-1.0)
        patches = self.patches(spectrogram[:, None]).permute(0, 2, 3, 1)  # (batch, bands, times, width)
        patches = patches + self.bands + waves(patches.shape[2], self.width).to(patches)
        first = self.class_token.expand(len(patches), 1, -1)
        return torch.cat([first, patches.flatten(1, 2)], dim=1)


def mel_spectrogram(sample_rate: int) -> nn.Module:
    """Build torchaudio's mel spectrogram, its tables left out of the state that is saved."""
    if sample_rate < 8000:
        raise ValueError(f"tiny_ast hears up to 4 kHz: sample_rate {sample_rate} must be at least 8000")
    try:
        from torchaudio.transforms import MelSpectrogram
    except (ImportError, RuntimeError) as error:
        raise PluginError(
            f"tiny_ast needs torchaudio, which does not load here ({error}); install torch<2.15 with "
            "torchaudio 2.11, and run `mmx doctor`"
        ) from error
    mel = MelSpectrogram(
        sample_rate,
        n_fft=round(0.032 * sample_rate),
        hop_length=sample_rate // FRAMES_A_SECOND,
        f_min=60.0,
        f_max=4000.0,
        n_mels=MELS,
        pad_mode="constant",
    )
    for module in mel.modules():
        for name, table in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, table, persistent=False)
    return mel


def waves(times: int, width: int) -> Float[Tensor, "times width"]:
    """Give sine and cosine positions, which exist for any length."""
    rates = torch.exp(-math.log(1000.0) * torch.arange(0, width, 2) / width)
    angles = torch.arange(times)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)
