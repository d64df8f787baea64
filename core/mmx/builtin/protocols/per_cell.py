"""A share of all sample-modality cells is absent; each sample keeps at least one."""

from collections.abc import Sequence
from math import prod

from mmx.contracts import Modality, Pattern, Presence, Protocol
from mmx.errors import InputError
from mmx.protocols import Rate, all_patterns, only_one, rate_of_each, to_presence, uniforms


class PerCell(Protocol):
    """A share `rate` of all cells is absent: each sample keeps one modality, drawn evenly, and loses each of
    the other M − 1 with probability rate · M / (M − 1).

    No rate above (M − 1) / M exists. Source: the CPM-Net style masks of MLA's released code, which keep one
    modality a sample and switch further cells on until the share is met; independent draws a sample, equal
    in expectation and nested in the rate, are our choice.
    """

    def draw(
        self, rate: Rate, ids: Sequence[str], modalities: Sequence[Modality], seed: int, split: str = "test"
    ) -> Presence:
        """Draw who is present."""
        probability, single = self._probability(rate, modalities)
        draws = {m: uniforms(ids, seed, split, f"per_cell/{m}") for m in modalities}
        if single is not None:
            return to_presence({m: draws[m] < (probability if m == single else 0.0) for m in modalities})
        kept = (uniforms(ids, seed, split, "per_cell/kept") * len(modalities)).astype(int)
        return to_presence({m: (draws[m] < probability) & (kept != i) for i, m in enumerate(modalities)})

    def weights(self, rate: Rate, modalities: Sequence[Modality]) -> dict[Pattern, float]:
        """Give the probability of each pattern."""
        q, single = self._probability(rate, modalities)
        everything = frozenset(modalities)
        if single is not None:
            return {everything: 1 - q, everything - {single}: q} if q else {everything: 1.0}
        return {
            pattern: sum(
                prod(1 - q if m in pattern else q for m in modalities if m != kept) for kept in pattern
            )
            / len(modalities)
            for pattern in all_patterns(modalities)
        }

    def highest_rate(self, modalities: Sequence[Modality]) -> float:
        """Give (M − 1) / M: every sample keeps one."""
        return (len(modalities) - 1) / len(modalities)

    def _probability(self, rate: Rate, modalities: Sequence[Modality]) -> tuple[float, Modality | None]:
        """Give how probably a cell that may go does go, and the modality where only one may."""
        rate_of_each(rate, modalities)
        if not isinstance(rate, (int, float)):
            alone = only_one(rate)
            if alone is None:
                raise InputError(
                    "per_cell takes one rate for all modalities (or lets a single one go missing)"
                )
            return alone[1], alone[0]
        count = len(modalities)
        if rate > self.highest_rate(modalities) + 1e-9:
            raise InputError(
                f"per_cell: rate {rate} does not exist with {count} modalities, since every sample "
                f"keeps one; the highest is {count - 1}/{count} = {(count - 1) / count:.3f}"
            )
        return min(1.0, rate * count / (count - 1)), None
