"""Resolves components: names to classes, options checked and defaults written out."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from mmx.config import (
    NOTHING,
    ComponentSpec,
    MissingSpec,
    SweepSpec,
    TrainingSpec,
    TrialSpec,
    apply,
    component,
    component_keys,
    digest,
    get_path,
    read,
)
from mmx.errors import Fault, InputError, did_you_mean
from mmx.registry import Registry
from mmx.registry.signature import bind, options


class Resolver:
    """Fills in and checks the components of trials."""

    def __init__(self, sweep: SweepSpec, registry: Registry, faults: list[Fault]) -> None:
        self.sweep = sweep
        self.registry = registry
        self.faults = faults

    def resolve(
        self, trial: Mapping[str, Any], assigned: Mapping[str, Any], tune: Mapping[str, Mapping[str, Any]]
    ) -> TrialSpec | None:
        """Give a trial's spec with all defaults written out, or None where there were faults."""
        before = len(self.faults)
        lowest = {path: t["choices"][0] if "choices" in t else t["low"] for path, t in tune.items()}
        data = apply(trial, lowest)
        parts = {}
        for key, kind in component_keys(data).items():
            parts[key] = self._component(data, key, kind, {**assigned, **lowest})
        own: list[Fault] = []
        training = read(TrainingSpec, data["training"] or {}, "training", own)
        self._check_paths(data, {**assigned, **lowest})
        missing = read(MissingSpec, data["missing"], "missing", own)
        self.faults += own
        if len(self.faults) > before or training is NOTHING or missing is NOTHING:
            return None
        encoders = {m: parts[f"encoders.{m}"] for m in data["encoders"]}
        return TrialSpec(
            dataset=parts["dataset"],
            encoders=encoders,
            adapters=self._adapters(parts, encoders),
            strategy=parts["strategy"],
            fusion=parts["fusion"],
            procedure=parts["procedure"],
            training=training,
            missing=replace(missing, protocol=parts["missing.protocol"]),
        )

    def _adapters(
        self, parts: Mapping[str, ComponentSpec], encoders: Mapping[str, ComponentSpec]
    ) -> dict[str, ComponentSpec]:
        """Give each modality its adapter: one for all, or as the map says."""
        if "adapter" in parts:
            return dict.fromkeys(encoders, parts["adapter"])
        found = {key.split(".")[1]: part for key, part in parts.items() if key.startswith("adapter.")}
        for m in encoders:
            if m not in found:
                self.faults.append(
                    Fault("adapter", f"has none for '{m}'; name one for each modality, or one for all")
                )
        for m in found:
            if m not in encoders:
                self.faults.append(
                    Fault(f"adapter.{m}", f"there is no encoder for '{m}'.{did_you_mean(m, encoders)}")
                )
        return {m: found.get(m, ComponentSpec("frozen")) for m in encoders}

    def _component(
        self, data: Mapping[str, Any], key: str, kind: str, assigned: Mapping[str, Any]
    ) -> ComponentSpec:
        """Check a component's options against its constructor and write the defaults out."""
        given = component(get_path(data, key), key, self.faults)
        if given is NOTHING:
            return ComponentSpec("")
        try:
            cls = self.registry.load_class(kind, given.name)
        except InputError as error:
            self.faults.append(Fault(key, str(error)))
            return given
        kept = self._fitting(given, key, kind, cls, assigned)
        bound, faults = bind(cls, kept, key, f"{kind} '{given.name}'")
        self.faults += [self._advise(fault, key, assigned) for fault in faults]
        return ComponentSpec(given.name, bound)

    def _fitting(
        self, given: ComponentSpec, key: str, kind: str, cls: type, assigned: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Where an axis goes over names, keep of the file's options those that fit this name.

        An option that fits none of the names is kept, to be refused; so is one that an axis sets.
        """
        names = self._names_of_axis(key)
        if not names:
            return dict(given.options)
        known = options(cls)
        fit_another: set[str] = set()
        for name in names:
            with contextlib.suppress(InputError):  # an unknown name is told where its own cell is resolved
                fit_another |= set(options(self.registry.load_class(kind, name)))
        return {
            o: value
            for o, value in given.options.items()
            if o in known or o not in fit_another or f"{key}.{o}" in assigned
        }

    def _names_of_axis(self, key: str) -> list[str]:
        """List the names that a component takes in the sweep, where an axis goes over them.

        Under a condition the file's own name is one of them: it holds where the condition does not.
        """
        axis = self.sweep.search.axes.get(f"{key}.name", [])
        if isinstance(axis, Mapping):
            axis = [*axis.get("values", []), get_path(self.sweep.trial, f"{key}.name")]
        return [v for v in axis if isinstance(v, str)]

    def _advise(self, fault: Fault, key: str, assigned: Mapping[str, Any]) -> Fault:
        """Tell how an option that only some names take is swept."""
        if fault.key in assigned and self._names_of_axis(key) and "has no option" in fault.message:
            advice = f" Sweep it under a condition: {{values: …, when: {{{key}.name: …}}}} (tune: when: …)."
            return Fault(fault.key, fault.message + advice)
        return fault

    def _check_paths(self, data: Mapping[str, Any], assigned: Mapping[str, Any]) -> None:
        """Refuse an axis that goes nowhere: a modality without an encoder, say."""
        for path in assigned:
            parts = path.split(".")
            if parts[0] == "encoders" and len(parts) > 1 and parts[1] not in self.sweep.trial["encoders"]:
                known = list(self.sweep.trial["encoders"])
                self.faults.append(
                    Fault(f"search.axes.{path}", f"no encoder '{parts[1]}'.{did_you_mean(parts[1], known)}")
                )


def flat_parameters(spec: TrialSpec) -> dict[str, str]:
    """Give a trial's parameters as flat dotted keys, a component's own name under its kind."""
    content = spec.to_dict()
    flat: dict[str, str] = {}
    for kind in ("dataset", "strategy", "fusion", "procedure"):
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
    flat |= dict(_leaves("training", content["training"]))
    return {**flat, "seed": str(spec.seed)}


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
