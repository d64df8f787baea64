"""What a trial logs of its settings: flat dotted keys."""

from collections.abc import Iterator, Mapping
from typing import Any

from mmx.config import SINGLE, TrialSpec, digest, plain


def flat_parameters(spec: TrialSpec) -> dict[str, str]:
    """Give a trial's parameters as flat dotted keys, a component's own name under its kind.

    Adapters, procedure and strategy are those of its last phase.
    """
    last = spec.stages()[-1]
    used = {"adapters": last.adapters, "fusion_adapter": last.fusion_adapter, "procedure": last.procedure}
    used |= {"strategy": last.strategy}
    content = {**spec.to_dict(), **plain(used)}
    flat: dict[str, str] = {}
    for kind in SINGLE:
        flat |= _named(kind, content[kind])
    for m, part in content["encoders"].items():
        flat |= _named(f"encoder.{m}", part)
    adapters = content["adapters"]
    if len({digest(a) for a in adapters.values()}) == 1:
        flat |= _named("adapter", next(iter(adapters.values())))
    else:
        flat["adapter"] = "per modality"
        for m, part in adapters.items():
            flat |= _named(f"adapter.{m}", part)
    flat |= _named("missing.protocol", content["missing"].pop("protocol"))
    flat |= dict(_leaves("missing", content["missing"]))
    flat |= {f"training.phases.{i}": _told(p) for i, p in enumerate(content["training"].pop("phases"))}
    if not content["training"]["frozen_cache_gigabytes"]:
        del content["training"]["frozen_cache_gigabytes"]
    flat |= dict(_leaves("training", content["training"]))
    return {**flat, "seed": str(spec.seed)}


def _told(phase: Mapping[str, Any]) -> str:
    """Tell a phase in a line: what it sets, and the adapter of all modalities but once."""
    own = {**phase, **phase["training"]}
    del own["training"]
    adapters = own["adapters"] or {}
    if len({digest(a) for a in adapters.values()}) == 1:
        own["adapters"] = next(iter(adapters.values()))
    said = {n: v for n, v in own.items() if v is not None and v != {} and (n, v) != ("restart", False)}
    told = [leaf for name, value in said.items() for leaf in _leaves(name, value)]
    return " ".join(f"{name.removesuffix('.name')}={value}" for name, value in told) or "as the trial"


def _named(key: str, part: Mapping[str, Any]) -> dict[str, str]:
    flat = {key: str(part["name"])}
    for name, value in part.items():
        if name != "name":
            flat |= dict(_leaves(f"{key}.{name}", value))
    return flat


def _leaves(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}", inner)
    elif isinstance(value, list):
        yield key, ",".join(map(str, value))
    else:
        yield key, "none" if value is None else str(value)
