"""A small image encoder: one token a patch, and their mean in front."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from mmx import Component, hookimpl
from mmx.contracts import Encoder, Tokens


class Patches(Encoder):
    """Image (batch, channels, height, width) to tokens (batch, 1 + patches, units); the first is their mean.

    `example` is one raw image, for sizes; it must be at least one patch high and wide.
    """

    kind: ClassVar[str] = "image"
    lora_targets: ClassVar[str] = r"cut|mix"

    def __init__(self, example: Tensor, patch: int = 4, units: int = 32) -> None:
        super().__init__()
        channels, height, width = example.shape
        if min(height, width) < patch:
            raise ValueError(f"an image of {height} x {width} has no patch of {patch} x {patch}")
        self.width = units
        self.cut = nn.Conv2d(channels, units, patch, stride=patch)
        self.mix = nn.Linear(units, units)

    def forward(self, raw: Tensor, prompts: Any = None) -> Tokens:
        """Encode each row; rows do not see each other."""
        if prompts is not None:
            raise ValueError("takes no prompts")
        patches = self.mix(gelu(self.cut(raw.float()).flatten(2).transpose(1, 2)))
        values = torch.cat([patches.mean(dim=1, keepdim=True), patches], dim=1)
        return Tokens(values, torch.ones(values.shape[:2], dtype=torch.bool, device=values.device))


@hookimpl
def register_encoders() -> list[Component]:
    """Offer it under the name that sweeps use."""
    return [Component("patches", f"{__name__}:Patches", summary="one token a patch, and their mean")]
