"""An exact number of the samples loses one modality, as in a table that is drawn for the whole split."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from mmx.contracts import Modality, Pattern, Presence, Protocol
from mmx.errors import InputError, did_you_mean
from mmx.protocols import Array, Rate, only_one, rate_of_each, to_presence, uniforms

BOTH = "both"


class MissingTable(Protocol):
    """Exactly int(N · rate) of N samples lose one modality each, and no sample loses more.

    `type`: the one that they lose, or "both", all modalities in turn. `both_ratio` (of two modalities): of
    n samples that lose one exactly int(n · both_ratio) lose the second, in the dataset's order, and the
    others the first; None: half of them, and of more modalities each the same number but for one [choice].

    Source: Lee et al. (CVPR 2023), missing-aware prompts, released code: `missing_ratio`, `missing_type` and
    `both_ratio`. There Python's random state draws the rows once and a file keeps them; here the order of a
    hash does [choice], so that no file is needed and tables of growing rates are nested. The release's own
    rows do not come back.

    N counts the samples that are drawn together: those of a split that have the same modalities by nature.
    So a sample's mask hangs on who else is in its split.
    """

    samples_apart: ClassVar[bool] = False

    def __init__(
        self, modalities: Sequence[str] = (), type: str = BOTH, both_ratio: float | None = None
    ) -> None:
        if type != BOTH and modalities and type not in modalities:
            hint = did_you_mean(type, [BOTH, *modalities])
            raise InputError(f"missing_table: type '{type}' is neither 'both' nor a modality.{hint}")
        if both_ratio is not None and not 0 <= both_ratio <= 1:
            raise InputError(f"missing_table: both_ratio {both_ratio} is no fraction between 0 and 1")
        if both_ratio is not None and (type != BOTH or len(modalities) > 2):
            raise InputError(
                f"missing_table: both_ratio {both_ratio} is for type 'both' and two modalities; leave it out"
            )
        self.type, self.both_ratio = type, both_ratio

    def draw(
        self, rate: Rate, ids: Sequence[str], modalities: Sequence[Modality], seed: int, split: str = "test"
    ) -> Presence:
        """Draw who is present."""
        share, losers = self._losers(rate, modalities)
        ranks = _ranks(uniforms(ids, seed, split, "missing_table"), ids)
        affected = ranks < int(len(ids) * share)
        turn = self._turns(ranks, len(losers))
        places = {m: i for i, m in enumerate(losers)}
        return to_presence({m: affected & (turn == places.get(m, -1)) for m in modalities})

    def weights(self, rate: Rate, modalities: Sequence[Modality]) -> dict[Pattern, float]:
        """Give each pattern's share of a large table: a table of N samples has it up to less than 2 / N."""
        share, losers = self._losers(rate, modalities)
        everything = frozenset(modalities)
        if not losers:
            return {everything: 1.0}
        second = self.both_ratio
        shares = (
            [1 - second, second]
            if second is not None and len(losers) == 2
            else [1 / len(losers)] * len(losers)
        )
        lost = {everything - {m}: share * own for m, own in zip(losers, shares, strict=True)}
        return {everything: 1 - share, **lost}

    def _losers(self, rate: Rate, modalities: Sequence[Modality]) -> tuple[float, list[Modality]]:
        """Give the share of samples that lose one, and which modalities may be lost."""
        rate_of_each(rate, modalities)
        if isinstance(rate, (int, float)):
            return float(rate), [m for m in modalities if self.type in (BOTH, m)]
        alone = only_one(rate)
        if alone is None:
            raise InputError(
                "missing_table takes one rate for all modalities (or lets a single one go missing)"
            )
        return alone[1], [m for m in modalities if m == alone[0]]

    def _turns(self, ranks: Array, losers: int) -> Array:
        """Say whose turn it is to be lost: of the first n rows, for every n, the exact numbers."""
        if self.both_ratio is None or losers != 2:
            return ranks % max(1, losers)
        return np.floor((ranks + 1) * self.both_ratio) - np.floor(ranks * self.both_ratio)


def _ranks(draws: Array, ids: Sequence[str]) -> Array:
    """Give each sample's place in the order of the draws."""
    ranks = np.empty(len(ids), dtype=np.int64)
    ranks[np.lexsort((np.asarray(ids, dtype=object).astype(str), draws))] = np.arange(len(ids))
    return ranks
