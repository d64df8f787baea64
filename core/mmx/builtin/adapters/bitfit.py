"""Only the biases of the encoder train."""

from torch import nn

from mmx.contracts import Adapter
from mmx.errors import InputError


class BitFit(Adapter):
    """Train the existing bias terms and nothing else. Source: Ben Zaken et al. (ACL 2022)."""

    def apply(self, module: nn.Module) -> None:
        """Freeze all but the parameters named `bias` (InputError where there are none)."""
        biases = [p for name, p in module.named_parameters() if name.split(".")[-1] == "bias"]
        if not biases:
            raise InputError(f"adapter 'bitfit': {type(module).__name__} has no biases to train")
        module.requires_grad_(False)
        for bias in biases:
            bias.requires_grad_(True)
