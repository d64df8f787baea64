"""A zero token stands in for an absent modality."""

from mmx.contracts import Filled, Presence, Strategy, TokenMap
from mmx_strategies.stand_in import stand_in


class ZeroFill(Strategy):
    """Fill at the level of tokens: an absent modality has one valid token, all zeros. The classic control."""

    def fill(self, tokens: TokenMap, presence: Presence, targets: TokenMap | None) -> Filled:
        """Put zeros in."""
        del targets
        zero = next(iter(tokens.values())).values.new_zeros(1, next(iter(tokens.values())).values.shape[2])
        return Filled({m: stand_in(t, presence[m], zero) for m, t in tokens.items()})
