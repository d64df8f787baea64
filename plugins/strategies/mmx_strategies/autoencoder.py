"""An autoencoder predicts an absent modality's features from those that are there: the usual baseline.

Source: the baseline of SMIL (Ma et al., AAAI 2021), whose code is not published. Ours [choice]: sizes
128-64-128 between the features; the squared error is over complete rows, on features without gradient, and is
all that it learns from: the task's loss stops at its output; over several present modalities predictions are
averaged.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mmx.contracts import Filled, Modality, Presence, Strategy, TokenMap, first_token
from mmx.errors import InputError
from mmx_strategies.stand_in import mean_of_present, stand_in


class Autoencoder(Strategy):
    """For each ordered pair m → n, MLP(width, 128, 64, 128, width) predicts the summary token of n from m's.

    An absent n has one valid token, the mean of the predictions from what is there. Loss: `weight` times the
    mean over pairs of the squared error, on the rows that have both.
    """

    def __init__(self, modalities: Sequence[Modality], width: int, weight: float = 1.0) -> None:
        super().__init__()
        if weight <= 0:
            raise InputError(f"strategy 'autoencoder': weight {weight} must be above 0, or nothing trains it")
        self.modalities, self.weight = tuple(modalities), weight
        self.predict = nn.ModuleDict(
            {
                n: nn.ModuleDict({m: _network(width) for m in self.modalities if m != n})
                for n in self.modalities
            }
        )

    def fill(self, tokens: TokenMap, presence: Presence, targets: TokenMap | None) -> Filled:
        """Put predictions in, and in training compare them with what is there."""
        own = {m: first_token(t)[0].detach() for m, t in tokens.items()}
        found = {n: self._predictions(n, own) for n in self.modalities}
        filled = {
            n: stand_in(tokens[n], presence[n], mean_of_present(found[n], presence).detach())
            if found[n]
            else tokens[n]
            for n in self.modalities
        }
        if targets is None or len(self.modalities) < 2:
            return Filled(filled)
        return Filled(filled, {"reconstruction": self.weight * self._error(found, own, presence)})

    def _predictions(self, n: Modality, own: Mapping[Modality, Tensor]) -> dict[Modality, Tensor]:
        networks = cast(nn.ModuleDict, self.predict[n])
        return {m: network(own[m]) for m, network in networks.items()}

    def _error(
        self,
        found: Mapping[Modality, Mapping[Modality, Tensor]],
        own: Mapping[Modality, Tensor],
        presence: Presence,
    ) -> Float[Tensor, ""]:
        """Give the mean squared error over the pairs that any row has."""
        errors = []
        for n, predictions in found.items():
            for m, predicted in predictions.items():
                both = presence[m] & presence[n]
                if bool(both.any()):
                    errors.append(F.mse_loss(predicted[both], own[n][both]))
        return torch.stack(errors).mean() if errors else next(iter(own.values())).new_zeros(())


def _network(width: int) -> nn.Sequential:
    sizes = (width, 128, 64, 128, width)
    layers = [part for a, b in pairwise(sizes) for part in (nn.ReLU(), nn.Linear(a, b))]
    return nn.Sequential(*layers[1:])
