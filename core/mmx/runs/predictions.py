"""Stored predictions: every pattern's outputs on one split, as a Parquet table that says what it holds."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from mmx import tasks
from mmx.contracts import Modality
from mmx.errors import InputError
from mmx.evaluate import Predictions, as_columns
from mmx.scores import Array
from mmx.tasks import Task

FACTS = b"mmx"
KINDS: dict[str, type[Task]] = {
    kind.__name__: kind for kind in (tasks.SingleLabel, tasks.MultiLabel, tasks.Regression)
}


def write_predictions(path: Path, predictions: Predictions, task: Task, split: str) -> None:
    """Write a table with a row for each sample and pattern: id, pattern, target, `output_0` and so on.

    `row` is the sample's place in its split: digests of masks, and the last bit of a mean, hang on the order.
    Its metadata hold the modalities in their order, the split, and the task where it is one of mmx's own.
    """
    facts = {"modalities": list(predictions.modalities), "split": split, "task": task_facts(task)}
    table = pa.table(as_columns(predictions))
    pq.write_table(table.replace_schema_metadata({FACTS: json.dumps(facts).encode()}), path)


def read_predictions(path: Path) -> tuple[Predictions, Task | None, str]:
    """Read such a table: the predictions, the task (None: not one of mmx's own) and the split's name.

    InputError where the file is none. Samples stand in the order of their split; in a table without `row`, as
    earlier versions wrote it, those that lack a modality come last.
    """
    table = pq.read_table(path)
    if FACTS not in (table.schema.metadata or {}):
        raise InputError(f"'{path.name}' does not say what it holds: it is no table of predictions of mmx")
    facts = json.loads(table.schema.metadata[FACTS])
    modalities = tuple(facts["modalities"])
    names = table["id"].to_pylist()
    ids, rows = (
        _in_order(names, table["row"].to_numpy()) if "row" in table.column_names else _positions(names)
    )
    columns = [name for name in table.column_names if name.startswith("output_")]
    values = np.column_stack([table[name].to_numpy() for name in columns])
    patterns = np.asarray(table["pattern"].to_pylist())
    targets = np.asarray(table["target"].to_pylist())
    first = np.unique(rows, return_index=True)[1]
    outputs = {}
    for name in dict.fromkeys(patterns.tolist()):
        outputs[frozenset(name.split("."))] = _spread(values, rows, patterns == name, len(ids))
    natural = {m: torch.from_numpy(_has(outputs, m, len(ids))) for m in modalities}
    return (
        Predictions(ids, targets[first], natural, outputs, modalities),
        task_of(facts["task"]),
        facts["split"],
    )


def _positions(ids: list[str]) -> tuple[list[str], Array]:
    """Give the different ids, as they come, and each row's place among them."""
    place = {i: n for n, i in enumerate(dict.fromkeys(ids))}
    return list(place), np.asarray([place[i] for i in ids])


def _in_order(names: list[str], places: Array) -> tuple[list[str], Array]:
    """Give the different ids in the order of their places, and each row's number in it."""
    _, first, rows = np.unique(places, return_index=True, return_inverse=True)
    return [names[i] for i in first], rows


def _spread(values: Any, rows: Any, chosen: Any, count: int) -> Any:
    """Lay the rows of a pattern out over all samples, NaN where a sample has it not."""
    spread = np.full((count, values.shape[1]), np.nan)
    spread[rows[chosen]] = values[chosen]
    return spread


def _has(outputs: Any, m: Modality, count: int) -> Any:
    """Tell which samples have a modality by nature: those that were predicted from it alone."""
    alone = outputs.get(frozenset({m}))
    return np.zeros(count, dtype=bool) if alone is None else ~np.isnan(alone[:, 0])


def task_facts(task: Task) -> dict[str, Any] | None:
    """Describe a task as plain data; None where it is not one of mmx's own."""
    return {"kind": type(task).__name__, **asdict(task)} if type(task) in KINDS.values() else None  # type: ignore[call-overload]


def task_of(facts: dict[str, Any] | None) -> Task | None:
    """Build a task from what `task_facts` gave."""
    if facts is None:
        return None
    options = {k: v for k, v in facts.items() if k != "kind"}
    if facts["kind"] == "Regression":
        return tasks.Regression(options["outputs_count"])
    return KINDS[facts["kind"]](**options)
