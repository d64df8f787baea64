"""Writes a run's model as a folder that stands alone: an MLflow model without any pickle.

The folder holds MLflow's description, the code that it runs to load the model (`mmx.runs.served`), and below
`artifacts` what `mmx.runs.predictor` reads: weights as safetensors, facts as JSON.
"""

import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch
from safetensors.torch import save

from mmx.config import TrialSpec
from mmx.contracts import Batch, Pattern
from mmx.errors import InputError
from mmx.model import MultimodalModel
from mmx.protocols import all_patterns
from mmx.registry import OWN, Registry
from mmx.runs import StoredRun
from mmx.runs.merging import merged
from mmx.runs.predictor import FACTS, PLUGINS, WEIGHTS, ModelFacts, Predictor
from mmx.runs.table import ID, Input
from mmx.tasks import Task
from mmx.trial import Bench
from mmx.trial.code import components_of

CODE = Path(__file__).with_name("served.py")
IN_THE_MODEL = ("encoder", "adapter", "strategy", "fusion")
ARTIFACT = "mmx"
"""Name of the folder with weights and facts, below `artifacts`."""
PINNED = ("mlflow", "numpy", "pandas", "peft", "safetensors", "torch")
TOLERANCE = 1e-3
"""By how much outputs may differ from the run's model: more than rounding, less than a wrong merge."""
CHECKED = 32
"""Test rows on which outputs are compared."""


@dataclass(frozen=True)
class Exported:
    """What an export did."""

    folder: Path
    adapters: Mapping[str, str]
    """For each modality, and for the fusion, what became of its adapter."""
    difference: float
    """Largest difference to outputs of the run's model that was seen."""


def is_exported(path: Path) -> bool:
    """Tell whether a folder is a model that was exported."""
    return (path / "artifacts" / ARTIFACT / FACTS).is_file()


def open_exported(folder: Path) -> Predictor:
    """Read such a folder."""
    return Predictor.load(folder / "artifacts" / ARTIFACT)


def export_run(
    run: StoredRun, bench: Bench, folder: Path, merge: bool = True, plugins: Sequence[Path] = ()
) -> Exported:
    """Write a run's model to a folder that is empty or not there, when all has been written beside it.

    `plugins` are the one-off files that the bench's registry was loaded with; those that the model needs are
    copied. InputError where the folder is in use, or where the model cannot stand alone.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"'{folder}' is there already and not empty; name a folder that is not")
    facts = ModelFacts.of(run.spec, bench)
    facts.to_dict()  # refuses before any work
    model, spec, told = merged(lambda: run.model(bench), facts.spec, merge)
    facts = replace(facts, spec=spec)
    with _beside(folder) as place:
        own, whole = place / ARTIFACT, place / "model"
        _write(own, run, facts, model, told)
        _copy_plugins(own, plugins, facts.spec, bench.registry)
        difference = _check(run, bench, facts.task, Predictor.load(own))
        _save(whole, own, facts, bench.registry)
        folder.mkdir(exist_ok=True)
        for part in sorted(whole.iterdir(), key=lambda path: path.name == "MLmodel"):
            shutil.move(part, folder / part.name)
    return Exported(folder, told, difference)


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """Give a temporary folder on the same disk (InputError where nothing can be written there)."""
    whole = folder.resolve()
    try:
        whole.parent.mkdir(parents=True, exist_ok=True)
        place = TemporaryDirectory(dir=whole.parent, prefix=f".{whole.name}-")
    except OSError as error:
        raise InputError(f"'{folder}' cannot be written: {error.strerror or error}") from error
    with place as name:
        yield Path(name)


def _write(
    folder: Path, run: StoredRun, facts: ModelFacts, model: MultimodalModel, told: Mapping[str, str]
) -> None:
    folder.mkdir()
    origin = {"run": run.run_id, "title": run.record.title, "sweep": run.sweep, "point": run.record.point}
    content = {"schema": 1, OWN: version(OWN), "from": origin, "adapters": dict(told), **facts.to_dict()}
    (folder / FACTS).write_text(json.dumps(content, indent=2), encoding="utf-8")
    # Cloned, since two names of one tensor are refused. Its own writer keeps files from all other users.
    state = {n: t.detach().cpu().contiguous().clone() for n, t in model.state_dict().items()}
    (folder / WEIGHTS).write_bytes(save(state))


def _copy_plugins(folder: Path, files: Sequence[Path], spec: TrialSpec, registry: Registry) -> None:
    used = {offer.distribution for offer in _offers(spec, registry) if offer.version == "file"}
    for file in files:
        if file.name in used:
            (folder / PLUGINS).mkdir(exist_ok=True)
            shutil.copy(file, folder / PLUGINS / file.name)


def _offers(spec: TrialSpec, registry: Registry) -> list[Any]:
    """Find what the model is built of."""
    named = {(kind, name) for kind, name in components_of(spec) if kind in IN_THE_MODEL}
    return [registry.find(kind, name) for kind, name in sorted(named)]


def _save(folder: Path, own: Path, facts: ModelFacts, registry: Registry) -> None:
    """Have MLflow write its model around our folder."""
    from mlflow import pyfunc

    with _quiet():
        pyfunc.save_model(
            path=str(folder),
            python_model=str(CODE),
            artifacts={ARTIFACT: str(own)},
            signature=_signature(facts),
            input_example=_example(facts.inputs),
            pip_requirements=_requirements(facts.spec, registry),
            metadata={"modalities": {m: list(i.shape) for m, i in facts.inputs.items()}},
        )
    _forget_this_machine(folder)


def _forget_this_machine(folder: Path) -> None:
    """Write paths relative to the folder, where MLflow noted those that it copied from."""
    from mlflow.models import Model

    model = Model.load(str(folder))
    flavor = model.flavors["python_function"]
    flavor["model_code_path"] = CODE.name
    flavor["artifacts"][ARTIFACT]["uri"] = flavor["artifacts"][ARTIFACT]["path"]
    model.save(str(folder / "MLmodel"))


def _signature(facts: ModelFacts) -> Any:
    """Say which columns there are. None must be there, and a cell may be null or nested: hence any type."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema
    from mlflow.types.schema import AnyType

    inputs = [ColSpec(AnyType(), name, required=False) for name in (*facts.inputs, ID)]
    outputs = [ColSpec(AnyType(), "prediction")]
    outputs += [ColSpec("double", f"output_{i}") for i in range(facts.task.out)]
    return ModelSignature(Schema(inputs), Schema([*outputs, ColSpec("string", "present")]))


