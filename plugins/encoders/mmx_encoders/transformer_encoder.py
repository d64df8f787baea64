"""What encoders built with mmx's small transformer share."""

from abc import abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mmx.contracts import Encoder, Prompts, Tokens
from mmx.transformer import LORA_TARGETS, Transformer


class TransformerEncoder(Encoder):
    """Embeds raw input as a class token and others, all valid, which pass a transformer.

    Its stages are the embedding and each block.
    """

    lora_targets: ClassVar[str] = LORA_TARGETS
    accepts_prompts: ClassVar[bool] = True
    transformer: Transformer

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.width, self.prompt_layers, self.depth = width, depth, depth + 1

    @abstractmethod
    def embed(self, raw: Tensor) -> Float[Tensor, "batch tokens width"]:
        """Give what goes into the first block, the class token first."""

    def forward(self, raw: Tensor, prompts: Prompts | Tensor | None = None) -> Tokens:
        """Encode to [outputs of input-level prompts; class token; the others]."""
        return self.encode_embedded(self.embed(raw), prompts)

    def encode_embedded(
        self, x: Float[Tensor, "batch tokens width"], prompts: Prompts | Tensor | None = None
    ) -> Tokens:
        """Encode what `embed` gave."""
        return _all_valid(self.transformer(x, prompts=prompts))

    def advance(self, state: Tensor | Tokens, start: int, stop: int) -> Tokens:
        """Run some of the stages."""
        x = state.values if isinstance(state, Tokens) else self.embed(state)
        return _all_valid(self.transformer.advance(x, max(0, start - 1), stop - 1))


def _all_valid(values: Tensor) -> Tokens:
    return Tokens(values, values.new_ones(values.shape[:2], dtype=torch.bool))
