"""An explicit distribution over availability patterns."""

from collections.abc import Mapping, Sequence

import numpy as np

from mmx.contracts import Modality, Pattern, Presence, Protocol
from mmx.errors import InputError
from mmx.protocols import Rate, only_one, rate_of_each, to_presence, uniforms


class Patterns(Protocol):
    """With probability `rate` a sample's pattern is drawn from `probabilities`, else it is complete.

    `probabilities` maps what is present, joined by dots, to a probability: {image: 0.2, image.audio: 0.8};
    they add up to one. Rate 1 is the distribution itself.
    """

    def __init__(self, modalities: tuple[str, ...], probabilities: Mapping[str, float]) -> None:
        self.distribution: dict[Pattern, float] = {}
        for name, probability in probabilities.items():
            pattern = frozenset(name.split("."))
            strangers = pattern - set(modalities)
            if strangers:
                raise InputError(f"patterns: '{name}' names '{min(strangers)}'; there are {list(modalities)}")
            if not probability >= 0:
                raise InputError(f"patterns: the probability of '{name}' is {probability}, not 0 or more")
            self.distribution[pattern] = self.distribution.get(pattern, 0.0) + float(probability)
        total = sum(self.distribution.values())
        if abs(total - 1) > 1e-6:
            raise InputError(f"patterns: the probabilities add up to {total}, not to 1")

    def draw(
        self, rate: Rate, ids: Sequence[str], modalities: Sequence[Modality], seed: int, split: str = "test"
    ) -> Presence:
        """Draw who is present."""
        chosen = self._weights_of_affected(rate, modalities)
        rate = self._affected(rate, modalities)
        affected = uniforms(ids, seed, split, "patterns/affected") < rate
        edges = np.cumsum(list(chosen.values()))
        edges[-1] = np.inf
        which = np.searchsorted(edges, uniforms(ids, seed, split, "patterns/which"), side="right")
        lacks = {m: np.array([m not in pattern for pattern in chosen]) for m in modalities}
        return to_presence({m: affected & lacks[m][which] for m in modalities})

    def weights(self, rate: Rate, modalities: Sequence[Modality]) -> dict[Pattern, float]:
        """Give the probability of each pattern."""
        share = self._affected(rate, modalities)
        weights = {frozenset(modalities): 1 - share}
        for pattern, probability in self._weights_of_affected(rate, modalities).items():
            weights[pattern] = weights.get(pattern, 0.0) + share * probability
        return weights

    def _affected(self, rate: Rate, modalities: Sequence[Modality]) -> float:
        rate_of_each(rate, modalities)
        if isinstance(rate, (int, float)):
            return float(rate)
        alone = only_one(rate)
        if alone is None:
            raise InputError("patterns takes one rate for all modalities (or lets a single one go missing)")
        return alone[1]

    def _weights_of_affected(self, rate: Rate, modalities: Sequence[Modality]) -> dict[Pattern, float]:
        """Give the distribution among these modalities; a pattern of which nothing is left keeps all."""
        everything = frozenset(modalities)
        if not isinstance(rate, (int, float)):
            alone = only_one(rate)
            return {everything - {alone[0]} if alone else everything: 1.0}
        weights: dict[Pattern, float] = {}
        for pattern, probability in self.distribution.items():
            left = pattern & everything or everything
            weights[left] = weights.get(left, 0.0) + probability
        return weights
