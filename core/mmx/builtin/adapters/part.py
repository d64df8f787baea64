"""A part of the encoder, or of the fusion, trains."""

from torch import nn

from mmx.contracts import Adapter
from mmx.errors import InputError
from mmx.targets import regex_of


class Part(Adapter):
    """Train the parameters that are named, and freeze the others: the last blocks, or a fusion's base alone.

    `targets`: a regex over parameter names (full match), such as `(base|head).*`.
    """

    def __init__(self, targets: str) -> None:
        self.targets = regex_of("part", targets)

    def apply(self, module: nn.Module) -> None:
        """Free what is targeted (InputError where that is nothing)."""
        chosen = {name for name, _ in module.named_parameters() if self.targets.fullmatch(name)}
        if not chosen:
            raise InputError(
                f"adapter 'part': targets {self.targets.pattern!r} match no parameter of "
                f"{type(module).__name__}"
            )
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in chosen)
