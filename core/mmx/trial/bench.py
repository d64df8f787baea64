"""Builds the parts of trials, and opens each dataset once for all the trials that follow."""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from mmx.assemble import State, build_model, construct_part
from mmx.config import ComponentSpec, MissingSpec, TrialSpec, digest, plain
from mmx.contracts import Dataset, Modality, Pattern, Procedure, Task
from mmx.data import Split
from mmx.errors import DataError, InputError, MmxError
from mmx.model import MultimodalModel
from mmx.protocols import Protocol
from mmx.registry import Registry
from mmx.registry.signature import construct, parameters
from mmx.train import Monitor
from mmx.trial.checkpoint import Checkpoint
from mmx.trial.code import phase_keys

SPLITS = ("train", "val", "test")
NAME_RULE = "letters, digits and '_'"


class Bench:
    """Opens datasets once and keeps them for the trials that follow.

    `folder`: where phases that have ended lie, for other trials to take over, and checkpoints of trainings
    under way; several processes may share one. Without, phases are kept as long as the bench, and there are
    no checkpoints.
    """

    def __init__(self, registry: Registry, folder: Path | None = None) -> None:
        self.registry = registry
        self.folder = folder
        self._datasets: dict[str, Dataset] = {}
        self._splits: dict[tuple[str, str, tuple[str, ...]], Split] = {}
        self._temporary: TemporaryDirectory[str] | None = None

    def dataset(self, spec: ComponentSpec) -> Dataset:
        """Build a dataset (once for equal specs)."""
        key = digest(plain(spec))
        if key not in self._datasets:
            cls = self.registry.load_class("dataset", spec.name)
            self._datasets[key] = construct(cls, spec.options, {})
            for name in self._datasets[key].modalities:
                if not name.replace("_", "").isalnum():
                    raise DataError(f"dataset '{spec.name}': modality '{name}' is not made of {NAME_RULE}")
        return self._datasets[key]

    def modalities(self, spec: TrialSpec) -> tuple[Modality, ...]:
        """Give the trial's modalities, in the dataset's order: those that it has an encoder for."""
        return tuple(m for m in self.dataset(spec.dataset).modalities if m in spec.encoders)

    def split(self, spec: TrialSpec, name: str) -> Split:
        """Open a split (once for equal datasets and modalities)."""
        key = (digest(plain(spec.dataset)), name, self.modalities(spec))
        if key not in self._splits:
            self._splits[key] = Split(self.dataset(spec.dataset), name, self.modalities(spec))
        return self._splits[key]

    def data_digest(self, spec: TrialSpec) -> str:
        """Hash what a trial's splits hold (see `Split.digest`)."""
        content = hashlib.sha256()
        for name in SPLITS:
            content.update(self.split(spec, name).digest.encode())
        return content.hexdigest()[:12]

    def model(self, spec: TrialSpec, start: State | None = None) -> MultimodalModel:
        """Build the model of a trial or of one of its phases, which goes on from `start`."""
        train = self.split(spec, "train")
        examples = {m: train.example(m) for m in self.modalities(spec)}
        pattern = self.pattern(spec)
        return build_model(spec, self.dataset(spec.dataset), examples, self.registry, pattern, start)

    def pattern(self, spec: TrialSpec) -> Pattern | None:
        """Give the modalities that every row has which training sees, None where rows differ."""
        modalities, natural = self.modalities(spec), self.split(spec, "train").natural
        pattern = spec.missing.train.pattern(modalities)
        if pattern is None or len(pattern) == 1:
            return pattern
        return pattern if all(bool(natural[m].all()) for m in pattern) else None

    def kept(self, key: str) -> Path:
        """Say where the result of a phase lies, or will lie (see `mmx.trial.code.phase_keys`)."""
        if self.folder is not None:
            return self.folder / "phases" / f"{key}.safetensors"
        if self._temporary is None:
            self._temporary = TemporaryDirectory(prefix="mmx-phases-")
        return Path(self._temporary.name) / f"{key}.safetensors"

    def checkpoint(self, key: str, last: bool) -> Checkpoint | None:
        """Give the checkpoint of a phase that is being trained; None where this bench writes none.

        A trial's last phase can be told to end early, so it shares none with an equal phase of another trial
        that is to be trained to its end.
        """
        name = f"{key}_last.pt" if last else f"{key}.pt"
        return None if self.folder is None else Checkpoint(self.folder / "checkpoints" / name)

    def forget(self, spec: TrialSpec, device: torch.device) -> None:
        """Remove the checkpoints of all phases of a trial, so that it starts over; kept phases stay."""
        if self.folder is None:
            return
        with suppress(MmxError):  # of a plugin that cannot be loaded nothing was ever written
            keys = phase_keys(spec, self.registry, device)
            for place, key in enumerate(keys):
                found = self.checkpoint(key, last=place + 1 == len(keys))
                if found is not None:
                    found.remove()

    def protocol(self, spec: TrialSpec) -> Protocol:
        """Build the trial's protocol."""
        return build_protocol(self.registry, spec.missing, self.modalities(spec))

    def takes_teacher(self, spec: TrialSpec) -> bool:
        """Tell whether the trial's procedure asks for the model that the phase before left."""
        return "teacher" in parameters(self.registry.load_class("procedure", spec.procedure.name))

    def procedure(
        self, spec: TrialSpec, model: MultimodalModel, teacher: MultimodalModel | None = None
    ) -> Procedure:
        """Build the procedure that trains a model (InputError where it cannot)."""
        cls = self.registry.load_class("procedure", spec.procedure.name)
        known = {
            "modalities": self.modalities(spec),
            "task": self.dataset(spec.dataset).task,
            "pattern": self.pattern(spec),
            "teacher": teacher,
            "seed": spec.seed,
        }
        procedure: Procedure = construct_part(cls, spec.procedure, "procedure", known)
        procedure.check(model)
        return procedure


def build_protocol(registry: Registry, missing: MissingSpec, modalities: Sequence[Modality]) -> Protocol:
    """Build a protocol; needs no dataset."""
    cls = registry.load_class("protocol", missing.protocol.name)
    known = {"modalities": tuple(modalities), "seed": missing.seed}
    protocol: Protocol = construct(cls, missing.protocol.options, known)
    return protocol


def monitor_of(spec: TrialSpec, task: Task) -> Monitor:
    """Find the validation figure that picks the epoch (InputError where the task has none such)."""
    key = spec.training.monitor or f"val/{task.scores[0].name}"
    known = {"val/loss": False, **{f"val/{s.name}": s.higher_is_better for s in task.scores}}
    if key not in known:
        raise InputError(f"training.monitor: '{key}' is none of {', '.join(known)}")
    return Monitor(key, known[key])
