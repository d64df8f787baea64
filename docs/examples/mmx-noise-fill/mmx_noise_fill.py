"""Noise stands in for an absent modality."""

import torch
from torch.nn.functional import pad

from mmx import Component, hookimpl
from mmx.contracts import Filled, Presence, Strategy, TokenMap, Tokens


class NoiseFill(Strategy):
    """An absent modality has one valid token: a vector of noise, drawn once a modality.

    Once, not at every call: a row's prediction must not change when the batch around it does.
    """

    def __init__(self, modalities: tuple[str, ...], width: int, scale: float = 1.0) -> None:
        super().__init__()
        for m in modalities:
            self.register_buffer(f"noise_{m}", scale * torch.randn(width))

    def fill(self, tokens: TokenMap, presence: Presence, targets: TokenMap | None) -> Filled:
        """Put the noise in."""
        filled = {}
        for m, own in tokens.items():
            values, valid = own
            if values.shape[1] == 0:  # no row has this modality
                values, valid = pad(values, (0, 0, 0, 1)), pad(valid, (0, 1))
            first = torch.arange(values.shape[1], device=values.device) == 0
            slot = ~presence[m][:, None] & first
            values = torch.where(slot[:, :, None], self.get_buffer(f"noise_{m}"), values)
            filled[m] = Tokens(values, valid | slot)
        return Filled(filled)


@hookimpl
def register_strategies() -> list[Component]:
    """Offer it under the name that sweeps use."""
    return [Component("noise_fill", f"{__name__}:NoiseFill", summary="noise stands in for what is absent")]
