"""Reads a sweep file with its overrides: safely, resolved, every fault at once."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

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
WHOLE_KEYS = ("search.axes.", "search.tune.")
"""What follows these is one key, dots included."""
METHODS = "search.methods."
"""What follows this is a label, and then one key."""


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
        _override(data, override, faults)
    data = {**DEFAULTS, **_resolve(data, source, faults)}
    _check_top(data, faults)
    trial = expand_components({k: data.get(k) for k in TRIAL_KEYS})
    _check_trial(trial, faults)
    sweep = {k: v for k, v in data.items() if k in SWEEP_KEYS}
    _check_overrides(overrides, get_path(sweep, "search.axes"), faults)
    _check_against_methods(overrides, get_path(sweep, "search.methods"), faults)
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


def _override(data: dict[str, Any], override: str, faults: list[Fault]) -> None:
    """Apply one key=value of the command line."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        faults.append(Fault("", f"override '{override}' is no key=value"))
        return
    try:
        value = OmegaConf.to_container(OmegaConf.create(f"value: {text or 'null'}"), resolve=False)["value"]  # type: ignore
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        faults.append(Fault(key, f"override value '{text}' is no YAML: {error}"))
        return
    try:
        set_path(data, _parts(key), value)
    except KeyError as error:
        faults.append(Fault(key, f"place {error} is in no list of this file; places count from 0"))


def _parts(key: str) -> list[str]:
    whole = next((prefix for prefix in WHOLE_KEYS if key.startswith(prefix)), None)
    if whole:
        return [*whole.strip(".").split("."), key[len(whole) :]]
    if key.startswith(METHODS):
        label, _, path = key[len(METHODS) :].partition(".")
        return [*METHODS.strip(".").split("."), label, *([path] if path else [])]
    return key.split(".")


def set_path(data: Any, parts: Sequence[str], value: Any) -> None:
    """Set a nested value, making mappings on the way; a component given as text becomes a mapping.

    A number is a place in a list (KeyError where the list has no such place).
    """
    for part in parts[:-1]:
        place: Any = _place(data, part)
        inner = data[place] if isinstance(data, list) else data.get(place)
        if isinstance(inner, str):
            inner = {"name": inner}
        data[place] = inner if isinstance(inner, (dict, list)) else {}
        data = data[place]
    data[_place(data, parts[-1])] = value


def _place(data: Any, part: str) -> Any:
    if not isinstance(data, list):
        return part
    if not part.isdigit() or int(part) >= len(data):
        raise KeyError(part)
    return int(part)


def get_path(data: Any, path: str) -> Any:
    """Look a dotted path up; a number is a place in a list; None where there is nothing."""
    value: Any = data
    for part in path.split("."):
        try:
            place = _place(value, part)
        except KeyError:
            return None
        if not isinstance(value, list) and (not isinstance(value, Mapping) or place not in value):
            return None
        value = value[place]
    return value


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


def _check_overrides(overrides: Sequence[str], axes: Any, faults: list[Fault]) -> None:
    """Refuse an override that an axis would set again for every cell."""
    for override in overrides:
        key = override.partition("=")[0].strip()
        for axis in axes if isinstance(axes, dict) else ():
            if axis in (key, f"{key}.name"):
                advice = f"override the axis instead: 'search.axes.{axis}=[…]'"
                faults.append(Fault(key, f"has no effect, since the file sweeps '{axis}'; {advice}"))


def _check_against_methods(overrides: Sequence[str], methods: Any, faults: list[Fault]) -> None:
    """Refuse an override of what some methods set themselves: it would hold for the others only."""
    for override in overrides:
        key = override.partition("=")[0].strip()
        own = [
            label
            for label, settings in (methods.items() if isinstance(methods, dict) else ())
            if isinstance(settings, dict) and any(_touches(key, *item) for item in settings.items())
        ]
        if own:
            told = (
                f"{', '.join(own)} set it themselves; edit the file, or override 'search.methods.{own[0]}.…'"
            )
            faults.append(Fault(key, f"would not hold for every method: {told}"))


def _touches(key: str, path: str, value: Any) -> bool:
    """Tell whether an override and a method set the same thing, phases included."""
    if f"{key}.".startswith(f"{path}.") or f"{path}.".startswith(f"{key}."):
        return True
    phases = value if path == "training.phases" and isinstance(value, list) else []
    names = {f"training.{name}" for phase in phases if isinstance(phase, dict) for name in phase}
    return key in names


CHOICES = {"run.on_error": ("continue", "stop")}
LEAST = {
    "search.trials_per_cell": 1,
    "run.workers": 1,
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
        if isinstance(value, int) and value < least:
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


PHASE_PARTS = {"fusion_adapter": "adapter", "procedure": "procedure"}
"""What else than adapters a phase may set of the trial's components."""


def _adapter_keys(adapter: Mapping[str, Any]) -> dict[str, str]:
    """List where adapters stand: one for all, or one a modality."""
    return {"adapter": "adapter"} if "name" in adapter else {f"adapter.{m}": "adapter" for m in adapter}
