"""MLflow as the keeper of all results: one experiment a sweep, a parent run, a child run a trial.

Only the client API with explicit run ids is used, so that no run is active behind the scenes; metrics go in
one batch a call, since SQL stores are slow by call.
"""

import contextlib
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Over HTTP MLflow prints a run's address with user and password in it, unless told not to.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException

from mmx.builtin.trackers import mlflow_view
from mmx.config.address import without_login
from mmx.contracts import Tracker, TrialLog, TrialRecord
from mmx.errors import InputError, MmxError
from mmx.worker import is_gone, this_worker

STATES = {
    "FINISHED": "done",
    "FAILED": "failed",
    "KILLED": "failed",
    "RUNNING": "running",
    "SCHEDULED": "running",
}
STATUS = {"done": "FINISHED", "failed": "FAILED"}
LONGEST_VALUE = 6000
BATCH = 1000
FORBIDDEN = re.compile(r"[^A-Za-z0-9_\-. :/]")


class Mlflow(Tracker):
    """Results in MLflow, at a SQL address (`sqlite:///mlflow.db`) or a server's (`http://…`)."""

    def __init__(self, store: str = "sqlite:///mlflow.db") -> None:
        if store.startswith("file:") or "://" not in store:
            raise InputError(
                f"store.tracking '{store}' is a folder, which MLflow no longer supports; write "
                f"sqlite:///mlflow.db (`mlflow migrate-filestore` carries an old store over)"
            )
        self.store = store
        self.experiment = ""
        self.parent = ""
        try:
            self.client = MlflowClient(tracking_uri=store)
            self.client.search_experiments(max_results=1)
        except MlflowException as error:
            raise _explained(error, store) from error
        except Exception as error:
            raise MmxError(
                f"store.tracking '{without_login(store)}' cannot be opened: {_reason(error, store)}"
            ) from error

    def open_sweep(self, name: str, tags: Mapping[str, str]) -> str:
        """Find or make the experiment and its parent run."""
        self.experiment = self._find_experiment(name) or self._make_experiment(name)
        parents = self._search(self.experiment, "tags.`mmx.role` = 'sweep'")
        if parents:
            self.parent = parents[0].info.run_id
            self.client.update_run(self.parent, status="RUNNING")
        else:
            run = self.client.create_run(self.experiment, tags={"mmx.role": "sweep"}, run_name=name)
            self.parent = run.info.run_id
        self.client.log_batch(self.parent, tags=[RunTag(k, v) for k, v in tags.items()])
        return self.parent

    def find_sweeps(self) -> list[str]:
        """List the experiments that hold a sweep."""
        found = self.client.search_experiments(order_by=["last_update_time DESC"])
        return [e.name for e in found if e.tags.get("mmx.role") == "sweep"]

    def records(self, name: str) -> list[TrialRecord]:
        """List the latest attempt of each (point, seed)."""
        experiment = self._find_experiment(name)
        if experiment is None:
            return []
        latest: dict[tuple[str, int], TrialRecord] = {}
        for run in reversed(self._search(experiment, "tags.`mmx.role` = 'trial'")):
            if run.data.tags.get("mmx.retired") == "true":
                continue
            record = self._record(run)
            known = latest.get((record.point, record.seed))
            if known is None or (record.state == "done", record.attempt) >= (
                known.state == "done",
                known.attempt,
            ):
                latest[record.point, record.seed] = record
        return list(latest.values())

    def history(self, run_id: str, metric: str) -> dict[int, float]:
        """Give a metric by step."""
        return {m.step: m.value for m in self.client.get_metric_history(run_id, metric)}

    def open_trial(self, title: str, record: TrialRecord) -> TrialLog:
        """Begin a child run with its parameters."""
        own = {
            "mmx.role": "trial",
            "mmx.point": record.point,
            "mmx.seed": str(record.seed),
            "mmx.cell": record.cell,
            "mmx.attempt": str(record.attempt),
            "mmx.worker": this_worker(),
            "mlflow.parentRunId": self.parent,
        }
        run = self.client.create_run(self.experiment, tags=own, run_name=title)
        params = [Param(_key(k), v[:LONGEST_VALUE]) for k, v in record.params.items()]
        for start in range(0, len(params), 100):
            self.client.log_batch(run.info.run_id, params=params[start : start + 100])
        return _MlflowTrial(self.client, run.info.run_id)

    def retire(self, record: TrialRecord) -> None:
        """Tag a run so that it no longer counts."""
        self.client.set_tag(record.run_id, "mmx.retired", "true")

    def close_sweep(
        self,
        curves: Mapping[str, Mapping[int, float]],
        artifacts: Sequence[Path],
        group_by: Sequence[str],
        state: str,
    ) -> None:
        """Log the parent's curves (what changed of them) and files, prepare the view, and end it."""
        log = _MlflowTrial(self.client, self.parent)
        for name, curve in curves.items():
            known = self.history(self.parent, _key(name))
            for step, value in curve.items():
                if known.get(step) != value:
                    log.metrics({name: value}, step)
        for path in artifacts:
            log.artifact(path)
        self._prepare_view(group_by)
        self.client.set_terminated(self.parent, status=STATUS[state])

    def page(self, name: str) -> str:
        """Give the prepared view of a sweep's runs."""
        experiment = self._find_experiment(name)
        return mlflow_view.page_of(experiment) if experiment else ""

    def _prepare_view(self, group_by: Sequence[str]) -> None:
        """Store the view; a server that refuses it shows its plain page instead."""
        runs = self._search(self.experiment, "tags.`mmx.role` = 'trial'")
        metrics = sorted({name for run in runs for name in run.data.metrics})
        with contextlib.suppress(MlflowException):
            state = mlflow_view.view_state(group_by, metrics)
            self.client.set_experiment_tag(self.experiment, mlflow_view.TAG, state)

    def _find_experiment(self, name: str) -> str | None:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            return None
        if found.lifecycle_stage == "deleted":
            raise InputError(
                f"sweep '{name}' was deleted in MLflow; `mlflow experiments restore -x "
                f"{found.experiment_id}` brings it back, or choose another name"
            )
        return found.experiment_id

    def _make_experiment(self, name: str) -> str:
        tags = {"mmx.role": "sweep", "mlflow.experimentKind": "custom_model_development"}
        try:
            return self.client.create_experiment(name, artifact_location=self._artifacts(name), tags=tags)
        except MlflowException as error:
            raise _explained(error, self.store) from error

    def _artifacts(self, name: str) -> str | None:
        """Give an absolute place beside the store; a server decides for itself.

        MLflow's own default is relative to wherever the experiment is first used, and then fixed.
        """
        if not self.store.startswith("sqlite:///"):
            return None
        folder = Path(self.store.removeprefix("sqlite:///")).resolve().parent
        return (folder / "mlartifacts" / re.sub(r"[^\w.-]", "_", name)).as_uri()

    def _search(self, experiment: str, filter_string: str) -> list[Run]:
        """List all matching runs, the latest first."""
        runs: list[Run] = []
        token: str | None = None
        while True:
            page = self.client.search_runs(
                [experiment],
                filter_string,
                ViewType.ACTIVE_ONLY,
                max_results=BATCH,
                order_by=["attributes.start_time DESC"],
                page_token=token,
            )
            runs += page
            token = page.token
            if not token:
                return runs

    def _record(self, run: Run) -> TrialRecord:
        tags = run.data.tags
        state, reason = STATES[run.info.status], tags.get("mmx.state_reason", "")
        if state == "running" and is_gone(tags.get("mmx.worker", "")):
            state, reason = "failed", "its worker is gone"
            self.client.set_tag(run.info.run_id, "mmx.state_reason", reason)
            self.client.set_terminated(run.info.run_id, status="KILLED")
        return TrialRecord(
            run_id=run.info.run_id,
            point=tags["mmx.point"],
            seed=int(tags["mmx.seed"]),
            state=state,
            reason=reason,
            cell=tags.get("mmx.cell", ""),
            attempt=int(tags.get("mmx.attempt", "1")),
            params=dict(run.data.params),
            metrics=dict(run.data.metrics),
        )


