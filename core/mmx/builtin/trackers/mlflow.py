"""MLflow as the keeper of all results: one experiment a sweep, a parent run, a child run a trial.

Only the client API with explicit run ids is used, so that no run is active behind the scenes; metrics go in
one batch a call, since SQL stores are slow by call.
"""

import contextlib
import gc
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import mlflow
import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import (
    Experiment,
    Param,
    Run,
    RunTag,
    ViewType,
)
from mlflow.exceptions import MlflowException

from mmx.builtin.trackers import mlflow_view
from mmx.builtin.trackers.mlflow_connection import Connection, asked
from mmx.builtin.trackers.mlflow_trial import BATCH, LONGEST_VALUE, STATUS, MlflowTrial, key_of
from mmx.contracts import Tracker, TrialLog, TrialRecord
from mmx.errors import InputError

STATES = {
    "FINISHED": "done",
    "FAILED": "failed",
    "KILLED": "missing",
    "RUNNING": "running",
    "SCHEDULED": "running",
}
FULL_ID = re.compile(r"[0-9a-f]{32}")
PREFIX = re.compile(r"[0-9a-f]{4,31}")
TITLE = re.compile(r"[\w.+-]+")

DIALECTS = ("sqlite", "postgresql", "mysql", "mssql")
OPENING = 5.0
"""Seconds that a server may take to appear when a store is opened."""
SKEW = 3600.0
"""Seconds by which the clocks of two machines may differ."""


