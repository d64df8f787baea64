"""A masked autoencoder over the tokens of all modalities: it rebuilds what is absent and what is masked.

Of `all_stage`, whose file says what is the paper's and what is our choice.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from mmx.contracts import Modality, Presence, TokenMap, Tokens
from mmx.transformer import Transformer


class Slots(NamedTuple):
    """A modality's places in the autoencoder: tokens that are there, and those that are asked for."""

    values: Float[Tensor, "batch tokens width"]
    seen: Bool[Tensor, "batch tokens"]
    """Tokens that are there."""
    wanted: Bool[Tensor, "batch tokens"]
    """Tokens of an absent modality."""
    masked: Bool[Tensor, "batch tokens"]
    """Tokens that are there, and are kept from the autoencoder."""
    rebuilt: Float[Tensor, "batch tokens width"]
    """Its answer; of use where one of the last two holds."""

    def completed(self) -> Tokens:
        """Put what is rebuilt where a modality is absent; no gradient of the task passes it."""
        rebuilt = self.rebuilt.detach().to(self.values.dtype)
        values = torch.where(self.seen[:, :, None], self.values, rebuilt)
        valid = self.seen | self.wanted
        return Tokens(torch.where(valid[:, :, None], values, 0.0), valid)


class TokenAutoencoder(nn.Module):
    """All modalities' tokens, a learned one where there is none, through a transformer and a linear map."""

    def __init__(self, modalities: Sequence[Modality], width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.substitute = nn.ParameterDict({m: torch.randn(width) * 0.02 for m in modalities})
        self.embedding = nn.ParameterDict({m: torch.randn(width) * 0.02 for m in modalities})
        self.transformer = Transformer(width, depth, heads)
        self.decoders = nn.ModuleDict({m: nn.Linear(width, width) for m in modalities})
        for m in modalities:
            self.register_buffer(f"count_{m}", torch.ones((), dtype=torch.long))

    @torch.no_grad()
    def count(self, m: Modality, valid: Bool[Tensor, "batch tokens"]) -> None:
        """Take note of how many tokens a modality can have."""
        known = self.get_buffer(f"count_{m}")
        known.clamp_(min=int(valid.any(dim=0).nonzero().max()) + 1)

    def forward(self, tokens: TokenMap, presence: Presence, mask_rate: float) -> dict[Modality, Slots]:
        """Rebuild what is absent and, of what is there, a share that is masked; each row keeps a token."""
        own = {m: padded(t, int(self.get_buffer(f"count_{m}"))) for m, t in tokens.items()}
        wanted = {m: self._wanted(m, t, presence[m]) for m, t in own.items()}
        lengths = [t.values.shape[1] for t in own.values()]
        seen = torch.cat([t.valid for t in own.values()], dim=1)
        masked = dict(zip(own, _mask(seen, mask_rate).split(lengths, dim=1), strict=True))
        inside = torch.cat([self._enter(m, t, masked[m]) for m, t in own.items()], dim=1)
        valid = seen | torch.cat(list(wanted.values()), dim=1)
        # A row that nothing is known of must not be without keys; all it gets is its own substitutes.
        mixed = self.transformer(inside, valid | ~valid.any(dim=1, keepdim=True)).split(lengths, dim=1)
        return {
            m: Slots(t.values, t.valid, wanted[m], masked[m], self.decoders[m](part))
            for (m, t), part in zip(own.items(), mixed, strict=True)
        }

    def _wanted(self, m: Modality, tokens: Tokens, present: Tensor) -> Bool[Tensor, "batch tokens"]:
        places = torch.arange(tokens.values.shape[1], device=present.device)
        return ~present[:, None] & (places < self.get_buffer(f"count_{m}"))

    def _enter(self, m: Modality, tokens: Tokens, masked: Tensor) -> Float[Tensor, "batch tokens width"]:
        shown = (tokens.valid & ~masked)[:, :, None]
        values = torch.where(shown, tokens.values, self.substitute[m])
        return values + self.embedding[m] + _sines(values)


class Moments(nn.Module):
    """Running mean and standard deviation of a modality's tokens, channel by channel."""

    mean: Tensor
    square: Tensor
    weight: Tensor

    def __init__(self, width: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("square", torch.zeros(width))
        self.register_buffer("weight", torch.zeros(()))

    @torch.no_grad()
    def learn(self, values: Float[Tensor, "tokens width"]) -> None:
        """Move towards some tokens; what is still missing for the start at zero is kept in `weight`."""
        self.mean.lerp_(values.float().mean(dim=0), self.momentum)
        self.square.lerp_(values.float().square().mean(dim=0), self.momentum)
        self.weight.lerp_(torch.ones_like(self.weight), self.momentum)

    def known(self) -> bool:
        """Tell whether there was anything to learn from yet."""
        return bool(self.weight > 0)

    def distance(self, values: Float[Tensor, "tokens width"]) -> Float[Tensor, ""]:
        """Give (2) of one modality."""
        mean = self.mean / self.weight
        deviation = (self.square / self.weight - mean.square()).clamp(min=0).sqrt()
        found = values.float()
        spread = (found.var(dim=0, unbiased=False) + 1e-6).sqrt()  # the root has no slope at zero
        return (found.mean(dim=0) - mean).square().mean() + (spread - deviation).square().mean()


def padded(tokens: Tokens, least: int) -> Tokens:
    """Give every row at least so many places; those that are new are not valid."""
    more = max(0, least - tokens.values.shape[1])
    return Tokens(F.pad(tokens.values, (0, 0, 0, more)), F.pad(tokens.valid, (0, more)))


def _mask(seen: Bool[Tensor, "batch tokens"], rate: float) -> Bool[Tensor, "batch tokens"]:
    """Choose tokens among those that are there, never all of a row."""
    if not rate:
        return torch.zeros_like(seen)
    draw = torch.rand(seen.shape, device=seen.device).masked_fill(~seen, -1.0)
    kept = torch.zeros_like(seen).scatter(1, draw.argmax(dim=1, keepdim=True), True)
    return seen & (draw < rate) & ~kept


def _sines(values: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "tokens width"]:
    """Give the positions of Vaswani et al. (2017): sines in the first half of the channels, then cosines."""
    tokens, width = values.shape[1:]
    half = (width + 1) // 2
    speed = 10000 ** (-torch.arange(half, device=values.device) / half)
    angle = torch.arange(tokens, device=values.device)[:, None] * speed
    return torch.cat([angle.sin(), angle.cos()], dim=1)[:, :width].to(values.dtype)
