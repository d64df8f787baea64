"""Nothing but the prediction head(s) trains."""

from torch import nn

from mmx.contracts import HEADS, Adapter


class HeadOnly(Adapter):
    """Freeze all but the submodules `head` and `heads`: of a fusion its head(s) train."""

    def apply(self, module: nn.Module) -> None:
        """Free the parameters of heads, and freeze the others."""
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(not HEADS.isdisjoint(name.split(".")))
