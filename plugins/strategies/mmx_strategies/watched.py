"""Notes what enters a module, for procedures that need more of a model than it gives."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def watched(module: nn.Module | None) -> Iterator[list[Tensor]]:
    """Collect the first argument of every call of a module until the end of the block; none of no module."""
    seen: list[Tensor] = []
    if module is None:
        yield seen
        return
    handle = module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    try:
        yield seen
    finally:
        handle.remove()
