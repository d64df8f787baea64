"""Puts one token in an absent modality's place: among others the mean of what several sources say."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmx.contracts import Modality, Presence, Tokens


def stand_in(tokens: Tokens, present: Bool[Tensor, " batch"], token: Float[Tensor, "#batch width"]) -> Tokens:
    """Make `token` the only valid token of the rows whose modality is absent."""
    values, valid = tokens
    if values.shape[1] == 0:
        values = values.new_zeros(len(values), 1, values.shape[2])
        valid = valid.new_zeros(len(valid), 1)
    first = torch.where(present[:, None], values[:, 0], token.to(values.dtype))
    return Tokens(
        torch.cat([first[:, None], values[:, 1:]], dim=1),
        torch.cat([valid[:, :1] | ~present[:, None], valid[:, 1:]], dim=1),
    )


def mean_of_present(
    found: Mapping[Modality, Float[Tensor, "batch width"]], presence: Presence
) -> Float[Tensor, "batch width"]:
    """Average over the modalities that a row has; zeros where it has none of them."""
    there = torch.stack([presence[m] for m in found])[:, :, None]  # (sources, batch, 1)
    values = torch.where(there, torch.stack(list(found.values())), 0.0)
    return values.sum(dim=0) / there.sum(dim=0).clamp(min=1)
