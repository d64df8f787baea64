"""Results and searches on PostgreSQL: nothing is lost, faults are told, the password stays where it is."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
import pytest
import sqlalchemy

from mmx.builtin.trackers import mlflow as tracker_module
from mmx.builtin.trackers import mlflow_connection
from mmx.builtin.trackers.mlflow import Mlflow
from mmx.contracts import TrialRecord
from mmx.errors import InputError, StoreError
from mmx.sweep.spool import Spooling

Record = Callable[..., TrialRecord]
Postgresql = Any
"""As the fixture makes it."""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Notice at once that a store is gone; files go to the current folder."""
    monkeypatch.setattr(mlflow_connection, "PATIENCE", 0.0)
    monkeypatch.setattr(tracker_module, "OPENING", 0.0)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def stopped(postgresql: Postgresql) -> Iterator[Callable[[], None]]:
    """Stop the database at once; it runs again after the test."""
    yield postgresql.stop
    if not postgresql.running():
        postgresql.start()


def test_trial_that_was_written_is_read_back(tracking_database: str, tmp_path: Path, record: Record) -> None:
    tracker = Mlflow(tracking_database)
    tracker.open_sweep("toy", {"mmx.objective": "loss"})
    log = tracker.open_trial("t0001", record())
    log.metrics({"train/loss": 0.5}, 0)
    log.metrics({"train/loss": 0.25}, 1)
    assert [r.state for r in tracker.running("toy")] == ["running"]
    log.end("done", "", {})
    tracker.close_sweep({"curve": {50: 1.0}}, [], ["strategy"], "done")
    (found,) = tracker.records("toy")
    assert (found.state, dict(found.params), dict(found.metrics)) == (
        "done", {"strategy": "zero_fill"}, {"train/loss": 0.25},
    )  # fmt: skip
    assert tracker.history(log.run_id, "train/loss") == {0: 0.5, 1: 0.25}


