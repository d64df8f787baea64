"""Late fusion: one head a modality."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from mmx.contracts import Fusion, Logits, Modality, Task, TokenMap, first_token, head_logits
from mmx.errors import InputError


class MeanLogits(Fusion):
    """Give each modality its own linear head and average the logits of those with a valid summary token.

    With strategy `skip` this is late fusion over what is present, the bar that a method has to beat. `reads`
    names the modalities that have a head (default: all); with one it is the uni-modal baseline, whose logits
    are zero, that is, which guesses, where that one is absent.
    """

    def __init__(
        self, modalities: tuple[str, ...], width: int, task: Task, reads: Sequence[str] | None = None
    ) -> None:
        super().__init__()
        unknown = [m for m in reads or () if m not in modalities]
        if unknown or reads == []:
            raise InputError(f"fusion 'mean_logits': reads {reads} must name some of {list(modalities)}")
        chosen = [m for m in modalities if reads is None or m in reads]
        self.heads = nn.ModuleDict({m: nn.Linear(width, task.out) for m in chosen})
        self.out = task.out
        self.tells_modalities_apart = True

    def modality_logits(self, tokens: TokenMap) -> Mapping[Modality, Logits]:
        """Give each head's logits."""
        return {m: head_logits(head, tokens[m], self.out) for m, head in self.heads.items()}

    def forward(self, tokens: TokenMap) -> Logits:
        """Fuse."""
        count = torch.stack([first_token(tokens[m])[1] for m in self.heads]).sum(dim=0)
        total = torch.stack(list(self.modality_logits(tokens).values())).sum(dim=0)
        return total / count.clamp(min=1)[:, None]
