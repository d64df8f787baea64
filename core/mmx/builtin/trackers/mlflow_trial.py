"""One run of MLflow, written to by its id."""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, RunTag
from mlflow.exceptions import MlflowException

from mmx.builtin.trackers.mlflow_connection import Connection, asked
from mmx.contracts import TrialLog

STATUS = {"done": "FINISHED", "failed": "FAILED", "missing": "KILLED"}
LONGEST_VALUE = 6000
BATCH = 1000
TWICE = re.compile(r"unique constraint|duplicate (?:key|entry)", re.IGNORECASE)
FORBIDDEN = re.compile(r"[^A-Za-z0-9_\-. :/]")


class MlflowTrial(TrialLog):
    """One run, by its id."""

    def __init__(
        self, client: MlflowClient, connection: Connection, clock: Callable[[], float], run_id: str
    ) -> None:
        self.client = client
        self.connection = connection
        self.clock = clock
        self.run_id = run_id

    @asked
    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log one batch; NaN and infinity would wreck MLflow's axes and are left out."""
        now = int(self.clock() * 1000)
        finite = [Metric(key_of(k), float(v), now, step) for k, v in values.items() if math.isfinite(v)]
        for start in range(0, len(finite), BATCH):
            self.client.log_batch(self.run_id, metrics=finite[start : start + BATCH])

    def artifact(self, path: Path) -> None:
        """Upload a file (OSError where it cannot be read)."""
        path.open("rb").close()
        with self.connection.asked():
            self.client.log_artifact(self.run_id, str(path))

    @asked
    def data(self, name: str, split: str, digest: str, facts: Mapping[str, Any]) -> None:
        """Log a split as an input, so that MLflow's page shows it and finds runs by it."""
        told = {
            "source_type": "mmx",
            "source": json.dumps({"dataset": name}),
            "profile": json.dumps(dict(facts)),
        }
        given = Dataset(name=name, digest=digest, **told)
        context = InputTag(
            "mlflow.data.context", {"train": "training", "val": "validation"}.get(split, split)
        )
        inputs = [DatasetInput(given, [context])]
        try:
            self.client.log_inputs(self.run_id, inputs)
        except MlflowException as error:
            # MLflow looks whether it knows the data, and then writes: two workers may both not find them.
            if not TWICE.search(str(error)):
                raise
            self.client.log_inputs(self.run_id, inputs)

    @asked
    def end(self, state: str, reason: str, tags: Mapping[str, str]) -> None:
        """Set the final status."""
        told = {**tags, "mmx.state_reason": reason[:LONGEST_VALUE]}
        own = [RunTag(k, self.connection.hide(v)) for k, v in told.items()]
        self.client.log_batch(self.run_id, tags=own)
        # At the real time, whatever the clock says: `records` asks for what ended since.
        self.client.set_terminated(self.run_id, STATUS[state])


def key_of(name: str) -> str:
    """Make a name that MLflow takes."""
    return FORBIDDEN.sub("_", name)
