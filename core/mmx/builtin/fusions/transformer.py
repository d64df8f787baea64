"""A transformer over the tokens of all modalities."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from mmx.contracts import Fusion, Logits, Prompts, Task, TokenMap
from mmx.transformer import LORA_TARGETS, Transformer


class TransformerFusion(Fusion):
    """Put a class token and all modalities' tokens, each plus its modality's embedding, through pre-norm
    blocks that attend to valid tokens only; a linear head reads the class token.
    """

    accepts_prompts: ClassVar[bool] = True
    lora_targets: ClassVar[str] = LORA_TARGETS

    def __init__(
        self,
        modalities: tuple[str, ...],
        width: int,
        task: Task,
        depth: int = 2,
        heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.modalities = modalities
        self.prompt_layers = depth
        self.embedding = nn.ParameterDict({m: torch.randn(width) * 0.02 for m in modalities})
        self.class_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.transformer = Transformer(width, depth, heads, dropout)
        self.head = nn.Linear(width, task.out)

    def forward(self, tokens: TokenMap, prompts: Prompts | Tensor | None = None) -> Logits:
        """Fuse; outputs of prompts are dropped."""
        batch = len(tokens[self.modalities[0]].values)
        sequence = [self.class_token.expand(batch, -1, -1)]
        valid = [torch.ones(batch, 1, dtype=torch.bool, device=self.class_token.device)]
        for m in self.modalities:
            sequence.append(tokens[m].values + self.embedding[m])
            valid.append(tokens[m].valid)
        own = torch.cat(valid, dim=1)
        mixed = self.transformer(torch.cat(sequence, dim=1), None if bool(own.all()) else own, prompts)
        return self.head(mixed[:, mixed.shape[1] - own.shape[1]])
