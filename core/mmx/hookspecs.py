"""The hooks that a plugin may implement: the whole contract of discovery, on one screen.

A hook returns light descriptions. The class behind a description is imported when a sweep uses it, so that
listing plugins imports no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pluggy

PROJECT = "mmx"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

ENGINE_PARAMETERS = frozenset(
    {
        "modality",
        "modalities",
        "width",
        "task",
        "example",
        "encoders",
        "fusion_layers",
        "pattern",
        "teacher",
        "seed",
    }
)
"""Constructor parameters of components that the engine fills in (see mmx.contracts)."""


@dataclass(frozen=True)
class Component:
    """One thing that a plugin offers, by name.

    `path` is `"package.module:Class"`. `paper` is a BibTeX entry, printed by `mmx cite`. `requires` names
    importable modules that an extra brings; a component that lacks one says so when it is used. `example` are
    options with which the conformance kit builds a component that has no default for all of them.
    `expected_failures` names laws of the kit that it is known to break, each with the reason; one that holds
    all the same is told.
    """

    name: str
    path: str
    summary: str = ""
    paper: str = ""
    requires: tuple[str, ...] = ()
    example: Mapping[str, Any] = field(default_factory=dict)
    expected_failures: Mapping[str, str] = field(default_factory=dict)


@hookspec
def register_encoders() -> list[Component]:
    """Offer encoders: raw input of one modality to tokens."""


@hookspec
def register_datasets() -> list[Component]:
    """Offer datasets: samples of two or more modalities with a target."""


@hookspec
def register_strategies() -> list[Component]:
    """Offer strategies: what stands in for a modality that is absent."""


@hookspec
def register_fusions() -> list[Component]:
    """Offer fusions: tokens of all modalities to logits."""


@hookspec
def register_adapters() -> list[Component]:
    """Offer adapters: which parameters of an encoder train, and how."""


@hookspec
def register_procedures() -> list[Component]:
    """Offer procedures: the losses of a training step and their order."""


@hookspec
def register_protocols() -> list[Component]:
    """Offer protocols: who is absent at a missing rate."""


@hookspec
def register_trackers() -> list[Component]:
    """Offer trackers: where results are kept."""


@hookspec
def trial_started(spec: Mapping[str, Any]) -> None:
    """Observe that a trial starts; `spec` is its resolved configuration."""


@hookspec
def trial_ended(spec: Mapping[str, Any], outcome: Mapping[str, Any]) -> None:
    """Observe that a trial ended; `outcome` has `state`, `reason` and, when finished, `metrics`."""
