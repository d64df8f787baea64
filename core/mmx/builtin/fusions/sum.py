"""Sum of the summary tokens that are there."""

import torch
from torch import nn

from mmx.contracts import Fusion, Logits, Task, TokenMap, first_token


class Sum(Fusion):
    """Add the valid summary tokens up, then layer norm and a linear head."""

    def __init__(self, width: int, task: Task) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, task.out)

    def forward(self, tokens: TokenMap) -> Logits:
        """Fuse."""
        total = torch.stack([first_token(t)[0] for t in tokens.values()]).sum(dim=0)
        return self.head(self.norm(total))
