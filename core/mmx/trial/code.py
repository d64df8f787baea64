"""Names what the phases of a trial leave on disk by all that it depends on, the code that made it included.

So what lies there is found again by the same settings and the same code alone: an edited plugin or another
version starts over, since half a training of one and half of another are a training of neither.
"""

import hashlib
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from mmx.config import TrialSpec, digest
from mmx.registry import Registry
from mmx.worker import this_worker

LIBRARIES = ("torch", "numpy", "peft")
"""Their versions stand for them."""
LARGE = 64 * 2**20
"""Bytes above which a file inside a package (data, say) counts by its size alone."""


def phase_keys(spec: TrialSpec, registry: Registry, device: torch.device) -> list[str]:
    """Give a key of each phase's result, by its own settings and code and those of all phases before it.

    Nothing is built or trained for it. Raises what `registry.load_class` raises.
    """
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    key, keys = "", []
    for place, now in enumerate(spec.stages()):
        restart = bool(spec.training.phases) and spec.training.phases[place].restart
        key = digest([key, restart, _content(now), hardware, code_digest(now, registry)])
        keys.append(key)
    return keys


def _content(spec: TrialSpec) -> dict[str, object]:
    """Give what a phase's result depends on; how it is evaluated is no part of it."""
    content = spec.numbers()
    del content["missing"]["eval"]
    return content


def code_digest(spec: TrialSpec, registry: Registry) -> str:
    """Hash mmx and every package, or one-off file, that a component of the spec or a base of it comes from.

    A package counts with all its files, so with weights and data that it brings; what it imports from others
    does not. Files are read once a process. Raises what `registry.load_class` raises.
    """
    classes = [registry.load_class(kind, name) for kind, name in components_of(spec)]
    return digest(_code(base.__module__ for cls in classes for base in cls.__mro__))


def module_digest(module: nn.Module) -> str:
    """Hash mmx and all code that a module's parts are of; of what is installed from outside, the version."""
    return digest(_code(base.__module__ for part in module.modules() for base in type(part).__mro__))


def _code(modules: Iterable[str]) -> list[object]:
    """Name the code of modules, and of mmx."""
    known = {*LIBRARIES, *sys.stdlib_module_names}
    sources = {_source(m) for m in ("mmx", *modules) if m.partition(".")[0] not in known}
    return [{name: version(name) for name in LIBRARIES}, sorted(_hash(*source) for source in sources)]


def components_of(spec: TrialSpec) -> Iterator[tuple[str, str]]:
    """Yield kind and name of each component of a trial without phases, or of one of its phases."""
    yield "dataset", spec.dataset.name
    yield from (("encoder", part.name) for part in spec.encoders.values())
    yield from (("adapter", part.name) for part in (*spec.adapters.values(), spec.fusion_adapter))
    yield "strategy", spec.strategy.name
    yield "fusion", spec.fusion.name
    yield "procedure", spec.procedure.name
    yield "protocol", spec.missing.protocol.name


def _source(module: str) -> tuple[str, Path | None]:
    """Give name and folder of the outermost package that a module is in, or its own name and file."""
    names = module.split(".")
    for count in range(1, len(names) + 1):
        name = ".".join(names[:count])
        found = sys.modules.get(name)
        file = getattr(found, "__file__", None)  # a namespace package has none
        if file:
            return name, Path(file).parent if hasattr(found, "__path__") else Path(file)
    return module, None


@cache
def _hash(name: str, place: Path | None) -> str:
    """Hash a package's folder or a file: read when it is first asked for, soon after its import."""
    try:
        if place is None:
            raise FileNotFoundError(name)
        files = _files(place) if place.is_dir() else [place]
        parts = [(str(f.relative_to(place)), f.stat().st_size, _content_hash(f)) for f in files]
    except OSError:  # code that cannot be read may be any: nothing of it is carried on elsewhere
        parts = [(name, 0, this_worker())]
    return digest(parts)


def _files(folder: Path) -> list[Path]:
    """List the files below a folder, less caches and hidden ones."""
    found = [f for f in folder.rglob("*") if f.is_file() and "__pycache__" not in f.parts]
    return sorted(f for f in found if not any(p.startswith(".") for p in f.relative_to(folder).parts))


def _content_hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.stat().st_size <= LARGE else "large"
