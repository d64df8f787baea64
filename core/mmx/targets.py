"""What an adapter's option `targets` names: modules of an encoder or a fusion, layers, parameters."""

import re
from collections.abc import Sequence

from torch import nn

from mmx.errors import InputError

DEFAULT = "default"
"""What the encoder's author names, as `lora_targets`."""


def regex_of(adapter: str, targets: str) -> re.Pattern[str]:
    """Read a regex over names (InputError where it is none)."""
    try:
        return re.compile(targets)
    except re.error as error:
        raise InputError(f"adapter '{adapter}': targets '{targets}' is no regex: {error}") from error


def targeted(adapter: str, module: nn.Module, targets: str | Sequence[str]) -> dict[str, nn.Module]:
    """Give the modules inside one, by name, that are named by `DEFAULT`, a regex, or a list of name endings.

    A regex is to match the whole name, an ending whole parts of it. InputError where there is no such module,
    or where the default is asked of what has none.
    """
    if isinstance(targets, str):
        if targets == DEFAULT and not hasattr(module, "lora_targets"):
            raise InputError(
                f"adapter '{adapter}': {type(module).__name__} names no targets; write them down"
            )
        regex = regex_of(adapter, str(module.lora_targets) if targets == DEFAULT else targets)
        found = {n: inner for n, inner in module.named_modules() if n and regex.fullmatch(n)}
    else:
        endings = tuple(f".{ending}" for ending in targets)
        found = {n: inner for n, inner in module.named_modules() if n and f".{n}".endswith(endings)}
    if not found:
        raise InputError(
            f"adapter '{adapter}': targets {targets!r} match no module of {type(module).__name__}"
        )
    return found
