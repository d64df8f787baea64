"""What a sweep file says, as frozen data; the field names are the file's keys."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from typing import Any

Rate = float | Mapping[str, float]


@dataclass(frozen=True)
class ComponentSpec:
    """A component by name, with constructor options. In a file, a plain string is short for a name."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PhaseSpec:
    """One stage of a trial's training; what it leaves open (None) is as in the trial."""

    adapters: Mapping[str, ComponentSpec] | None = None
    fusion_adapter: ComponentSpec | None = None
    procedure: ComponentSpec | None = None
    rate: Rate | None = None
    modalities: tuple[str, ...] | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    """Keys of `training` that it sets."""
    restart: bool = False
    """Start from the pretrained encoders, not from the phase before, which then only teaches."""
    strategy: ComponentSpec | None = None
    """Where it is another than in the phase before, it starts anew."""


@dataclass(frozen=True)
class TrainingSpec:
    """How one trial trains. The same budget for every method of a sweep."""

    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.1
    """Share of all steps over which the learning rate rises, before the cosine falls to zero."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient; 0 clips nothing."""
    precision: str = "auto"
    """auto | float32 | bfloat16; auto is bfloat16 on a GPU that has it."""
    monitor: str = ""
    """Validation figure that picks the epoch; empty: the task's primary score."""
    patience: int = 0
    """Epochs without a better monitor before training stops; 0: never."""
    loader_workers: int = 0
    """Processes that load batches of datasets which do not fit in memory."""
    frozen_cache_gigabytes: float = 0.0
    """Disk for what frozen encoders, and frozen first stages, make of each sample; 0: encode every time.
    How much it is matters to no number; whether there is any does to their last digits."""
    phases: tuple[PhaseSpec, ...] = ()
    """Stages that follow each other; none: one stage, as the trial says."""


@dataclass(frozen=True)
class TrainMissingSpec:
    """Who is absent in training: the protocol's rate."""

    rate: Rate = 0.0
    modalities: tuple[str, ...] = ()
    """The modalities that training sees of what the protocol leaves; empty: all."""

    def pattern(self, modalities: Sequence[str]) -> frozenset[str] | None:
        """Give the modalities that every complete row has which training sees, None where rows differ."""
        seen = self.modalities or tuple(modalities)
        rates = self.rate.values() if isinstance(self.rate, Mapping) else (self.rate,)
        return frozenset(seen) if len(seen) == 1 or not any(rates) else None


@dataclass(frozen=True)
class EvalMissingSpec:
    """What is evaluated: rates for each target, and availability patterns."""

    rates: tuple[float, ...] = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
    targets: tuple[str, ...] = ("any",)
    """`any`, or a modality's name: only that one goes missing."""
    patterns: str | tuple[str, ...] = "all"
    """`all`, or patterns such as `image.audio` (what is present, joined by dots)."""


@dataclass(frozen=True)
class MissingSpec:
    """Who is absent. The protocol is always written down."""

    protocol: ComponentSpec
    train: TrainMissingSpec = TrainMissingSpec()
    eval: EvalMissingSpec = EvalMissingSpec()
    seed: int = 0
    """Evaluation masks come from this alone, so that seeds and strategies are paired."""


