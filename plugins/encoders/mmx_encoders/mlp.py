"""A perceptron on feature vectors."""

from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmx.contracts import Encoder, Tokens


class Mlp(Encoder):
    """Feature vector (batch, features) to one token, by `depth` GELU layers of `units`.

    Tensors of more axes are flattened. It takes no prompts: there is no sequence to put them in front of.
    """

    kind: ClassVar[str] = "vector"
    lora_targets: ClassVar[str] = r"layers\.\d+"

    def __init__(self, example: Tensor, units: int = 64, depth: int = 2) -> None:
        super().__init__()
        self.width = units
        sizes = [example.numel()] + [units] * depth
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, raw: Tensor, prompts: Any = None) -> Tokens:
        """Encode each row as one token."""
        if prompts is not None:
            raise ValueError("mlp takes no prompts")
        values = raw.flatten(1).float()
        for i, layer in enumerate(self.layers):
            values = layer(F.gelu(values) if i else values)
        return Tokens(values[:, None], torch.ones(len(values), 1, dtype=torch.bool, device=values.device))
