"""Summary tokens side by side."""

from collections.abc import Mapping
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from mmx.contracts import Fusion, Logits, Modality, Task, TokenMap, first_token
from mmx.errors import InputError


class Concat(Fusion):
    """Concatenate each modality's summary token (zeros where it has no valid one) and apply a head.

    `hidden` above 0 puts one GELU layer of that width before the linear head; without it each modality has
    logits of its own, its columns of the head and an even share of the bias (as in OGM-GE, CVPR 2022).
    """

    def __init__(
        self, modalities: tuple[str, ...], width: int, task: Task, hidden: int = 0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.modalities = modalities
        self.tells_modalities_apart = not hidden
        inside = width * len(modalities)
        body = [nn.Linear(inside, hidden), nn.GELU()] if hidden else []
        self.head = nn.Sequential(*body, nn.Dropout(dropout), nn.Linear(hidden or inside, task.out))

    def forward(self, tokens: TokenMap) -> Logits:
        """Fuse."""
        return self.head(torch.cat([first_token(tokens[m])[0] for m in self.modalities], dim=1))

    def modality_logits(self, tokens: TokenMap) -> Mapping[Modality, Logits]:
        """Split the linear head among the modalities (InputError where there is a hidden layer)."""
        if not self.tells_modalities_apart:
            raise InputError("fusion 'concat': with a hidden layer modalities have no logits of their own")
        linear = cast(nn.Linear, self.head[-1])
        columns = linear.weight.chunk(len(self.modalities), dim=1)
        found = {}
        for m, weight in zip(self.modalities, columns, strict=True):
            values, valid = first_token(tokens[m])
            own = F.linear(values, weight, linear.bias / len(self.modalities))
            found[m] = torch.where(valid[:, None], own, 0.0)
        return found
