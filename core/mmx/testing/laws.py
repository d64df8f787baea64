"""What every law shares: its form, why one may not apply, and the law of gradients."""

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mmx.registry import Offer, Registry

Check = Callable[[Registry, Offer], None]
"""Takes (registry, offer) and raises AssertionError where the law is broken."""


SHIFTS_A_KEY = re.compile(r"\bkey\.(.*\.)?(bias|beta)\b")
"""Parameters whose gradient is zero by law: what shifts a key shifts all scores of a query alike."""


class NotHere(Exception):  # noqa: N818 no error: it says that a check does not apply, and why
    """Says why a check cannot be made here (data that is not on this disk, say)."""


def assert_gradient_everywhere(module: nn.Module, loss: Callable[[], Tensor]) -> None:
    """Take two small steps; every trainable parameter must have had a gradient that is not zero."""
    trainable = {n: p for n, p in module.named_parameters() if p.requires_grad}
    reached: set[str] = set()
    optimizer = torch.optim.SGD(trainable.values(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        loss().backward()
        reached |= {n for n, p in trainable.items() if p.grad is not None and bool((p.grad != 0).any())}
        optimizer.step()
    missed = {n for n in set(trainable) - reached if not SHIFTS_A_KEY.search(n)}
    assert not missed, f"no gradient reaches {sorted(missed)}"
