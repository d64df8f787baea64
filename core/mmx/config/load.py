"""Reads a sweep file with its overrides: safely, resolved, every fault at once."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmx.config.overrides import apply_override, check_against_methods, check_overrides
from mmx.config.paths import get_path
from mmx.config.reader import component, read
from mmx.config.specs import SweepSpec
from mmx.errors import ConfigError, Fault, InputError, did_you_mean

SCHEMA = 1
TRIAL_KEYS = (
    "dataset",
    "encoders",
    "adapter",
    "strategy",
    "fusion",
    "fusion_adapter",
    "procedure",
    "training",
    "missing",
)
SINGLE = ("dataset", "strategy", "fusion", "fusion_adapter", "procedure")
"""Keys under which one component stands; its kind is the key, less what stands before `_`."""
SWEEP_KEYS = ("schema", "name", "search", "run", "store", "tracker", "plugins")
REQUIRED_KEYS = ("schema", "name", "dataset", "encoders", "strategy", "missing")
DEFAULTS: dict[str, Any] = {
    "adapter": "lora",
    "fusion": "concat",
    "fusion_adapter": "full",
    "procedure": "joint",
    "training": {},
}


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> SweepSpec:
    """Read a sweep file (InputError where there is none, ConfigError with every fault of its form)."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read sweep file '{path}': {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"sweep file '{path}' is no UTF-8 text") from error
    return read_sweep(text, str(path), overrides)


def read_sweep(text: str, source: str, overrides: Sequence[str] = ()) -> SweepSpec:
    """Read the text of a sweep file."""
    faults: list[Fault] = []
    data = _parse(text, source)
    for override in overrides:
        apply_override(data, override, faults)
    data = {**DEFAULTS, **_resolve(data, source, faults)}
    _check_top(data, faults)
    trial = expand_components({k: data.get(k) for k in TRIAL_KEYS})
    _check_trial(trial, faults)
    sweep = {k: v for k, v in data.items() if k in SWEEP_KEYS}
    check_overrides(overrides, get_path(sweep, "search.axes"), faults)
    check_against_methods(overrides, get_path(sweep, "search.methods"), faults)
    result = read(SweepSpec, {**sweep, "trial": trial, "source": source}, "", faults)
    _check_values(sweep, faults)
    if faults:
        raise ConfigError(source, faults)
    return result


def _parse(text: str, source: str) -> dict[str, Any]:
    try:
        config = OmegaConf.create(text)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(source, [Fault("", f"is no YAML that can be read: {error}")]) from error
    if not isinstance(config, DictConfig):
        raise ConfigError(source, [Fault("", "holds no keys; `mmx init` writes a sweep to start from")])
    return OmegaConf.to_container(config, resolve=False)  # type: ignore[return-value]


def _resolve(data: dict[str, Any], source: str, faults: list[Fault]) -> dict[str, Any]:
    """Resolve every ${...} now, so that none fails in the middle of a night."""
    config = OmegaConf.create(data)
    before = len(faults)
    _walk(config, "", faults)
    if len(faults) > before:
        raise ConfigError(source, faults)
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def _walk(node: Any, key: str, faults: list[Fault]) -> None:
    entries = node if isinstance(node, DictConfig) else range(len(node))
    for name in list(entries):
        here = f"{key}.{name}" if key else str(name)
        if isinstance(node, DictConfig) and not isinstance(name, str):
            faults.append(
                Fault(here, f"key {name!r} is no text (YAML reads on, off, yes, no as booleans): quote it")
            )
            continue
        try:
            value = node[name]
        except OmegaConfBaseException as error:
            message = str(error).splitlines()[0]
            faults.append(Fault(here, f"cannot be resolved: {message}"))
            continue
        if isinstance(value, (DictConfig, ListConfig)):
            _walk(value, here, faults)


def expand_components(trial: dict[str, Any]) -> dict[str, Any]:
    """Write out, in place, every component that is given as a plain string."""
    for key in (*SINGLE, "adapter"):
        _expand(trial, key)
    for holder in ("encoders", "adapter", "missing"):
        inner = trial.get(holder)
        if isinstance(inner, dict) and not (holder == "adapter" and "name" in inner):
            for key in ("protocol",) if holder == "missing" else list(inner):
                _expand(inner, key)
    phases = get_path(trial, "training.phases")
    for phase in phases if isinstance(phases, list) else ():
        if isinstance(phase, dict):
            expand_components(phase)
    return trial


