"""A vision transformer small enough to ship with its weights and to train on two cores."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mmx.transformer import Transformer
from mmx_encoders.transformer_encoder import TransformerEncoder
from mmx_encoders.weights import load_shipped

SIDE = 28
"""Pixels a side to which every image is resized: MNIST's size; four by four patches."""
PATCH = 7


class TinyVit(TransformerEncoder):
    """Images (batch, channels, height, width) in [0, 1] to a class token and 16 patch tokens of width 96.

    Any size and any number of channels: channels are averaged to grey, then the image is resized to 28x28.
    The shipped weights come from rendered letters, light on dark (data/tiny_vit.md).

    Source: Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021.
    """

    kind: ClassVar[str] = "image"

    def __init__(self, pretrained: bool = True) -> None:
        super().__init__(width=96, depth=4)
        self.patches = nn.Conv2d(1, self.width, PATCH, stride=PATCH)
        self.class_token = nn.Parameter(0.02 * torch.randn(self.width))
        self.positions = nn.Parameter(0.02 * torch.randn((SIDE // PATCH) ** 2, self.width))
        self.transformer = Transformer(self.width, depth=self.prompt_layers, heads=4)
        if pretrained:
            load_shipped(self, "tiny_vit")

    def class_embedding(self) -> Float[Tensor, " width"]:
        """Give the class token, which has no position."""
        return self.class_token

    def embed(
        self, raw: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch tokens embedded"]:
        """Give class token and patches."""
        grey = raw.float().mean(dim=1, keepdim=True)
        grey = F.interpolate(grey, (SIDE, SIDE), mode="bilinear", antialias=True)
        patches = (
            self.patches(4 * grey - 1).flatten(2).transpose(1, 2) + self.positions
        )  # about unit variance
        first = self.class_token.expand(len(raw), 1, -1)
        return torch.cat([first, patches], dim=1)