def test_files_lie_in_the_folder_where_the_sweep_was_begun(
    tracking_database: str, tmp_path: Path, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Mlflow(tracking_database)
    tracker.open_sweep("toy", {})
    (tmp_path / "notes.txt").write_text("seen", encoding="utf-8")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    tracker.open_trial("t", record()).artifact(tmp_path / "notes.txt")
    assert list((tmp_path / "mlartifacts" / "toy").rglob("notes.txt"))


def test_four_writers_at_once_lose_nothing(
    tracking_database: str, write_at_once: Callable[[str, str, int], set[str]]
) -> None:
    tracker = Mlflow(tracking_database)
    tracker.open_sweep("crowd", {})
    wanted = write_at_once(tracking_database, "crowd", 4)
    records = tracker.records("crowd")
    assert {r.point for r in records} == wanted and len(records) == len(wanted)
    assert {r.state for r in records} == {"done"}
    assert {len(tracker.history(r.run_id, "train/loss")) for r in records} == {3}


SEARCHERS = """
import os, sys
import optuna

optuna.logging.set_verbosity(optuna.logging.WARNING)
children = []
for worker in range(4):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            storage = optuna.storages.get_storage(sys.argv[1])
            sampler = optuna.samplers.RandomSampler()
            study = optuna.load_study(study_name="toy", storage=storage, sampler=sampler)
            study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=4)
            code = 0
        finally:
            os._exit(code)
    children.append(child)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


def test_four_searchers_at_once_share_one_study(study_database: str) -> None:
    study = optuna.create_study(study_name="toy", storage=study_database)
    command = [sys.executable, "-c", SEARCHERS, study_database]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(trial.number for trial in study.trials) == list(range(16))
    assert {trial.state.name for trial in study.trials} == {"COMPLETE"}


# ------------------------------------------------------------------------------------------------ faults


def test_database_that_is_gone_is_told_and_comes_back(
    tracking_database: str, record: Record, stopped: Callable[[], None], postgresql: Postgresql
) -> None:
    tracker = Mlflow(tracking_database)
    tracker.open_sweep("toy", {})
    log = tracker.open_trial("t", record())
    stopped()
    with pytest.raises(StoreError, match=rf"postgresql://127.0.0.1:{postgresql.port}/.*see that it is up"):
        log.metrics({"train/loss": 1.0}, 0)
    postgresql.start()
    log.metrics({"train/loss": 1.0}, 0)
    assert tracker.history(log.run_id, "train/loss") == {0: 1.0}


def test_trial_goes_on_while_the_database_is_gone(
    tracking_database: str,
    tmp_path: Path,
    record: Record,
    stopped: Callable[[], None],
    postgresql: Postgresql,
) -> None:
    tracker = Spooling(Mlflow(tracking_database), tmp_path / "spool", every=0.0)
    tracker.open_sweep("toy", {})
    log = tracker.open_trial("t", record())
    stopped()
    log.metrics({"train/loss": 1.0}, 0)
    log.end("done", "", {})
    assert tracker.send().left == 1
    postgresql.start()
    assert (tracker.send().sent, tracker.records("toy")[0].state) == (1, "done")
    assert tracker.history(log.run_id, "train/loss") == {0: 1.0}


def test_database_that_may_only_be_read_is_told(
    postgresql: Postgresql, tracking_database: str, record: Record
) -> None:
    tracker = Mlflow(tracking_database)
    tracker.open_sweep("toy", {})
    name = tracking_database.rpartition("/")[2]
    postgresql.command(f"alter database {name} set default_transaction_read_only = on")
    postgresql.disconnect(name)
    with pytest.raises(StoreError, match="read-only transaction; make it writable"):
        tracker.open_trial("t", record())


def test_wrong_password_is_told_at_once_and_is_in_no_message(
    postgresql: Postgresql, mlflow_template: str, capfd: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    with pytest.raises(InputError, match=r"refuses the login.*PGPASSWORD") as caught:
        Mlflow(postgresql.address(mlflow_template, password="Wr0ng/one"))  # noqa: S106 nobody's
    output = capfd.readouterr()
    assert time.monotonic() - began < 5
    for text in (str(caught.value), output.out, output.err):
        assert "Wr0ng/one" not in text and "Wr0ng%2Fone" not in text


def test_database_that_is_not_there_is_told_at_once(postgresql: Postgresql) -> None:
    began = time.monotonic()
    with pytest.raises(InputError, match='"nothing" does not exist'):
        Mlflow(postgresql.address("nothing"))
    assert time.monotonic() - began < 5


def test_older_schema_is_told_with_the_command_and_without_the_login(
    postgresql: Postgresql, mlflow_template: str
) -> None:
    name = postgresql.new_database(mlflow_template)
    postgresql.command("update alembic_version set version_num = 'c8438ff63b07'", name)
    with pytest.raises(InputError) as caught:
        Mlflow(postgresql.address(name))
    command = rf"\n  mlflow db upgrade postgresql(\+\w+)?://127.0.0.1:{postgresql.port}/{name}\n"
    assert re.search(command, str(caught.value))
    assert "user:password@ after the '//'" in str(caught.value)
    assert postgresql.user not in str(caught.value)


def test_password_is_in_no_output_and_no_result(
    postgresql: Postgresql,
    tracking_database: str,
    tmp_path: Path,
    record: Record,
    stopped: Callable[[], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    tracker = Mlflow(tracking_database)
    tracker.open_sweep("toy", {"told": tracking_database})
    spool = Spooling(tracker, tmp_path / "spool", every=0.0)
    spool.open_sweep("toy", {})
    log = spool.open_trial("t", record(params={"store": tracking_database}))
    log.end("failed", f"could not reach {tracking_database}", {"told": postgresql.password})
    stopped()
    told = []
    for call in (lambda: tracker.records("toy"), lambda: Mlflow(f"{tracking_database}?connect_timeout=2")):
        with pytest.raises(StoreError) as caught:
            call()
        told.append(str(caught.value))
    log = spool.open_trial("t2", record("other", params={"store": tracking_database}))
    log.end("failed", f"could not reach {tracking_database}", {})
    told += [spool.send().reason, *(p.read_text(encoding="utf-8") for p in spool.folder.rglob("*.jsonl"))]
    postgresql.start()
    engine = sqlalchemy.create_engine(postgresql.driven_address(tracking_database.rpartition("/")[2]))
    with engine.connect() as connection:
        for table in ("params", "tags", "runs", "experiments", "experiment_tags"):
            rows = connection.execute(sqlalchemy.text(f"select * from {table}"))  # noqa: S608 own names
            told.append(json.dumps([list(row) for row in rows], default=str))
    engine.dispose()
    output = capfd.readouterr()
    for text in (*told, output.out, output.err):
        for secret in (postgresql.password, quote(postgresql.password, safe="")):
            assert secret not in text
    assert all(told[:3]) and any('"store": "postgresql://127' in text for text in told)
