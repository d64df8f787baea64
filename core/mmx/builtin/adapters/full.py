"""Everything of the encoder trains."""

from torch import nn

from mmx.contracts import Adapter


class Full(Adapter):
    """Fine-tune the whole encoder."""

    def apply(self, encoder: nn.Module) -> None:
        """Let every parameter train."""
        encoder.requires_grad_(True)
