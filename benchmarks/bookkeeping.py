"""What keeping the books of a sweep costs: resuming a large one, memory, stores, and workers side by side.

Each figure is a ratio between two things measured in one run:

- resume: planning a sweep and finding all its trials done, against MLflow's own client reading the same runs;
- memory: of one worker after its last trial, against after a tenth of them;
- stores: a trial with both stores (SQLite), against the same training and evaluation without any;
- workers: trials a second of 1, 2 and 4 workers, against 1.

Run: python benchmarks/bookkeeping.py [resume] [memory] [stores] [workers]
"""

import contextlib
import itertools
import json
import os
import sqlite3
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from mlflow import MlflowClient

from mmx.config import read_sweep
from mmx.registry import Registry
from mmx.sweep import Limits, Plan, open_tracker, plan_facts, plan_sweep, run_sweep
from mmx.sweep.engine import Known
from mmx.sweep.places import open_search
from mmx.trial import run_trial

DONE = 10_000
TRIALS = 200
TIMED = 20
TOY: Mapping[str, Any] = {
    "schema": 1,
    "name": "books",
    "dataset": {"name": "toy_world", "train_size": 64, "val_size": 32, "test_size": 64},
    "encoders": {"m0": "mlp", "m1": "mlp"},
    "adapter": "full",
    "strategy": "zero_fill",
    "fusion": "mean",
    "training": {"epochs": 3, "batch_size": 16, "learning_rate": 0.01},
    "missing": {"protocol": "per_modality", "train": {"rate": 0.3}, "eval": {"targets": ["any", "m0", "m1"]}},
}


def address() -> str:
    """Give the result store of the current folder, in full: MLflow keeps connections by address."""
    return f"sqlite:///{Path.cwd()}/mlflow.db"


class Quiet:
    """A watcher that notes when trials end, and the memory of this process."""

    def __init__(self) -> None:
        self.ended: list[float] = []
        self.memory: list[int] = []

    def sweep_started(self, total: int, done: int) -> None: ...
    def told(self, message: str) -> None: ...
    def trial_started(self, worker: int, title: str, epochs: int, key: Any) -> None: ...
    def epoch_ended(self, worker: int, epoch: int, figures: Any) -> None: ...

    def trial_ended(self, worker: int, title: str, state: str, reason: str, figures: Any) -> None:
        """Take note."""
        assert state == "done", reason
        self.ended.append(time.perf_counter())
        self.memory.append(psutil.Process().memory_info().rss)


def plan(search: Mapping[str, Any], **changes: Any) -> Plan:
    """Plan the toy sweep, with stores in the current folder."""
    store = {"tracking": address(), "study": "sqlite:///optuna.db"}
    text = json.dumps({**TOY, "store": store, "search": search, **changes})
    return plan_sweep(read_sweep(text, "books.yaml"), Registry.load())


