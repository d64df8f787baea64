"""Puts one token in an absent modality's place."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmx.contracts import Tokens


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