def _expand(holder: dict[str, Any], key: str) -> None:
    if isinstance(holder.get(key), str):
        holder[key] = {"name": holder[key]}


def _check_top(data: dict[str, Any], faults: list[Fault]) -> None:
    known = (*TRIAL_KEYS, *SWEEP_KEYS)
    for key in data:
        if key not in known:
            faults.append(Fault(key, f"unknown key.{did_you_mean(key, known)}"))
    for key in REQUIRED_KEYS:
        if data.get(key) is None:
            faults.append(Fault(key, "is missing; write it down"))
    if data.get("schema") not in (None, SCHEMA):
        faults.append(
            Fault("schema", f"{data['schema']!r} is not known to this version; write 'schema: {SCHEMA}'")
        )
    name = data.get("name")
    if name is not None and (not isinstance(name, str) or not name.strip() or "/" in name):
        faults.append(Fault("name", f"{name!r} names no sweep; write text without '/'"))


def _check_trial(trial: Mapping[str, Any], faults: list[Fault]) -> None:
    """Check that components stand where they must."""
    for key in SINGLE:
        if trial[key] is not None:
            component(trial[key], key, faults)
    for key in ("encoders", "missing"):
        if trial[key] is not None and (not isinstance(trial[key], dict) or not trial[key]):
            faults.append(Fault(key, f"{trial[key]!r} is no mapping of keys to values"))
    if not isinstance(trial["adapter"], dict):
        faults.append(
            Fault("adapter", f"{trial['adapter']!r} is no component, and no mapping of modalities to some")
        )


CHOICES = {"run.on_error": ("continue", "stop"), "run.executor": ("local", "ray")}
LEAST = {
    "search.trials_per_cell": 1,
    "run.workers": 0,
    "run.processes_per_trial": 1,
    "run.lease": 1,
    "run.max_consecutive_failures": 1,
    "run.retry_failed": 0,
}


def _check_values(sweep: Mapping[str, Any], faults: list[Fault]) -> None:
    """Check what types cannot say."""
    for key, allowed in CHOICES.items():
        value = get_path(sweep, key)
        if value is not None and value not in allowed:
            faults.append(Fault(key, f"{value!r} is none of {', '.join(allowed)}"))
    for key, least in LEAST.items():
        value = get_path(sweep, key)
        if isinstance(value, (int, float)) and value < least:
            faults.append(Fault(key, f"{value} is below {least}"))
    seeds = get_path(sweep, "search.seeds")
    if isinstance(seeds, list) and (not seeds or len(set(map(str, seeds))) < len(seeds)):
        faults.append(Fault("search.seeds", f"{seeds} must be one or more different whole numbers"))
    objective = get_path(sweep, "search.objective")
    for figure, direction in objective.items() if isinstance(objective, dict) else ():
        if direction not in ("maximize", "minimize"):
            faults.append(Fault(f"search.objective.{figure}", f"{direction!r} is none of maximize, minimize"))


def component_keys(trial: Mapping[str, Any]) -> dict[str, str]:
    """List where components stand in a trial's data: dotted path to kind."""
    keys = {k: k.rpartition("_")[2] for k in SINGLE}
    keys |= {f"encoders.{m}": "encoder" for m in trial.get("encoders") or {}}
    keys |= _adapter_keys(trial.get("adapter") or {}) | {"missing.protocol": "protocol"}
    phases = get_path(trial, "training.phases")
    for i, phase in enumerate(phases if isinstance(phases, list) else ()):
        if isinstance(phase, Mapping):
            own = _adapter_keys(phase["adapter"]) if isinstance(phase.get("adapter"), Mapping) else {}
            own |= {k: kind for k, kind in PHASE_PARTS.items() if k in phase}
            keys |= {f"training.phases.{i}.{k}": kind for k, kind in own.items()}
    return keys


PHASE_PARTS = {"strategy": "strategy", "fusion_adapter": "adapter", "procedure": "procedure"}
"""What else than adapters a phase may set of the trial's components."""


def _adapter_keys(adapter: Mapping[str, Any]) -> dict[str, str]:
    """List where adapters stand: one for all, or one a modality."""
    return {"adapter": "adapter"} if "name" in adapter else {f"adapter.{m}": "adapter" for m in adapter}
