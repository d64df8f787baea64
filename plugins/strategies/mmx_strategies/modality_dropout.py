"""Modality dropout: modalities are hidden in training, so that none is relied upon.

Source: Neverova et al., "ModDrop: Adaptive Multi-Modal Gesture Recognition" (TPAMI 2016). Fact: in training
each modality of a sample is dropped with some probability, independently of the others. Ours: a row that
would lose all of them keeps one [choice], and what is dropped is as absent as what was never there, where the
paper has zeros as input [choice].
"""

from collections.abc import Sequence

import torch

from mmx.contracts import Filled, Modality, Presence, Strategy, TokenMap
from mmx.errors import InputError


class ModalityDropout(Strategy):
    """Hide each modality that a row has with probability `rate`; nothing stands in, as with `skip`.

    A row that would lose all keeps one of those that it had, evenly chosen. So of M modalities each is hidden
    at a rate of `rate` − `rateᴹ` / M.
    """

    def __init__(self, modalities: Sequence[Modality], rate: float = 0.5) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise InputError(f"strategy 'modality_dropout': rate {rate} must be at least 0 and below 1")
        self.modalities = tuple(modalities)
        self.rate = rate

    def hide(self, presence: Presence) -> Presence:
        """Hide at random; what was absent stays so."""
        if self.rate == 0:
            return presence
        there = torch.stack([presence[m] for m in self.modalities])  # (modalities, batch)
        left = there & (torch.rand(there.shape, device=there.device) >= self.rate)
        draw = torch.rand(there.shape, device=there.device).masked_fill(~there, -1.0)
        saved = torch.zeros_like(there).scatter(0, draw.argmax(dim=0, keepdim=True), True)
        left = torch.where(left.any(dim=0), left, saved & there)
        return dict(zip(self.modalities, left, strict=True))

    def fill(self, tokens: TokenMap, presence: Presence, targets: TokenMap | None) -> Filled:
        """Hand the tokens on as they are."""
        del presence, targets
        return Filled(tokens)
