"""Each modality of each sample is absent with its own probability."""

from collections.abc import Sequence
from math import prod

import numpy as np

from mmx.contracts import Modality, Pattern, Presence, Protocol
from mmx.protocols import Rate, all_patterns, rate_of_each, to_presence, uniforms


class PerModality(Protocol):
    """Modality m of a sample is absent when its draw u_m lies below p_m, independently.

    A sample that would lose all keeps the modality with the largest u_m / p_m. Given that all draws fell
    below their rates these ratios are uniform, so each modality is kept equally often. Realised rate of m:
    p_m − (Π p) / M.
    """

    def draw(
        self, rate: Rate, ids: Sequence[str], modalities: Sequence[Modality], seed: int, split: str = "test"
    ) -> Presence:
        """Draw who is present."""
        rates = rate_of_each(rate, modalities)
        draws = {m: uniforms(ids, seed, split, m) for m in modalities}
        absent = {m: draws[m] < rates[m] for m in modalities}
        lost_all = np.all(list(absent.values()), axis=0)
        if lost_all.any():
            ratios = np.stack([draws[m] / rates[m] for m in modalities])
            kept = ratios.argmax(axis=0)
            for position, m in enumerate(modalities):
                absent[m] &= ~(lost_all & (kept == position))
        return to_presence(absent)

    def weights(self, rate: Rate, modalities: Sequence[Modality]) -> dict[Pattern, float]:
        """Give the probability of each pattern."""
        rates = rate_of_each(rate, modalities)
        rescued = prod(rates.values()) / len(modalities)
        return {
            pattern: prod(1 - r if m in pattern else r for m, r in rates.items())
            + (len(pattern) == 1) * rescued
            for pattern in all_patterns(modalities)
        }
