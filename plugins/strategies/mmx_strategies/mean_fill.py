"""The mean encoding stands in for an absent modality."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmx.contracts import Filled, Presence, Strategy, TokenMap, first_token
from mmx_strategies.stand_in import stand_in


class MeanFill(Strategy):
    """An absent modality has one valid token: the running mean of its summary tokens over training rows.

    The mean is exponential with `momentum`, because the encoders change while they train (our choice; mean
    imputation itself is folklore). It is corrected for its start at zero.
    """

    def __init__(self, modalities: Sequence[str], width: int, momentum: float = 0.05) -> None:
        super().__init__()
        self.momentum = momentum
        for m in modalities:
            self.register_buffer(f"mean_{m}", torch.zeros(width))
            self.register_buffer(f"weight_{m}", torch.zeros(()))

    def fill(self, tokens: TokenMap, presence: Presence, targets: TokenMap | None) -> Filled:
        """Put the mean in, and in training move it first."""
        del targets
        if self.training:
            for m, t in tokens.items():
                values, valid = first_token(t)
                if bool(valid.any()):
                    self._move(m, values[valid].detach().float().mean(dim=0))
        return Filled({m: stand_in(t, presence[m], self._mean(m)[None]) for m, t in tokens.items()})

    @torch.no_grad()
    def _move(self, m: str, mean: Tensor) -> None:
        self.get_buffer(f"mean_{m}").lerp_(mean, self.momentum)
        self.get_buffer(f"weight_{m}").lerp_(torch.ones_like(self.get_buffer(f"weight_{m}")), self.momentum)

    def _mean(self, m: str) -> Tensor:
        return self.get_buffer(f"mean_{m}") / self.get_buffer(f"weight_{m}").clamp(min=1e-8)