class _MlflowTrial(TrialLog):
    """One run, by its id."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client = client
        self.run_id = run_id

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log one batch; NaN and infinity would wreck MLflow's axes and are left out."""
        now = int(time.time() * 1000)
        finite = [Metric(_key(k), float(v), now, step) for k, v in values.items() if math.isfinite(v)]
        for start in range(0, len(finite), BATCH):
            self.client.log_batch(self.run_id, metrics=finite[start : start + BATCH])

    def artifact(self, path: Path) -> None:
        """Upload a file."""
        self.client.log_artifact(self.run_id, str(path))

    def end(self, state: str, reason: str, tags: Mapping[str, str]) -> None:
        """Set the final status."""
        told = {**tags, "mmx.state_reason": reason[:LONGEST_VALUE]}
        self.client.log_batch(self.run_id, tags=[RunTag(k, v) for k, v in told.items()])
        self.client.set_terminated(self.run_id, status=STATUS[state])


def _key(name: str) -> str:
    """Make a name that MLflow takes."""
    return FORBIDDEN.sub("_", name)


def _reason(error: Any, store: str) -> str:
    return str(error).replace(store, without_login(store)).splitlines()[0]


def _explained(error: MlflowException, store: str) -> MmxError:
    """Turn MLflow's errors into advice."""
    if "out-of-date" in str(error):
        return InputError(
            f"store.tracking '{without_login(store)}' has an older schema; stop all writers, back it up, "
            f"then run: mlflow db upgrade {without_login(store)}"
        )
    return MmxError(f"store.tracking '{without_login(store)}': {_reason(error, store)}")