@dataclass(frozen=True)
class TrialSpec:
    """One trial, resolved: everything that its numbers depend on."""

    dataset: ComponentSpec
    encoders: Mapping[str, ComponentSpec]
    adapters: Mapping[str, ComponentSpec]
    strategy: ComponentSpec
    fusion: ComponentSpec
    fusion_adapter: ComponentSpec
    procedure: ComponentSpec
    training: TrainingSpec
    missing: MissingSpec
    seed: int = 0

    def stages(self) -> tuple["TrialSpec", ...]:
        """Give each phase as a trial without phases; a trial that has none is its own only stage."""
        return tuple(self._stage(phase) for phase in self.training.phases) or (self,)

    def _stage(self, phase: PhaseSpec) -> "TrialSpec":
        train = self.missing.train
        train = train if phase.rate is None else replace(train, rate=phase.rate)
        train = train if phase.modalities is None else replace(train, modalities=phase.modalities)
        return replace(
            self,
            adapters=phase.adapters or self.adapters,
            fusion_adapter=phase.fusion_adapter or self.fusion_adapter,
            procedure=phase.procedure or self.procedure,
            strategy=phase.strategy or self.strategy,
            training=replace(self.training, **phase.training, phases=()),
            missing=replace(self.missing, train=train),
        )

    def to_dict(self) -> dict[str, Any]:
        """Give it as plain data."""
        return plain(self)

    @cached_property
    def point(self) -> str:
        """Content hash of all that numbers depend on but the seed; key order does not matter."""
        content = self.numbers()
        del content["seed"]
        return digest(content)

    def numbers(self) -> dict[str, Any]:
        """Give, as plain data, what its numbers depend on."""
        content = self.to_dict()
        for phase in content["training"]["phases"]:
            if phase["strategy"] is None:  # points from before phases could have one keep their names
                del phase["strategy"]
        for training in (content["training"], *(p["training"] for p in content["training"]["phases"])):
            training.pop("loader_workers", None)
            if training.pop("frozen_cache_gigabytes", 0):
                training["frozen_cache"] = True
        return content


@dataclass(frozen=True)
class SearchSpec:
    """What a sweep tries: axes are enumerated, tuned parameters are searched inside each cell."""

    axes: Mapping[str, Any] = field(default_factory=dict)
    methods: Mapping[str, Any] = field(default_factory=dict)
    """Label to the settings (dotted paths) that make a method; each cell has one of them."""
    tune: Mapping[str, Any] = field(default_factory=dict)
    trials_per_cell: int = 1
    seeds: tuple[int, ...] = (0,)
    objective: Mapping[str, str] = field(default_factory=dict)
    """Figure to direction (maximize or minimize); empty: the robust primary score."""
    sampler: ComponentSpec = ComponentSpec("tpe")
    pruner: ComponentSpec = ComponentSpec("none")


@dataclass(frozen=True)
class RunSpec:
    """How a sweep runs; no number depends on it, but on `processes_per_trial`: rounding, dropout and batch
    norm inside encoders."""

    workers: int = 0
    """Processes that run trials side by side on this machine; 0: one a device."""
    executor: str = "local"
    """local | ray."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """What Ray sets aside for a trial: {cpu: 1, gpu: 0.5}; empty: one CPU, and one GPU on such a device."""
    processes_per_trial: int = 1
    """Processes, or GPUs, that train one trial together."""
    on_error: str = "continue"
    """continue | stop."""
    max_consecutive_failures: int = 5
    retry_failed: int = 0
    """Tries more for a failed point within one call."""
    lease: float = 300.0
    """Seconds after which a worker on another machine that gave no sign of life counts as gone."""
    plots: bool = True
    """Draw each trial's curve, patterns and confusion (about 0.6 s), and the sweep's page and plots."""
    folder: str = ".mmx"
    """Where checkpoints, logs and unsent results lie; on shared disk where several machines work."""


@dataclass(frozen=True)
class StoreSpec:
    """Addresses of the result store and of the search store; empty: chosen by the command."""

    tracking: str = ""
    study: str = ""


@dataclass(frozen=True)
class SweepSpec:
    """A sweep file, read and checked for form; components are checked when it is planned."""

    schema: int
    name: str
    trial: Mapping[str, Any]
    """The trial's part of the file as plain data, before axes are applied."""
    search: SearchSpec = SearchSpec()
    run: RunSpec = RunSpec()
    store: StoreSpec = StoreSpec()
    tracker: ComponentSpec = ComponentSpec("mlflow")
    plugins: tuple[str, ...] = ()
    source: str = ""
    """The file that it was read from, for messages and relative paths."""


def plain(value: Any) -> Any:
    """Turn specs into dicts, lists and scalars; a component becomes its options with its name."""
    if isinstance(value, ComponentSpec):
        return {"name": value.name, **plain(dict(value.options))}
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def digest(content: Any) -> str:
    """Hash plain data, whatever the order of its keys, and whether 1 is written 1 or 1.0."""
    text = json.dumps(_canonical(content), sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _canonical(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
