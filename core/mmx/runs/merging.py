"""Writes what adapters learned into plain weights, so that a trained model becomes an ordinary network."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from mmx.config import ComponentSpec, TrialSpec
from mmx.errors import InputError
from mmx.model import FUSION, MultimodalModel

FROZEN = ComponentSpec("frozen")
"""What stands in an adapter's place when what it learned is in the weights."""


def merged(
    build: Callable[[], MultimodalModel], spec: TrialSpec, merge: bool
) -> tuple[MultimodalModel, TrialSpec, dict[str, str]]:
    """Give a trained model whose adapters are written into plain weights, its spec, and what became of each.

    `build` gives the model as it was trained. Adapters by pattern, and those that cannot be folded, stay.
    """
    asked = "kept, as asked (--no-merge)"
    kept: dict[str, str] = {} if merge else dict.fromkeys((*spec.adapters, FUSION), asked)
    while True:
        model = build()
        told, failed = _fold(model, spec, kept)
        if failed is None:
            break
        # It may be folded in part, so the model is built again, and this one is left as it is.
        kept[failed[0]] = f"kept: {failed[1]}"
    left = {m: part if m in kept or _by_pattern(model, m) else FROZEN for m, part in spec.adapters.items()}
    plain = FUSION not in kept and not _by_pattern(model, FUSION)
    fusion = FROZEN if plain else spec.fusion_adapter
    return model, replace(spec, adapters=left, fusion_adapter=fusion), told


def _by_pattern(model: MultimodalModel, name: str) -> bool:
    return name in model.adapters and model.adapters[name].by_pattern


def _fold(
    model: MultimodalModel, spec: TrialSpec, kept: Mapping[str, str]
) -> tuple[dict[str, str], tuple[str, str] | None]:
    """Fold adapters in place; say what became of each, and which one could not be folded and why."""
    told: dict[str, str] = {}
    for name, adapter in model.adapters.items():
        module = model.fusion if name == FUSION else model.encoders[name]
        part = spec.fusion_adapter if name == FUSION else spec.adapters[name]
        before = module.state_dict().keys()
        if name in kept:
            became = kept[name]
        elif adapter.by_pattern:
            became = "kept: it has a set of parameters for each availability pattern"
        else:
            try:
                adapter.fold(module)
            except InputError as error:
                return told, (name, str(error))
            became = "nothing to merge" if module.state_dict().keys() == before else "merged"
        told[name.rstrip(".")] = f"{part.name}: {became}"
    return told, None
