"""Summary tokens side by side."""

import torch
from torch import nn

from mmx.contracts import Fusion, Logits, Task, TokenMap, first_token


class Concat(Fusion):
    """Concatenate each modality's summary token (zeros where it has no valid one) and apply a head.

    `hidden` above 0 puts one GELU layer of that width before the linear head.
    """

    def __init__(
        self, modalities: tuple[str, ...], width: int, task: Task, hidden: int = 0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.modalities = modalities
        inside = width * len(modalities)
        body = [nn.Linear(inside, hidden), nn.GELU()] if hidden else []
        self.head = nn.Sequential(*body, nn.Dropout(dropout), nn.Linear(hidden or inside, task.out))

    def forward(self, tokens: TokenMap) -> Logits:
        """Fuse."""
        return self.head(torch.cat([first_token(tokens[m])[0] for m in self.modalities], dim=1))
