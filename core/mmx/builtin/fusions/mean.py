"""Mean of the summary tokens that are there."""

import torch
from torch import nn

from mmx.contracts import Fusion, Logits, Task, TokenMap, first_token


class Mean(Fusion):
    """Average the valid summary tokens, then layer norm and a linear head."""

    def __init__(self, width: int, task: Task) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, task.out)

    def forward(self, tokens: TokenMap) -> Logits:
        """Fuse."""
        summaries = [first_token(t) for t in tokens.values()]
        total = torch.stack([values for values, _ in summaries]).sum(dim=0)
        count = torch.stack([valid for _, valid in summaries]).sum(dim=0)
        return self.head(self.norm(total / count.clamp(min=1)[:, None]))
