"""The small convolutional network of SMIL's images."""

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mmx.contracts import Encoder, Tokens

SIDE = 28
"""Pixels a side to which every image is resized: MNIST's size."""


class LeNet(Encoder):
    """Images (batch, channels, height, width) in [0, 1] to one token of width 160; not pretrained.

    Channels are averaged to grey, and the image is resized to 28x28. Two convolutions of 5x5 (5 and 10 maps),
    each with max-pooling and ReLU, dropout of `dropout` before the second pooling.

    Source: LeNet-5 as in the released code of SMIL (Ma et al., AAAI 2021), without its linear layers, which
    are the fusion's business.
    """

    kind: ClassVar[str] = "image"
    lora_targets: ClassVar[str] = r"conv\d"

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__()
        self.width = 160
        self.conv1, self.conv2 = nn.Conv2d(1, 5, 5), nn.Conv2d(5, 10, 5)
        self.dropout = nn.Dropout(dropout)

    def forward(self, raw: Float[Tensor, "batch channels height width"], prompts: Any = None) -> Tokens:
        """Encode each image as one token."""
        if prompts is not None:
            raise ValueError("lenet takes no prompts")
        grey = raw.float().mean(dim=1, keepdim=True)
        grey = F.interpolate(grey, (SIDE, SIDE), mode="bilinear", antialias=True)
        maps = F.relu(F.max_pool2d(self.conv1(2 * grey - 1), 2))
        maps = F.relu(F.max_pool2d(self.dropout(self.conv2(maps)), 2))
        valid = torch.ones(len(raw), 1, dtype=torch.bool, device=raw.device)
        return Tokens(maps.flatten(1)[:, None], valid)
