"""A share of the samples loses exactly one modality."""

from collections.abc import Sequence

import numpy as np

from mmx.contracts import Modality, Pattern, Presence, Protocol
from mmx.errors import InputError, did_you_mean
from mmx.protocols import Rate, rate_of_each, to_presence, uniforms


class PerSample(Protocol):
    """A sample loses one modality with probability `rate`: `which`, or any with equal shares.

    A rate a modality gives each its own share; the shares may not exceed one. Source: Lee et al. (CVPR 2023),
    missing-aware prompts, whose "both" with both-ratio 0.5 is the even split. They draw a table of exactly
    ⌊N·rate⌋ samples; a draw a sample, so that a mask hangs on nothing but its own id, is our choice.
    """

    def __init__(self, modalities: Sequence[str] = (), which: str | None = None) -> None:
        if which is not None and modalities and which not in modalities:
            raise InputError(f"per_sample: which '{which}' is no modality.{did_you_mean(which, modalities)}")
        self.which = which

    def draw(
        self, rate: Rate, ids: Sequence[str], modalities: Sequence[Modality], seed: int, split: str = "test"
    ) -> Presence:
        """Draw who is present."""
        shares = self._shares(rate, modalities)
        total = sum(shares.values())
        affected = uniforms(ids, seed, split, "per_sample/affected") < total
        # Which one is drawn apart from whether, so that masks stay nested as the rate grows.
        chosen = uniforms(ids, seed, split, "per_sample/which") * total
        edges = np.cumsum([0.0, *shares.values()])
        edges[-1] = np.inf
        return to_presence(
            {m: affected & (edges[i] <= chosen) & (chosen < edges[i + 1]) for i, m in enumerate(shares)}
        )

    def weights(self, rate: Rate, modalities: Sequence[Modality]) -> dict[Pattern, float]:
        """Give the probability of each pattern."""
        shares = self._shares(rate, modalities)
        everything = frozenset(modalities)
        return {everything: 1 - sum(shares.values()), **{everything - {m}: s for m, s in shares.items()}}

    def _shares(self, rate: Rate, modalities: Sequence[Modality]) -> dict[Modality, float]:
        if isinstance(rate, (int, float)):
            losers = [m for m in modalities if self.which in (None, m)]
            rates = dict.fromkeys(losers, float(rate) / max(1, len(losers)))
        else:
            rates = dict(rate)
        shares = rate_of_each(rates, modalities)
        if sum(shares.values()) > 1 + 1e-9:
            raise InputError(
                f"per_sample: shares {shares} exceed one; each sample loses at most one modality"
            )
        return shares
