"""Finished runs, read again: their spec, predictions, trained weights and environment."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors.torch import load_file

from mmx.assemble import take_trained
from mmx.config import TrialSpec, read_trial
from mmx.contracts import Tracker, TrialRecord
from mmx.errors import InputError
from mmx.evaluate import Predictions
from mmx.model import MultimodalModel
from mmx.runs.predictions import read_predictions
from mmx.tasks import Task
from mmx.trial import Bench

SPEC, PREDICTIONS, TRAINED, ENVIRONMENT = (
    "spec.json",
    "predictions.parquet",
    "trained.safetensors",
    "environment.json",
)


@dataclass
class StoredRun:
    """One trial of a result store. Its files are fetched when they are asked for, once."""

    tracker: Tracker
    sweep: str
    record: TrialRecord
    _folder: TemporaryDirectory[str] = field(default_factory=TemporaryDirectory)

    @property
    def run_id(self) -> str:
        """The run's id in the store."""
        return self.record.run_id

    def file(self, name: str) -> Path:
        """Fetch a file (InputError where the run has none of that name)."""
        path = Path(self._folder.name) / name
        return path if path.exists() else self.tracker.fetch(self.run_id, name, Path(self._folder.name))

    @cached_property
    def spec(self) -> TrialSpec:
        """The trial's spec, all defaults written out."""
        return read_trial(
            json.loads(self.file(SPEC).read_text(encoding="utf-8")), f"{self.record.title} {SPEC}"
        )

    @cached_property
    def environment(self) -> dict[str, Any]:
        """What its numbers hang on beside the spec (see `mmx.runs.environment`)."""
        found: dict[str, Any] = json.loads(self.file(ENVIRONMENT).read_text(encoding="utf-8"))
        return found

    def files_used(self) -> list[str]:
        """Name the one-off plugin files that its components came from; none where it does not tell."""
        try:
            plugins = self.environment["plugins"]
        except InputError:
            return []
        return sorted({p["distribution"] for p in plugins if p["version"] == "file"})

    @cached_property
    def stored(self) -> tuple[Predictions, Task | None, str]:
        """Predictions of every pattern, the task (None: not one of mmx's own) and the split's name."""
        return read_predictions(self.file(PREDICTIONS))

    def model(self, bench: Bench) -> MultimodalModel:
        """Build the model with its trained weights, on the CPU, in evaluation mode.

        InputError where the weights do not fit what the spec builds today.
        """
        return trained_model(self.spec, bench, self.file(TRAINED))


def open_run(tracker: Tracker, run: str) -> StoredRun:
    """Find a finished trial by its id, the beginning of it, or its title.

    InputError where there is none, or where it has not finished.
    """
    sweep, record = tracker.find(run)
    if record.state != "done":
        told = f" ({record.reason})" if record.reason else ""
        raise InputError(
            f"run '{run}' of sweep '{sweep}' is {record.state}{told}; only finished ones have results"
        )
    return StoredRun(tracker, sweep, record)


def trained_model(spec: TrialSpec, bench: Bench, weights: Path) -> MultimodalModel:
    """Build the model of a trial and give it the weights that training changed."""
    state = load_file(weights)
    last = spec.stages()[-1]
    model = bench.model(last, state if spec.training.phases else None)
    take_trained(model, state)
    return model.eval()
