"""Late fusion: one head a modality."""

import torch
from torch import nn

from mmx.contracts import Fusion, Logits, Task, TokenMap, first_token


class MeanLogits(Fusion):
    """Give each modality its own linear head and average the logits of those with a valid summary token.

    With strategy `skip` this is late fusion over what is present, the bar that a method has to beat.
    """

    def __init__(self, modalities: tuple[str, ...], width: int, task: Task) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({m: nn.Linear(width, task.out) for m in modalities})

    def forward(self, tokens: TokenMap) -> Logits:
        """Fuse."""
        summaries = {m: first_token(tokens[m]) for m in self.heads}
        logits = [
            torch.where(valid[:, None], self.heads[m](values), 0.0)
            for m, (values, valid) in summaries.items()
        ]
        count = torch.stack([valid for _, valid in summaries.values()]).sum(dim=0)
        return torch.stack(logits).sum(dim=0) / count.clamp(min=1)[:, None]
