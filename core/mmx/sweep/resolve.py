"""Resolves components: names to classes, options checked and defaults written out."""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

from mmx.config import (
    NOTHING,
    ComponentSpec,
    MissingSpec,
    PhaseSpec,
    SweepSpec,
    TrainingSpec,
    TrainMissingSpec,
    TrialSpec,
    apply,
    component,
    component_keys,
    get_path,
    read,
)
from mmx.errors import Fault, InputError, did_you_mean
from mmx.registry import Registry
from mmx.registry.signature import bind, options

OF_THE_TRIAL = ("dataset", "encoders", "fusion", "missing", "phases")
"""What a phase cannot set."""


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
        stages = get_path(data, "training.phases") or []
        rest = data["training"] or {}
        if isinstance(rest, Mapping):
            rest = {k: v for k, v in rest.items() if k != "phases"}
        training = read(TrainingSpec, rest, "training", own)
        phases = self._phases(stages, list(data["encoders"]), parts, own)
        self._check_paths(data, {**assigned, **lowest})
        missing = read(MissingSpec, data["missing"], "missing", own)
        self.faults += own
        if len(self.faults) > before or training is NOTHING or missing is NOTHING:
            return None
        encoders = {m: parts[f"encoders.{m}"] for m in data["encoders"]}
        spec = TrialSpec(
            dataset=parts["dataset"],
            encoders=encoders,
            adapters=self._adapters(parts, encoders, "adapter", self.faults),
            strategy=parts["strategy"],
            fusion=parts["fusion"],
            fusion_adapter=parts["fusion_adapter"],
            procedure=parts["procedure"],
            training=replace(training, phases=phases),
            missing=replace(missing, protocol=parts["missing.protocol"]),
        )
        return _settled(spec)

    def _phases(
        self,
        given: Any,
        modalities: list[str],
        parts: Mapping[str, ComponentSpec],
        faults: list[Fault],
    ) -> tuple[PhaseSpec, ...]:
        if not isinstance(given, list):
            faults.append(Fault("training.phases", f"{given!r} is no list of phases"))
            return ()
        found = []
        for i, phase in enumerate(given):
            key = f"training.phases.{i}"
            inside = {n.removeprefix(f"{key}."): p for n, p in parts.items() if n.startswith(f"{key}.")}
            found.append(self._phase(phase, key, modalities, inside, faults))
        if found and found[0].restart:
            faults.append(Fault("training.phases.0.restart", "the first phase has none before it"))
        return tuple(found)

    def _phase(
        self,
        given: Any,
        key: str,
        modalities: list[str],
        parts: Mapping[str, ComponentSpec],
        faults: list[Fault],
    ) -> PhaseSpec:
        """Read a phase: parts of a trial and keys of `training`, side by side."""
        if not isinstance(given, Mapping):
            faults.append(Fault(key, f"{given!r} is no mapping of keys to values"))
            return PhaseSpec()
        own = ("adapter", "fusion_adapter", "procedure", "strategy", "rate", "modalities", "restart")
        budget = {k: v for k, v in given.items() if k not in own}
        known = [*own, *(f.name for f in fields(TrainingSpec) if f.name != "phases")]
        for name in budget:
            if name in OF_THE_TRIAL:
                faults.append(Fault(f"{key}.{name}", f"'{name}' is the trial's, the same in every phase"))
            elif name not in known:
                faults.append(Fault(f"{key}.{name}", f"unknown key.{did_you_mean(name, known)}"))
        budget = {k: v for k, v in budget.items() if k in known}
        training = read(TrainingSpec, budget, key, faults)
        train = read(
            TrainMissingSpec, {k: given[k] for k in ("rate", "modalities") if k in given}, key, faults
        )
        if not isinstance(given.get("restart", False), bool):
            faults.append(Fault(f"{key}.restart", f"{given['restart']!r} is no true or false"))
        if training is NOTHING or train is NOTHING:
            return PhaseSpec()
        return PhaseSpec(
            self._adapters(parts, modalities, f"{key}.adapter", faults) if "adapter" in given else None,
            parts.get("fusion_adapter"),
            parts.get("procedure"),
            train.rate if "rate" in given else None,
            train.modalities if "modalities" in given else None,
            {k: getattr(training, k) for k in budget},
            bool(given.get("restart", False)),
            parts.get("strategy"),
        )

    def _adapters(
        self, parts: Mapping[str, ComponentSpec], modalities: Iterable[str], key: str, faults: list[Fault]
    ) -> dict[str, ComponentSpec]:
        """Give each modality its adapter: one for all, or as the map says."""
        modalities = list(modalities)
        if "adapter" in parts:
            return dict.fromkeys(modalities, parts["adapter"])
        found = {name.split(".")[1]: part for name, part in parts.items() if name.startswith("adapter.")}
        for m in modalities:
            if m not in found:
                faults.append(Fault(key, f"has none for '{m}'; name one for each modality, or one for all"))
        for m in found:
            if m not in modalities:
                hint = did_you_mean(m, modalities)
                faults.append(Fault(f"{key}.{m}", f"there is no encoder for '{m}'.{hint}"))
        return {m: found.get(m, ComponentSpec("frozen")) for m in modalities}

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


def _settled(spec: TrialSpec) -> TrialSpec:
    """Let a trial whose phases all have an adapter, procedure or strategy of their own have the last one's.

    So what no phase uses is no part of the point, and what is logged is what was used.
    """
    phases, last = spec.training.phases, spec.stages()[-1]
    if all(p.adapters for p in phases):
        spec = replace(spec, adapters=last.adapters)
    if all(p.fusion_adapter for p in phases):
        spec = replace(spec, fusion_adapter=last.fusion_adapter)
    if all(p.procedure for p in phases):
        spec = replace(spec, procedure=last.procedure)
    if all(p.strategy for p in phases):
        spec = replace(spec, strategy=last.strategy)
    return spec
