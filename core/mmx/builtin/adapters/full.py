"""Everything of the encoder trains."""

from torch import nn

from mmx.contracts import Adapter


class Full(Adapter):
    """Fine-tune the whole module."""

    def apply(self, module: nn.Module) -> None:
        """Let every parameter train."""
        module.requires_grad_(True)
