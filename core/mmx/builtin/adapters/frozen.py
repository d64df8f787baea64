"""Nothing of the encoder trains."""

from torch import nn

from mmx.contracts import Adapter


class Frozen(Adapter):
    """Freeze the encoder: with a linear fusion head this is a linear probe."""

    def apply(self, module: nn.Module) -> None:
        """Freeze every parameter."""
        module.requires_grad_(False)
