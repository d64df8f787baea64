"""Finds plugins, one by one, and gives components by name.

pluggy's own loader stops at the first broken package and lets a stranger displace a built-in silently, so the
entry points are walked here: a plugin that cannot be used is quarantined with its reason and hurts nobody
else; a name that two plugins offer is an error only where it is used.
"""

import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from mmx import hookspecs
from mmx.errors import InputError, PluginError, did_you_mean
from mmx.hookspecs import PROJECT, Component
from mmx.registry.requirements import told_lack

OWN = "mmx"
KINDS = {
    "encoder": "register_encoders",
    "dataset": "register_datasets",
    "strategy": "register_strategies",
    "fusion": "register_fusions",
    "adapter": "register_adapters",
    "procedure": "register_procedures",
    "protocol": "register_protocols",
    "tracker": "register_trackers",
}
NAME = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class Offer:
    """A component and the distribution that offers it."""

    kind: str
    component: Component
    distribution: str
    version: str

    @property
    def lack(self) -> str:
        """What it needs that is not installed here, and how to install it; empty: nothing."""
        return told_lack(self.component.requires, self.distribution)


@dataclass(frozen=True)
class Problem:
    """A plugin (or part of one) that was put in quarantine, or switched off."""

    name: str
    distribution: str
    version: str
    state: str
    """broken or disabled."""
    reason: str


@dataclass(frozen=True)
class Observer:
    """A plugin that offers nothing, and is told what happens."""

    name: str
    distribution: str
    version: str
    hooks: tuple[str, ...]


@dataclass(frozen=True)
class _Source:
    name: str
    distribution: str
    version: str
    key: str
    """Its name in pluggy's manager."""


