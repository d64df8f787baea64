"""Everything of the encoder trains."""

import re

from torch import nn

from mmx.contracts import Adapter
from mmx.errors import InputError


class Full(Adapter):
    """Fine-tune the whole module, or a part of it.

    `targets`: "all", or a regex over parameter names (full match); what does not match is frozen.
    """

    def __init__(self, targets: str = "all") -> None:
        self.targets = targets

    def apply(self, module: nn.Module) -> None:
        """Let what is targeted train (InputError where that is nothing)."""
        pattern = ".*" if self.targets == "all" else self.targets
        chosen = {n for n, _ in module.named_parameters() if re.fullmatch(pattern, n)}
        if self.targets != "all" and not chosen:
            raise InputError(
                f"adapter 'full': targets {self.targets!r} match no parameter of {type(module).__name__}"
            )
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in chosen)