class Mlflow(Tracker):
    """Results in MLflow, at a SQL address (`sqlite:///mlflow.db`) or a server's (`http://…`).

    `address` is the store's without its login, `clock` tells the time (seconds since 1970) of what is logged.
    """

    def __init__(self, store: str = "sqlite:///mlflow.db") -> None:
        if store.startswith("file:") or "://" not in store:
            raise InputError(
                f"store.tracking '{store}' is a folder, which MLflow no longer supports; write "
                f"sqlite:///mlflow.db (`mlflow migrate-filestore` carries an old store over)"
            )
        self.connection = Connection(store)
        self.address = self.connection.address
        self.hide = self.connection.hide
        self.clock: Callable[[], float] = time.time
        self.experiment = ""
        self.parent = ""
        self._finished: dict[str, tuple[dict[str, TrialRecord], float]] = {}
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        with self.connection.asked(OPENING):
            self._connect()
            self.client = MlflowClient(tracking_uri=self.connection.store)
            self.client.search_experiments(max_results=1)

    @asked
    def open_sweep(self, name: str, tags: Mapping[str, str]) -> str:
        """Find or make the experiment and its parent run; without tags its status stays as it is."""
        self.experiment = self._find_experiment(name) or self._make_experiment(name)
        found = next(self._search(self.experiment, "tags.`mmx.role` = 'sweep'"), None)
        if found is None:
            found = self.client.create_run(self.experiment, tags={"mmx.role": "sweep"}, run_name=name)
        elif tags:
            self.client.update_run(found.info.run_id, status="RUNNING")
        self.parent = found.info.run_id
        self.client.log_batch(self.parent, tags=[RunTag(k, self.hide(v)) for k, v in tags.items()])
        return self.parent

    @asked
    def find_sweeps(self) -> list[str]:
        """List the experiments that hold a sweep."""
        return [experiment.name for experiment in self._experiments()]

    def _experiments(self) -> list[Experiment]:
        found: list[Experiment] = []
        token: str | None = None
        while True:
            page = self.client.search_experiments(
                filter_string="tags.`mmx.role` = 'sweep'",
                order_by=["last_update_time DESC"],
                page_token=token,
            )
            found += page
            token = page.token
            if not token:
                return found

    @asked
    def records(self, name: str) -> list[TrialRecord]:
        """List the latest attempt of each (point, seed): 1.5 ms a run of 130 figures.

        A run that has finished is read once: later calls ask only for what has changed since.
        """
        experiment = self._find_experiment(name)
        if experiment is None:
            return []
        best: dict[tuple[str, int], TrialRecord] = {}
        # In this order: a run that finishes in between is seen twice, and not missed.
        unfinished = self._current(experiment, "!= 'FINISHED'")
        for record in [*self._done(experiment), *reversed(unfinished)]:
            known = best.setdefault((record.point, record.seed), record)
            if (record.state == "done", record.attempt) >= (known.state == "done", known.attempt):
                best[record.point, record.seed] = record
        return list(best.values())

    def _done(self, experiment: str) -> list[TrialRecord]:
        """List the finished trials, the oldest first; only those that ended lately are asked for again."""
        known, asked = self._finished.get(experiment, ({}, 0.0))
        now = time.time()
        lately = f"= 'FINISHED' AND attributes.end_time >= {int((asked - SKEW) * 1000)}"
        found = self._current(experiment, lately if known else "= 'FINISHED'")
        known |= {record.run_id: record for record in reversed(found)}
        self._finished[experiment] = (known, now)
        return list(known.values())

    def _current(self, experiment: str, status: str) -> list[TrialRecord]:
        """List the trials of a status that were not retired, the latest first."""
        found = self._search(experiment, f"tags.`mmx.role` = 'trial' AND attributes.status {status}")
        return [self._record(run) for run in found if _counts(run)]

    @asked
    def history(self, run_id: str, metric: str) -> dict[int, float]:
        """Give a metric by step."""
        return {m.step: m.value for m in self.client.get_metric_history(run_id, metric)}

    @asked
    def find(self, run: str) -> tuple[str, TrialRecord]:
        """Find a trial by its id, the beginning of it, or its title.

        Any attempt is found by its id, by its title those that were not retired.
        """
        experiments = {e.experiment_id: e.name for e in self._experiments()}
        found = [r for r in self._named(run, list(experiments)) if r.data.tags.get("mmx.role") == "trial"]
        if not found:
            raise InputError(
                f"run '{run}' is no trial of {self.address}; give a run id, a title such as "
                f"t0001-skip-s0, or how one begins"
            )
        if len(found) > 1:
            told = ", ".join(
                f"{r.info.run_id[:8]} ({r.info.run_name}, {experiments[r.info.experiment_id]})"
                for r in found[:5]
            )
            raise InputError(f"run '{run}' is one of {len(found)}; give more of the id: {told}")
        return experiments[found[0].info.experiment_id], self._record(found[0])

    def _named(self, run: str, experiments: list[str]) -> list[Run]:
        """List the runs that a name may mean: by id, else by title, else by how one of the two begins."""
        if FULL_ID.fullmatch(run):
            with contextlib.suppress(MlflowException):
                return [self.client.get_run(run)]
        if not experiments or not TITLE.fullmatch(run):
            return []
        begins = [r for r in self._trials(experiments, f"attributes.run_name LIKE '{run}%'") if _counts(r)]
        found = [r for r in begins if r.info.run_name == run]
        if not found and PREFIX.fullmatch(run):
            found = self._trials(experiments, f"attributes.run_id LIKE '{run}%'")
        return found or [r for r in begins if (r.info.run_name or "").startswith(run)]

    def _trials(self, experiments: list[str], wanted: str) -> list[Run]:
        return list(self.client.search_runs(experiments, f"{wanted} AND tags.`mmx.role` = 'trial'"))

    @asked
    def fetch(self, run_id: str, name: str, folder: Path) -> Path:
        """Bring a file of a run into a folder."""
        if not any(file.path == name for file in self.client.list_artifacts(run_id)):
            raise InputError(f"run '{run_id}' has no file '{name}'")
        return Path(self.client.download_artifacts(run_id, name, str(folder)))

    @asked
    def open_trial(self, title: str, record: TrialRecord) -> TrialLog:
        """Begin a child run with its parameters; a record with a run id goes on with an opening cut short."""
        own = {
            "mmx.role": "trial",
            "mmx.point": record.point,
            "mmx.seed": str(record.seed),
            "mmx.cell": record.cell,
            "mmx.attempt": str(record.attempt),
            "mmx.worker": record.worker,
            "mmx.claim": record.claim,
            "mlflow.parentRunId": self.parent,
        }
        run_id = record.run_id
        if not run_id:
            now = int(self.clock() * 1000)
            run_id = self.client.create_run(self.experiment, now, tags=own, run_name=title).info.run_id
        params = [Param(key_of(k), self.hide(v)[:LONGEST_VALUE]) for k, v in record.params.items()]
        for start in range(0, len(params), 100):
            self.client.log_batch(run_id, params=params[start : start + 100])
        return self._log(run_id)

    @asked
    def running(self, name: str) -> list[TrialRecord]:
        """List the runs of trials that MLflow calls running."""
        experiment = self._find_experiment(name)
        if experiment is None:
            return []
        return self._current(experiment, "= 'RUNNING'")

    def _log(self, run_id: str) -> MlflowTrial:
        return MlflowTrial(self.client, self.connection, lambda: self.clock(), run_id)

    def reopen(self, run_id: str) -> TrialLog:
        """Go on writing to a run."""
        return self._log(run_id)

    @asked
    def retire(self, record: TrialRecord) -> None:
        """Tag a run so that it no longer counts."""
        self.client.set_tag(record.run_id, "mmx.retired", "true")
        for known, _ in self._finished.values():
            known.pop(record.run_id, None)

    @asked
    def close_sweep(
        self,
        curves: Mapping[str, Mapping[int, float]],
        artifacts: Sequence[Path],
        group_by: Sequence[str],
        state: str,
    ) -> None:
        """Log the parent's curves (what changed of them) and files, prepare the view, and end it."""
        log = self._log(self.parent)
        changed: dict[int, dict[str, float]] = {}
        for name, curve in curves.items():
            known = self.history(self.parent, key_of(name))
            for step, value in curve.items():
                if known.get(step) != value:
                    changed.setdefault(step, {})[name] = value
        for step, values in changed.items():
            log.metrics(values, step)
        for path in artifacts:
            log.artifact(path)
        self._prepare_view(group_by)
        self.client.set_terminated(self.parent, status=STATUS[state])

    @asked
    def page(self, name: str) -> str:
        """Give the prepared view of a sweep's runs."""
        experiment = self._find_experiment(name)
        return mlflow_view.page_of(experiment) if experiment else ""

    @asked
    def hint(self, name: str) -> str:
        """Say how to group and draw by hand, where the view could not be stored or MLflow is another one."""
        found = self.client.get_experiment_by_name(name)
        if found is None or (mlflow_view.TAG in found.tags and mlflow_view.is_known(mlflow.__version__)):
            return ""
        return mlflow_view.instructions(found.tags.get(mlflow_view.TAG, ""))

    def _connect(self) -> None:
        """Connect to a database by hand: MLflow itself tries for two minutes before it says why it cannot."""
        if self.connection.dialect not in DIALECTS:
            return
        if folder := self._folder():
            folder.mkdir(parents=True, exist_ok=True)
        engine = sqlalchemy.create_engine(self.connection.store)
        try:
            engine.connect().close()
        finally:
            engine.dispose()

    def _prepare_view(self, group_by: Sequence[str]) -> None:
        """Store the view, of what the latest runs measured; a server that refuses it shows its plain page."""
        search = "tags.`mmx.role` = 'trial'"
        runs = self.client.search_runs([self.experiment], search, ViewType.ACTIVE_ONLY, max_results=BATCH)
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
        """Make the experiment, or find the one that another process has just made."""
        tags = {"mmx.role": "sweep", "mlflow.experimentKind": "custom_model_development"}
        try:
            return self.client.create_experiment(name, artifact_location=self._artifacts(name), tags=tags)
        except MlflowException as error:
            found = self._find_experiment(name) if error.error_code == "RESOURCE_ALREADY_EXISTS" else None
            if found is None:
                raise
            return found

    def _folder(self) -> Path | None:
        """Give the folder that a SQLite store lies in."""
        path = self.address.removeprefix("sqlite:///")
        return Path(path).resolve().parent if path != self.address else None

    def _artifacts(self, name: str) -> str | None:
        """Give an absolute place beside the store, or in the current folder; a server decides for itself.

        MLflow's own default is relative to wherever the experiment is first used, and then fixed.
        """
        if self.connection.dialect not in DIALECTS:
            return None
        folder = self._folder() or Path.cwd()
        return (folder / "mlartifacts" / re.sub(r"[^\w.-]", "_", name)).as_uri()

    def _search(self, experiment: str, filter_string: str) -> Iterator[Run]:
        """Yield all matching runs, the latest first."""
        token: str | None = None
        while True:
            with _without_collecting():
                page = self.client.search_runs(
                    [experiment],
                    filter_string,
                    ViewType.ACTIVE_ONLY,
                    max_results=BATCH,
                    order_by=["attributes.start_time DESC"],
                    page_token=token,
                )
            yield from page
            token = page.token
            if not token:
                return

    def _record(self, run: Run) -> TrialRecord:
        tags = run.data.tags
        return TrialRecord(
            run_id=run.info.run_id,
            point=tags["mmx.point"],
            seed=int(tags["mmx.seed"]),
            state=STATES[run.info.status],
            reason=tags.get("mmx.state_reason", ""),
            cell=tags.get("mmx.cell", ""),
            attempt=int(tags.get("mmx.attempt", "1")),
            worker=tags.get("mmx.worker", ""),
            claim=tags.get("mmx.claim", ""),
            title=run.info.run_name or "",
            masks=tags.get("mmx.mask_sha", ""),
            params={sys.intern(k): sys.intern(v) for k, v in run.data.params.items()},
            metrics={sys.intern(k): v for k, v in run.data.metrics.items()},
        )


@contextlib.contextmanager
def _without_collecting() -> Iterator[None]:
    """Stop the collector for a while: it would go through a million new objects again and again.

    Listing 10,000 runs took 42 s with it and 14 s without.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _counts(run: Run) -> bool:
    return run.data.tags.get("mmx.retired") != "true"