class Registry:
    """All components that could be found."""

    def __init__(self) -> None:
        self.offers: list[Offer] = []
        self.problems: list[Problem] = []
        self.observers: list[Observer] = []
        self.traces = False
        self.manager = pluggy.PluginManager(PROJECT)
        self.manager.add_hookspecs(hookspecs)

    @classmethod
    def load(cls, environ: Mapping[str, str] = os.environ, files: Iterable[Path] = ()) -> "Registry":
        """Walk the entry points, the built-ins first, then one-off plugin files."""
        registry = cls()
        registry.traces = bool(environ.get("MMX_TRACE_PLUGINS"))
        disabled, only = (_names(environ, f"MMX_{verb}_PLUGINS") for verb in ("DISABLE", "LOAD"))
        for point in sorted(entry_points(group=PROJECT), key=_order):
            source = _Source(point.name, *_origin(point), key=f"{_origin(point)[0]}:{point.name}")
            if source.distribution in disabled:
                registry._quarantine(source, "disabled by MMX_DISABLE_PLUGINS", state="disabled")
            elif only and source.distribution not in {OWN, *only}:
                registry._quarantine(source, "not named in MMX_LOAD_PLUGINS", state="disabled")
            else:
                registry._admit(source, point)
        for file in files:
            registry.add_file(file)
        return registry

    def add_file(self, file: Path) -> None:
        """Load a one-off plugin file (InputError where there is none)."""
        if not file.is_file():
            raise InputError(f"plugins: no file '{file}'; paths are relative to the sweep file")
        # The content is part of the name, so that an edited file is read anew within one process.
        digest = hashlib.sha256(str(file.resolve()).encode() + file.read_bytes()).hexdigest()[:8]
        name = f"mmx_file_{file.stem}_{digest}"
        self._admit(_Source(file.stem, file.name, "file", key=name), (name, file))

    def _admit(self, source: _Source, origin: Any) -> None:
        """Import an entry point (of the standard library or of its backport) or a (name, file)."""
        try:
            module = _import_file(*origin) if type(origin) is tuple else origin.load()
        except (Exception, SystemExit) as error:  # noqa: BLE001 a stranger's import may raise anything
            return self._quarantine(source, f"cannot be imported: {type(error).__name__}: {error}")
        return self._add(module, source)

    def add_plugin(self, plugin: Any, name: str, distribution: str, version: str) -> None:
        """Register one plugin and collect what it offers; put it in quarantine where that fails."""
        self._add(plugin, _Source(name, distribution, version, key=f"{distribution}:{name}"))

    def _add(self, plugin: Any, source: _Source) -> None:
        registered = False
        try:
            self.manager.register(plugin, name=source.key)
            registered = True
            hooks = self._check_hooks(plugin)
            offers = [
                Offer(kind, component, source.distribution, source.version)
                for kind, hook in KINDS.items()
                for component in self._call(plugin, hook)
            ]
        except (Exception, SystemExit) as error:  # noqa: BLE001 a stranger's hook may raise anything
            if registered:
                self.manager.unregister(name=source.key)
            return self._quarantine(source, str(error) or type(error).__name__)
        self.offers += offers
        if not offers:
            self.observers.append(Observer(source.name, source.distribution, source.version, hooks))
        self._trace(
            source, f"offers {', '.join(f'{o.kind} {o.component.name}' for o in offers) or 'observers only'}"
        )
        return None

    def _trace(self, source: _Source, told: str) -> None:
        if self.traces:
            sys.stderr.write(f"mmx: plugin {source.key} {source.version} {told}\n")

    def _check_hooks(self, plugin: Any) -> tuple[str, ...]:
        """List its hooks; refuse misspelt ones, and a plugin without any (pluggy accepts both silently)."""
        known = [name for name, _ in inspect.getmembers(hookspecs, inspect.isfunction)]
        marked = [n for n in dir(plugin) if self.manager.parse_hookimpl_opts(plugin, n) is not None]
        for name in marked:
            if name not in known:
                raise PluginError(f"hook '{name}' does not exist.{did_you_mean(name, known)}")
        if not marked:
            raise PluginError(f"implements no hook of project '{PROJECT}'; mark them with mmx.hookimpl")
        return tuple(marked)

    def _call(self, plugin: Any, hook: str) -> Sequence[Component]:
        function = getattr(plugin, hook, None)
        if function is None or self.manager.parse_hookimpl_opts(plugin, hook) is None:
            return []
        components = list(function())
        for component in components:
            if not isinstance(component, Component):
                raise PluginError(f"{hook} gave {component!r}, which is no mmx.Component")
            if not NAME.fullmatch(component.name) or component.path.count(":") != 1:
                raise PluginError(f"{hook} gave name '{component.name}', path '{component.path}': wrong form")
        return components

    def _quarantine(self, source: _Source, reason: str, state: str = "broken") -> None:
        self._trace(source, f"{state}: {reason}")
        self.problems.append(Problem(source.name, source.distribution, source.version, state, reason))

    def names(self, kind: str) -> list[str]:
        """List the names of a kind, without repetition."""
        return sorted({offer.component.name for offer in self.offers if offer.kind == kind})

    def find(self, kind: str, name: str) -> Offer:
        """Look a component up by `name` or `distribution:name`.

        Raises PluginError where the name clashes, or where it is unknown and a plugin that could bring it is
        in quarantine; InputError where it is just unknown.
        """
        distribution, _, bare = name.rpartition(":")
        matches = [o for o in self.offers if o.kind == kind and o.component.name == bare]
        if distribution:
            matches = [o for o in matches if o.distribution == distribution]
        if len(matches) == 1:
            return matches[0]
        if matches:
            choices = ", ".join(f"'{o.distribution}:{bare}'" for o in matches)
            raise PluginError(f"{kind} '{bare}' is offered by several plugins; choose one of {choices}")
        absent = [p for p in self.problems if distribution in {"", p.distribution}]
        # Where a plugin could not be used, only a name that is all but right is taken for a slip of the pen.
        hint = did_you_mean(bare, self.names(kind), cutoff=0.85 if absent else 0.6)
        if absent and (distribution or "Did you mean" not in hint):
            told = "; ".join(f"plugin '{p.distribution}' is {p.state}: {p.reason}" for p in absent)
            raise PluginError(f"unknown {kind} '{name}'; it may belong to what could not be used: {told}")
        raise InputError(f"unknown {kind} '{name}'.{hint}")

    def load_class(self, kind: str, name: str) -> type:
        """Import the class behind a name for use (PluginError where that fails, or a requirement lacks)."""
        offer = self.find(kind, name)
        if offer.lack:
            raise PluginError(f"{kind} '{name}' of '{offer.distribution}' {offer.lack}")
        return import_class(offer)

    def clashes(self) -> list[tuple[str, str, list[str]]]:
        """List (kind, name, distributions) of names that several plugins offer."""
        seen: dict[tuple[str, str], list[str]] = {}
        for offer in self.offers:
            seen.setdefault((offer.kind, offer.component.name), []).append(offer.distribution)
        return [(kind, name, found) for (kind, name), found in seen.items() if len(found) > 1]


def import_class(offer: Offer) -> type:
    """Import the class of an offer, to read its facts: what it requires may be lacking (PluginError)."""
    path, _, attribute = offer.component.path.partition(":")
    try:
        return getattr(importlib.import_module(path), attribute)
    except Exception as error:
        why = f"cannot be imported from '{offer.component.path}': {type(error).__name__}: {error}"
        raise PluginError(
            f"{offer.kind} '{offer.component.name}' of '{offer.distribution}' {offer.lack or why}"
        ) from error


def _names(environ: Mapping[str, str], variable: str) -> set[str]:
    return {part.strip() for part in environ.get(variable, "").split(",") if part.strip()}


def _origin(point: Any) -> tuple[str, str]:
    return (point.dist.name, point.dist.version) if point.dist else ("unknown", "")


def _order(point: Any) -> tuple[bool, str, str]:
    distribution = _origin(point)[0]
    return distribution != OWN, distribution, point.name


def _import_file(name: str, file: Path) -> ModuleType:
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"'{file}' is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
