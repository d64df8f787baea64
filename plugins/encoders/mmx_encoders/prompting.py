"""Prompts for networks of libraries: behind the network's own tokens inside, in front of them outside.

Inside they stand behind, so that class tokens and positions keep their places.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmx.contracts import Tokens


@contextmanager
def prompts_behind(block: nn.Module, prompts: Float[Tensor, "batch prompts width"]) -> Iterator[None]:
    """Let the tokens that enter a block, its first argument, be followed by prompts."""

    def append(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        own, *rest = given
        return (torch.cat([own, prompts.to(own)], dim=1), *rest), named

    hook = block.register_forward_pre_hook(append, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def prompts_first(tokens: Tokens, prompts: int, place: int) -> Tokens:
    """Bring `prompts` tokens, the network's last, in front; `place` is where they begin."""
    own = slice(place, place + prompts)

    def moved(t: Tensor) -> Tensor:
        return torch.cat([t[:, own], t[:, :place], t[:, place + prompts :]], dim=1)

    return Tokens(moved(tokens.values), moved(tokens.valid))
