"""A trained model with all that it needs to predict tables: the run's own, or one that was exported.

A folder of weights and facts stands alone: it is read without the dataset and without any network.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mmx.assemble import build_model
from mmx.config import ComponentSpec, TrialSpec, plain, read_trial
from mmx.contracts import Batch, Dataset, Modality, Pattern, Sample
from mmx.errors import DataError, InputError
from mmx.evaluate import pattern_name
from mmx.model import MultimodalModel
from mmx.registry import Registry
from mmx.runs import StoredRun
from mmx.runs.predictions import task_facts, task_of
from mmx.runs.table import Input, Rows, read_table
from mmx.tasks import MultiLabel, SingleLabel, Task
from mmx.trial import Bench

FACTS, WEIGHTS, PLUGINS = "model.json", "model.safetensors", "plugins"
"""What stands in the folder; the last one is a folder of one-off plugin files."""
ROWS = 256
"""Rows that are predicted at a time."""
THRESHOLD = 0.5
"""Probability from which on a label counts as predicted."""


@dataclass(frozen=True)
class ModelFacts:
    """What must be known to build a model, in place of its dataset."""

    spec: TrialSpec
    """One stage, without phases."""
    task: Task
    inputs: Mapping[Modality, Input]
    """In the dataset's order."""
    pattern: Pattern | None
    """See `build_model`."""

    @classmethod
    def of(cls, spec: TrialSpec, bench: Bench) -> "ModelFacts":
        """Read them off a trial's last stage and its dataset."""
        last = spec.stages()[-1]
        dataset, train = bench.dataset(last.dataset), bench.split(last, "train")
        kinds = dataset.modalities
        inputs = {m: Input.of(kinds[m], train.example(m)) for m in bench.modalities(last)}
        # Nothing of the dataset is needed any more, and its options may be paths or tokens.
        spec = replace(last, dataset=ComponentSpec(last.dataset.name))
        return cls(spec, dataset.task, inputs, bench.pattern(last))

    def to_dict(self) -> dict[str, Any]:
        """Give them as plain data (InputError where the task is not one of mmx's own)."""
        task = task_facts(self.task)
        if task is None:
            raise InputError(
                f"task '{type(self.task).__name__}' is a dataset's own, so the model cannot stand alone; "
                f"`mmx predict RUN` reads the dataset"
            )
        return {
            "spec": plain(self.spec),
            "task": task,
            "modalities": {m: asdict(i) for m, i in self.inputs.items()},
            "pattern": None if self.pattern is None else sorted(self.pattern),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str) -> "ModelFacts":
        """Read them back (InputError where they are none)."""
        try:
            task = task_of(data["task"])
            inputs = {
                m: Input(i["kind"], tuple(i["shape"]), i["dtype"]) for m, i in data["modalities"].items()
            }
            pattern = None if data["pattern"] is None else frozenset(data["pattern"])
            spec = read_trial(data["spec"], source)
        except (LookupError, TypeError, AttributeError) as error:
            raise InputError(f"'{source}' does not describe a model: {error!r}; export it again") from error
        if task is None:
            raise InputError(f"'{source}' names no task; export it again")
        return cls(spec, task, inputs, pattern)

    def build(self, registry: Registry, state: Mapping[str, Tensor]) -> MultimodalModel:
        """Build the model with a whole state (InputError where it does not fit)."""
        examples = {m: i.blank()[0] for m, i in self.inputs.items()}
        try:
            model = build_model(self.spec, _Described(self), examples, registry, self.pattern, state)
            model.load_state_dict(state)
        except (RuntimeError, KeyError) as error:
            told = str(error).splitlines()[-1].strip()
            raise InputError(
                f"the weights do not fit the model that this version of its parts builds ({told}); install "
                f"the versions that requirements.txt names"
            ) from error
        return model.eval()


class _Described(Dataset):
    """Stands for a dataset of which only the description is there."""

    def __init__(self, facts: ModelFacts) -> None:
        self.modalities = {m: i.kind for m, i in facts.inputs.items()}
        self.task = facts.task

    def split(self, name: str) -> Sequence[Sample]:
        """Refuse: there are no samples."""
        raise DataError(f"an exported model has no samples, so no split '{name}'")


class Predictor:
    """Predicts tables (see `mmx.runs.table`); several threads may call one."""

    def __init__(self, model: MultimodalModel, task: Task, inputs: Mapping[Modality, Input]) -> None:
        self.model, self.task, self.inputs = model, task, inputs
        # An adapter by pattern is told who is present before each use.
        self._lock = Lock()

    @classmethod
    def load(cls, folder: Path) -> "Predictor":
        """Read a folder that an export wrote."""
        source = folder / FACTS
        try:
            data = json.loads(source.read_text(encoding="utf-8"))
            state = load_file(folder / WEIGHTS)
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError(f"'{folder}' is no exported model ({error}); `mmx export` writes one") from error
        facts = ModelFacts.from_dict(data, source.name)
        registry = Registry.load(files=sorted((folder / PLUGINS).glob("*.py")))
        return cls(facts.build(registry, state), facts.task, facts.inputs)

    def predict(self, table: pd.DataFrame) -> pd.DataFrame:
        """Give a row for each row: `id` if the table has it, `prediction`, `output_0` and so on, `present`.

        InputError where a row, or a column, cannot be read; then nothing is predicted.
        """
        rows = read_table(table, self.inputs)
        outputs = self._outputs(rows)
        wrong = (~np.isfinite(outputs).all(axis=1)).nonzero()[0]
        if len(wrong):
            raise DataError(
                f"row {wrong[0]}: its numbers are so large that the model's outputs are not finite"
            )
        columns: dict[str, Any] = {} if rows.ids is None else {"id": rows.ids}
        columns["prediction"] = predictions(outputs, self.task)
        columns |= {f"output_{i}": outputs[:, i] for i in range(outputs.shape[1])}
        columns["present"] = self._patterns(rows)
        return pd.DataFrame(columns, index=table.index)

    def _outputs(self, rows: Rows) -> np.ndarray:
        found = np.empty((len(next(iter(rows.presence.values()))), self.task.out), dtype=np.float64)
        with self._lock, torch.inference_mode():
            for chunk in torch.arange(len(found)).split(ROWS):
                own = {m: t[chunk] for m, t in rows.inputs.items()}
                there = {m: p[chunk] for m, p in rows.presence.items()}
                batch = Batch(own, there, torch.zeros(len(chunk)), [str(i) for i in chunk.tolist()])
                if len(chunk):
                    found[chunk.numpy()] = self.task.outputs(self.model(batch).logits.float()).numpy()
        return found

    def _patterns(self, rows: Rows) -> list[str]:
        there = torch.stack([rows.presence[m] for m in self.inputs], dim=1).tolist()
        names = list(self.inputs)
        return [
            pattern_name(frozenset(m for m, p in zip(names, row, strict=True) if p), names) for row in there
        ]


def predictor_of(run: StoredRun, bench: Bench) -> Predictor:
    """Give a run's own model; its dataset is read, for shapes."""
    facts = ModelFacts.of(run.spec, bench)
    return Predictor(run.model(bench), facts.task, facts.inputs)


def predictions(outputs: np.ndarray, task: Task) -> list[Any]:
    """Give what each row's outputs say: a class, a list of labels, a value or a list of values."""
    if isinstance(task, SingleLabel):
        return outputs.argmax(axis=1).tolist()
    if isinstance(task, MultiLabel):
        return [np.flatnonzero(row > THRESHOLD).tolist() for row in outputs]
    return outputs[:, 0].tolist() if outputs.shape[1] == 1 else outputs.tolist()
