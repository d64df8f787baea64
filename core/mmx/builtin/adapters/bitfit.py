"""Only the biases of the encoder train."""

from torch import nn

from mmx.contracts import HEADS, Adapter
from mmx.errors import InputError


class BitFit(Adapter):
    """Train the existing bias terms and nothing else; `heads: false` leaves out those of a fusion's head.

    Source: Ben Zaken et al. (ACL 2022).
    """

    def __init__(self, heads: bool = True) -> None:
        self.heads = heads

    def apply(self, module: nn.Module) -> None:
        """Freeze all but the parameters named `bias` (InputError where there are none)."""
        named = [(name.split("."), p) for name, p in module.named_parameters()]
        biases = [p for name, p in named if name[-1] == "bias" and (self.heads or HEADS.isdisjoint(name))]
        if not biases:
            raise InputError(f"adapter 'bitfit': {type(module).__name__} has no biases to train")
        module.requires_grad_(False)
        for bias in biases:
            bias.requires_grad_(True)
