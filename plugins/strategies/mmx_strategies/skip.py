"""Nothing stands in for what is absent."""

from mmx.contracts import Filled, Presence, Strategy, TokenMap


class Skip(Strategy):
    """Leave absent modalities without a valid token. With fusion `mean_logits` this is late fusion over what
    is present; with `mean` or `transformer` absent tokens are not read; with `concat` they are zeros.
    """

    def fill(self, tokens: TokenMap, presence: Presence, targets: TokenMap | None) -> Filled:
        """Hand the tokens on as they are."""
        del presence, targets
        return Filled(tokens)
