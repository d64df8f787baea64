"""A small pre-norm transformer that takes prompts, for encoders and fusions to build with.

Queries, keys, values and output are separate linear maps, so that LoRA reaches each of them (peft cannot
adapt the output map inside `nn.MultiheadAttention`), and no fused inference path can skip an adapter.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from mmx.types import Prompts

LORA_TARGETS = r"(.*\.)?(query|key|value|output)"
"""Regex over module names: the four attention maps of every block."""


class Attention(nn.Module):
    """Multi-head attention; `extra` are keys and values that only this layer sees."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.output = nn.Linear(width, width), nn.Linear(width, width)

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        mask: Bool[Tensor, "batch queries keys"] | None = None,
        extra: Float[Tensor, "batch prompts width"] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        """Attend; `mask` is True where a query may look (keys: the prompts' first, then x's)."""
        keys, values = self.key(x), self.value(x)
        if extra is not None:
            half = extra.shape[1] // 2
            keys = torch.cat([extra[:, :half], keys], dim=1)
            values = torch.cat([extra[:, half:], values], dim=1)
        q, k, v = (
            self._split(t) for t in (self.query(x), keys, values)
        )  # (batch, heads, tokens, width/heads)
        attended = F.scaled_dot_product_attention(q, k, v, None if mask is None else mask[:, None])
        return self.output(attended.transpose(1, 2).flatten(2))

    def _split(self, t: Tensor) -> Tensor:
        return t.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """Pre-norm block: attention, then a GELU perceptron, each with a residual."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0, expansion: int = 4) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.up, self.down = nn.Linear(width, expansion * width), nn.Linear(expansion * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        mask: Bool[Tensor, "batch queries keys"] | None = None,
        extra: Float[Tensor, "batch prompts width"] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        """Apply the block."""
        x = x + self.dropout(self.attention(self.norm1(x), mask, extra))
        return x + self.dropout(self.down(F.gelu(self.up(self.norm2(x)))))


class Transformer(nn.Module):
    """A stack of blocks and a final norm. Positions are the caller's business; prompts have none."""

    def __init__(self, width: int, depth: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        valid: Bool[Tensor, "batch tokens"] | None = None,
        prompts: Prompts | Tensor | None = None,
    ) -> Float[Tensor, "batch out width"]:
        """Run the blocks; outputs of input-level prompts come back in front, the first layer's last.

        A plain tensor (batch, prompts, width) is input-level prompts of the first layer.
        """
        if prompts is None:
            return self.advance(x, 0, len(self.blocks), valid)
        if isinstance(prompts, Tensor):
            prompts = Prompts(prompts[:, None])
        front = 0  # how many prompt tokens stand before x's own
        for layer, block in enumerate(self.blocks):
            extra = None
            if layer < prompts.values.shape[1]:
                here = prompts.values[:, layer]
                if prompts.level == "input":
                    x, front = torch.cat([here, x], dim=1), front + here.shape[1]
                else:
                    extra = here
            x = block(x, _mask(x, valid, front, extra, prompts), extra)
        return self.norm(x)

    def advance(
        self,
        x: Float[Tensor, "batch tokens width"],
        start: int,
        stop: int,
        valid: Bool[Tensor, "batch tokens"] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        """Run the blocks from `start` to before `stop`, and the final norm after the last one."""
        for block in list(self.blocks)[start:stop]:
            x = block(x, _mask(x, valid, 0, None, None))
        return self.norm(x) if stop == len(self.blocks) else x


def _mask(
    x: Tensor, valid: Tensor | None, front: int, extra: Tensor | None, prompts: Prompts | None
) -> Bool[Tensor, "batch queries keys"] | None:
    """Say which keys each query may attend to; None where that is all of them."""
    read_only = prompts is not None and prompts.read_only and front > 0
    if valid is None and not read_only:
        return None
    batch, tokens = x.shape[:2]
    own = x.new_ones(batch, tokens - front, dtype=torch.bool) if valid is None else valid
    head = front if extra is None else extra.shape[1] // 2
    keys = torch.cat([own.new_full((batch, head), not read_only), own], dim=1)
    return keys[:, None].expand(batch, tokens, keys.shape[1])