@contextlib.contextmanager
def a_folder() -> Iterator[Path]:
    """Work in a folder of its own, with stores that exist already: their schemas take seconds."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        try:
            run(plan({"seeds": [99]}), limits=Limits(max_trials=0))
            yield Path(name)
        finally:
            os.chdir(before)


def run(planned: Plan, limits: Limits | None = None) -> Quiet:
    """Run a sweep."""
    tracker = open_tracker(planned.registry, planned.sweep.store.tracking)
    quiet = Quiet()
    run_sweep(planned, tracker, "cpu", quiet, limits or Limits())
    return quiet


def copies(table: str, file: sqlite3.Connection, where: str, old: Any) -> list[dict[str, Any]]:
    """Read the rows of one run or trial."""
    file.row_factory = sqlite3.Row
    return [dict(row) for row in file.execute(f"SELECT * FROM {table} WHERE {where} = ?", (old,))]  # noqa: S608


def fill(planned: Plan) -> None:
    """Write a finished run for each (point, seed), with all that a real one has: rows of one, copied."""
    file = sqlite3.connect("mlflow.db")
    (first,) = file.execute("SELECT run_uuid FROM tags WHERE key = 'mmx.role' AND value = 'trial'").fetchone()
    tables = ("runs", "params", "metrics", "latest_metrics", "tags")
    rows = {table: copies(table, file, "run_uuid", first) for table in tables}
    for cell in planned.cells:
        own = {"mmx.point": cell.spec.point, "mmx.cell": cell.id}
        for seed in planned.sweep.search.seeds:
            name = uuid.uuid4().hex
            for table, content in rows.items():
                new = [{**row, "run_uuid": name} for row in content]
                for row in new if table == "tags" else ():
                    row["value"] = {**own, "mmx.seed": str(seed)}.get(row["key"], row["value"])
                marks = ", ".join("?" * len(new[0]))
                file.executemany(f"INSERT INTO {table} VALUES ({marks})", [tuple(r.values()) for r in new])  # noqa: S608
    file.execute("DELETE FROM tags WHERE run_uuid = ?", (first,))
    file.commit()
    file.close()


def resume() -> None:
    """Measure planning and the look at what is done."""
    with a_folder():
        search = {
            "axes": {
                "training.learning_rate": [1e-4 * (i + 1) for i in range(50)],
                "training.weight_decay": [1e-3 * i for i in range(40)],
            },
            "seeds": list(range(DONE // 2000)),
        }
        run(plan(search), Limits(max_trials=1))
        fill(plan(search))
        started = time.perf_counter()
        planned = plan(search)
        between = time.perf_counter()
        tracker = open_tracker(planned.registry, planned.sweep.store.tracking)
        records = tracker.records(planned.sweep.name)
        Known.of(records, planned.objective)
        counts = plan_facts(planned, records)["counts"]
        ended = time.perf_counter()
        peer = read_by_hand(planned.sweep.name)
        print(
            f"resume   {counts['done']:,} of {DONE:,} done: plan {between - started:.1f} s, check "
            f"{ended - between:.1f} s; both {(ended - started) / peer:.2f} of MLflow's client reading the "
            f"runs ({peer:.1f} s)"
        )


def read_by_hand(name: str) -> float:
    """Time MLflow's own client over all runs of an experiment."""
    started = time.perf_counter()
    client = MlflowClient(tracking_uri=address())
    experiment = client.get_experiment_by_name(name)
    token = None
    while True:
        page = client.search_runs([experiment.experiment_id], max_results=1000, page_token=token)
        token = page.token
        if not token:
            return time.perf_counter() - started


def memory() -> None:
    """Measure one worker's memory over many trials."""
    with a_folder():
        found = run(plan({"seeds": list(range(TRIALS))})).memory
        early = found[TRIALS // 10]
        half = found[TRIALS // 2 :]
        slope = statistics.linear_regression(range(len(half)), half).slope
        print(
            f"memory   {TRIALS} trials in one worker: {found[-1] / early:.3f} of what it was after "
            f"{TRIALS // 10} ({early / 2**20:.0f} MB); over the last half {slope / 1024:+.0f} KB a trial"
        )


def stores() -> None:
    """Measure trials with stores and without, in turns."""
    with a_folder():
        planned = plan({"seeds": list(range(TIMED))})
        ended = run(planned).ended
        kept = statistics.median(b - a for a, b in itertools.pairwise(ended))
        bare = []
        planned = plan({"seeds": list(range(TIMED))})
        for seed in range(TIMED):
            started = time.perf_counter()
            run_trial(replace(planned.cells[0].spec, seed=seed), planned.bench, torch.device("cpu"))
            bare.append(time.perf_counter() - started)
        alone = statistics.median(bare)
        claims = len(open_search(planned).study(planned.sweep.name).get_trials(deepcopy=False))
        assert claims == TIMED
        print(
            f"stores   {kept:.3f} s a trial of 3 epochs with both stores and checkpoints, {alone:.3f} s with "
            f"none: {kept / alone:.2f}; {kept - alone:.3f} s a trial"
        )


def workers() -> None:
    """Measure trials a second of 1, 2 and 4 worker processes; the time to start them is left out."""
    training = {**TOY["training"], "epochs": 30}
    rates = {}
    for count in (1, 2, 4):
        with a_folder():
            ended = run(plan({"seeds": list(range(24))}, training=training, run={"workers": count})).ended
            steady = ended[count:]
            rates[count] = (len(steady) - 1) / (steady[-1] - steady[0])
    told = ", ".join(f"{n} workers {rate / rates[1]:.2f}" for n, rate in rates.items())
    cores = len(os.sched_getaffinity(0))
    print(f"workers  on {cores} cores: {told} of one worker's {rates[1]:.2f} trials a second")


PARTS = {"resume": resume, "memory": memory, "stores": stores, "workers": workers}

if __name__ == "__main__":
    torch.set_num_threads(1)
    for part in sys.argv[1:] or PARTS:
        PARTS[part]()
