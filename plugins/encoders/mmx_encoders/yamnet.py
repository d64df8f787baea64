"""YAMNet: sounds of every kind, by MobileNet on patches of a spectrogram."""

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mmx.contracts import Encoder, Tokens
from mmx_encoders.sound import RATE, at_rate, exactly, magnitudes, mel_filters, padded
from mmx_encoders.weights import load_state, read_state

WIDTH = 1024
LAYERS = (
    *((1, 64), (2, 128), (1, 128), (2, 256), (1, 256), (2, 512)),
    *((1, 512),) * 5,
    *((2, 1024), (1, 1024)),
)
"""Stride and channels of each separable convolution."""
FRAME, HOP = 400, 160
PATCH, PATCH_HOP = 96, 48
"""Frames of a patch (0.96 s), and from one patch to the next."""


class Yamnet(Encoder):
    """Waveforms (batch, samples) in [-1, 1] to the mean over patches and a token a patch, one each 0.48 s.

    Clips of any length; the end is filled up with silence to a whole patch, as in the release. `weights` is
    the path of a file, or "none"; there is no hub. Names in the file: `stem`, `dw.N`, `pw.N`, batch norms
    folded in; a head (`fc`) may be in it and is left out. It takes no prompts.

    Source: Plakal and Ellis, YAMNet (tensorflow/models, research/audioset/yamnet); Hershey et al., CNN
    Architectures for Large-Scale Audio Classification, ICASSP 2017; Gemmeke et al., Audio Set, ICASSP 2017.
    """

    kind: ClassVar[str] = "audio"
    lora_targets: ClassVar[str] = r"pw\.\d+"
    """The pointwise convolutions; depthwise ones have too many groups for a low rank."""

    def __init__(self, weights: str, sample_rate: int = RATE) -> None:
        super().__init__()
        self.width, self.sample_rate = WIDTH, sample_rate
        self.register_buffer("filters", mel_filters(257, 64, 125.0, 7500.0), persistent=False)
        self.stem = SameConv(1, 32, stride=2)
        inputs = (32, *(channels for _, channels in LAYERS[:-1]))
        self.dw = nn.ModuleList(
            SameConv(n, n, stride, groups=n) for n, (stride, _) in zip(inputs, LAYERS, strict=True)
        )
        self.pw = nn.ModuleList(nn.Conv2d(n, out, 1) for n, (_, out) in zip(inputs, LAYERS, strict=True))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # without norms, scale must not get lost in 27 layers
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if weights != "none":
            load_state(self, read_state(weights), weights, ("fc.",))

    def forward(self, raw: Float[Tensor, "batch samples"], prompts: Any = None) -> Tokens:
        """Encode to [mean; patches]."""
        if prompts is not None:
            raise ValueError("yamnet takes no prompts")
        patches = self.patches(raw)
        x = F.relu(self.stem(patches.flatten(0, 1)[:, None]))
        for depthwise, pointwise in zip(self.dw, self.pw, strict=True):
            x = F.relu(pointwise(F.relu(depthwise(x))))
        values = x.mean(dim=(2, 3)).unflatten(0, patches.shape[:2])
        values = torch.cat([values.mean(dim=1, keepdim=True), values], dim=1)
        return Tokens(values, values.new_ones(values.shape[:2], dtype=torch.bool))

    def patches(self, raw: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch patches frames bands"]:
        """Give log-mel energies in patches of 96 frames that overlap by half."""
        sound = at_rate(raw, self.sample_rate)
        least = FRAME + (PATCH - 1) * HOP
        beyond = max(0, sound.shape[1] - least)
        sound = padded(sound, least + -(-beyond // (PATCH_HOP * HOP)) * PATCH_HOP * HOP)
        with exactly(sound.device):
            energies = magnitudes(sound, FRAME, HOP) @ self.get_buffer("filters")
            return (energies + 0.001).log().unfold(1, PATCH, PATCH_HOP).transpose(2, 3)


class SameConv(nn.Conv2d):
    """A 3x3 convolution with TensorFlow's padding: at stride 2 more at the end than at the start."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int = 1) -> None:
        super().__init__(inputs, outputs, 3, stride, groups=groups)

    def forward(self, x: Float[Tensor, "batch inputs rows columns"]) -> Float[Tensor, "batch outputs r c"]:
        """Pad, then convolve."""
        step = self.stride[0]
        missing = [(-(-n // step) - 1) * step + 3 - n for n in (x.shape[3], x.shape[2])]
        return super().forward(F.pad(x, [side for n in missing for side in (n // 2, n - n // 2)]))