def _example(inputs: Mapping[str, Input]) -> pd.DataFrame:
    """Make a complete row, and one that has the first modality alone; all numbers are zero."""
    blank = {m: i.blank()[0].tolist() for m, i in inputs.items()}
    first = next(iter(inputs))
    return pd.DataFrame({m: pd.Series([cell, cell if m == first else None]) for m, cell in blank.items()})


def _requirements(spec: TrialSpec, registry: Registry) -> list[str]:
    """Pin mmx, what numbers hang on, and the packages of plugins that the model is built of."""
    plugins = {o.distribution: o.version for o in _offers(spec, registry) if o.version != "file"}
    pinned = plugins | {name: version(name) for name in (OWN, *PINNED)}
    return [f"{name}=={found}" for name, found in sorted(pinned.items())]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep MLflow's remarks on how it saves from the user: nothing is to be done about them."""
    logger = logging.getLogger("mlflow")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _check(run: StoredRun, bench: Bench, task: Task, exported: Predictor) -> float:
    """Compare outputs of every pattern on some test rows (InputError where they differ by much)."""
    split = bench.split(run.spec, "test")
    batch = split.batch(torch.arange(min(CHECKED, len(split))), split.natural)
    most = largest_difference(run.model(bench), exported.model, batch, task)
    if most > TOLERANCE:
        raise InputError(
            f"the exported model's outputs differ from the run's by up to {most:.2g}, so some part does not "
            f"keep its word; try --no-merge"
        )
    return most


@torch.inference_mode()
def largest_difference(one: MultimodalModel, other: MultimodalModel, batch: Batch, task: Task) -> float:
    """Give the largest difference of two models' outputs over all rows and availability patterns."""
    most = 0.0
    for pattern in all_patterns(one.modalities):
        some = _restricted(batch, pattern)
        if len(some.ids):
            found, wanted = (task.outputs(model(some).logits.float()) for model in (one, other))
            most = max(most, float((found - wanted).abs().max()))
    return most


def _restricted(batch: Batch, pattern: Pattern) -> Batch:
    """Take the rows that have some modality of a pattern, as if they had no other."""
    there = {m: p if m in pattern else torch.zeros_like(p) for m, p in batch.presence.items()}
    rows = torch.stack(list(there.values())).any(dim=0)
    return replace(batch, presence=there).take(rows)
