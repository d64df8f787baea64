"""Every fault of a store is told: which store, without its login, what happened, and what to do."""

import errno
import shutil
import socket
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import sqlalchemy
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import Pool

from mmx.builtin.trackers import mlflow as tracker_module
from mmx.builtin.trackers.mlflow import Mlflow
from mmx.builtin.trackers.mlflow_connection import Connection
from mmx.cli import doctor
from mmx.contracts import TrialRecord
from mmx.errors import InputError, MmxError, StoreError

Record = Callable[..., TrialRecord]


@pytest.fixture
def address(blank_stores: Path, tmp_path: Path) -> str:
    """An empty SQLite store of its own."""
    shutil.copy(blank_stores / "mlflow.db", tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def pragma() -> Iterator[Callable[[str], None]]:
    """Have every new connection of this process begin with a PRAGMA."""
    added: list[Any] = []

    def set_to(statement: str) -> None:
        def begin(connection: Any, _: Any) -> None:
            connection.execute(f"PRAGMA {statement}")

        sqlalchemy.event.listen(Pool, "connect", begin)
        added.append(begin)

    yield set_to
    for begin in added:
        sqlalchemy.event.remove(Pool, "connect", begin)


# ------------------------------------------------------------------------------------------ SQLite's faults


def test_full_store_is_told(address: str, record: Record, pragma: Callable[[str], None]) -> None:
    pragma("max_page_count = 1")  # SQLite takes the present size where that is more
    tracker = Mlflow(address)
    with pytest.raises(StoreError, match=r"mlflow.db'.*database or disk is full; free space there"):
        tracker.open_sweep("toy", {f"tag-{number}": "x" * 5000 for number in range(50)})


def test_store_that_may_only_be_read_is_told(address: str, pragma: Callable[[str], None]) -> None:
    pragma("query_only = on")
    tracker = Mlflow(address)
    with pytest.raises(StoreError, match=r"attempt to write a readonly database; make it writable"):
        tracker.open_sweep("toy", {})


@pytest.mark.parametrize(
    ("happened", "advice"),
    [
        ("disk I/O error", "check the disk"),
        ("database is locked", "take fewer, or PostgreSQL"),
        ("unable to open database file", "see that it is up"),
    ],
)
def test_passing_fault_of_sqlite_is_told(address: str, happened: str, advice: str) -> None:
    tracker = Mlflow(address)

    def fail(*_: Any, **__: Any) -> None:
        error = OperationalError("insert", {}, sqlite3.OperationalError(happened))
        raise MlflowException(error) from error

    tracker.client.set_tag = fail
    with pytest.raises(StoreError, match=f"{happened}; .*{advice}"):
        tracker.retire(TrialRecord("run", "point", 0, "done"))


def test_file_that_is_no_store_is_told_as_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("these are notes, not a database" * 100, encoding="utf-8")
    with pytest.raises(InputError, match=r"file is not a database; write sqlite:///"):
        Mlflow(f"sqlite:///{tmp_path}/notes.txt")


def test_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be reached or written"):
        Mlflow(f"sqlite:///{tmp_path}/file/folder/mlflow.db")


def test_older_schema_is_told_with_the_exact_command(address: str) -> None:
    with sqlite3.connect(address.removeprefix("sqlite:///")) as connection:
        connection.execute("update alembic_version set version_num = 'c8438ff63b07'")
    with pytest.raises(InputError) as caught:
        Mlflow(address)
    assert f"\n  mlflow db upgrade {address}\n" in str(caught.value)
    assert "stop all writers, back it up" in str(caught.value)
    assert "password" not in str(caught.value)


def test_doctor_tells_an_older_schema(address: str) -> None:
    with sqlite3.connect(address.removeprefix("sqlite:///")) as connection:
        connection.execute("update alembic_version set version_num = 'c8438ff63b07'")
    ((state, _, told),) = doctor._store(address)
    assert state == "problem" and f"mlflow db upgrade {address}" in told


# ------------------------------------------------------------------------------------------------- files


@pytest.fixture
def small_artifacts(address: str) -> Iterator[Path]:
    """A disk of 64 KiB where a sweep's files go."""
    place = Path(address.removeprefix("sqlite:///")).parent / "mlartifacts"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no small disk can be mounted here: that takes root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_full_disk_of_files_is_told(
    address: str, small_artifacts: Path, tmp_path: Path, record: Record
) -> None:
    tracker = Mlflow(address)
    tracker.open_sweep("toy", {})
    log = tracker.open_trial("t", record())
    big = tmp_path / "big.bin"
    big.write_bytes(bytes(10**6))
    with pytest.raises(StoreError, match=r"No space left on device; free space"):
        log.artifact(big)
    log.end("done", "", {})
    assert tracker.records("toy")[0].state == "done"


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_files_that_may_not_be_written_are_told(
    address: str, tmp_path: Path, record: Record, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Mlflow(address)
    tracker.open_sweep("toy", {})
    log = tracker.open_trial("t", record())
    (tmp_path / "notes.txt").touch()

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, "Read-only file system" if number == errno.EROFS else "Permission denied")

    monkeypatch.setattr(shutil, "copyfileobj", fail)
    with pytest.raises(StoreError, match=r"make it writable"):
        log.artifact(tmp_path / "notes.txt")


def test_folder_of_files_that_became_something_else_is_told(
    address: str, tmp_path: Path, record: Record
) -> None:
    tracker = Mlflow(address)
    tracker.open_sweep("toy", {})
    log = tracker.open_trial("t", record())
    shutil.rmtree(tmp_path / "mlartifacts", ignore_errors=True)
    (tmp_path / "mlartifacts").touch()
    with pytest.raises(StoreError):
        log.artifact(tmp_path / "mlflow.db")


# ------------------------------------------------------------------------------------- callers' mistakes


def test_file_that_is_not_there_is_the_callers_mistake(address: str, tmp_path: Path, record: Record) -> None:
    tracker = Mlflow(address)
    tracker.open_sweep("toy", {})
    log = tracker.open_trial("t", record())
    with pytest.raises(FileNotFoundError):
        log.artifact(tmp_path / "nothing")


def test_run_that_is_not_there_is_no_fault_of_the_store(address: str) -> None:
    with pytest.raises(MmxError, match="nothing") as caught:
        Mlflow(address).reopen("nothing").end("done", "", {})
    assert not isinstance(caught.value, StoreError)


@pytest.mark.parametrize("wrong", ["oracle://host/database", "http://:port", "sqlite3:///mlflow.db"])
def test_address_of_no_store_is_the_users_mistake(wrong: str) -> None:
    with pytest.raises(MmxError) as caught:
        Mlflow(wrong)
    assert not isinstance(caught.value, StoreError) and wrong in str(caught.value)


def test_driver_that_is_not_installed_is_told_with_how_to_get_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(InputError, match=r"needs 'cymysql', not installed here: pip install cymysql"):
            Mlflow(f"mysql+cymysql://127.0.0.1:{port}/database")


def test_two_processes_that_begin_a_sweep_at_once_share_it(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Mlflow(address), Mlflow(address)
    find, blind = second._find_experiment, [True]

    def find_too_early(name: str) -> str | None:
        return None if blind and blind.pop() else find(name)

    monkeypatch.setattr(second, "_find_experiment", find_too_early)
    assert first.open_sweep("toy", {}) == second.open_sweep("toy", {})


# ------------------------------------------------------------------------------------------------ secrets

SECRET = "Pa55/w@rd:x"  # noqa: S105 nobody's
ADDRESSES = {
    "postgresql://me:Pa55%2Fw%40rd%3Ax@host/db": "postgresql://host/db",
    "postgresql://me:Pa55/w@rd:x@host/db": "postgresql://host/db",
    "postgresql+psycopg2://host/db?user=me&password=Pa55%2Fw%40rd%3Ax": "postgresql+psycopg2://host/db",
    "http://me:Pa55%2Fw%40rd%3Ax@host:5000": "http://host:5000",
    "https://host/mlflow?token=Pa55/w@rd:x": "https://host/mlflow",
    "mssql+pyodbc://?odbc_connect=UID%3Dme%3BPWD%3DPa55%2Fw%40rd%3Ax": "mssql+pyodbc://",
}


@pytest.mark.parametrize(("store", "shown"), ADDRESSES.items(), ids=ADDRESSES.values())
def test_secrets_of_an_address_are_in_no_text_about_it(store: str, shown: str) -> None:
    connection = Connection(store)
    assert connection.address == shown
    for form in (SECRET, "Pa55%2Fw%40rd%3Ax", repr(SECRET), store):
        hidden = connection.hide(f"cannot connect to {store}: bad login me:{form}@host, password={form}")
        assert SECRET not in hidden and "Pa55%2F" not in hidden


@pytest.mark.parametrize(
    "plain",
    ["sqlite:////a/folder@home/x.db", "http://host:5000", "postgresql://host:5432/db", "sqlite:///x.db"],
)
def test_address_without_secrets_is_shown_as_it_is(plain: str) -> None:
    assert Connection(plain).address == plain


def test_password_that_is_a_common_word_garbles_no_text() -> None:
    connection = Connection("postgresql://mlflow:mlflow@host/mlflow")
    assert connection.hide("no table in mlflow") == "no table in mlflow"
    assert "mlflow:mlflow" not in connection.hide("login mlflow:mlflow@host failed")


def test_fault_hides_the_address_from_tracebacks(address: str) -> None:
    store = "http://me:Pa55word@host:5000"
    connection = Connection(store)
    connection.door = None

    def ask() -> None:
        with connection.asked():
            raise requests.ConnectionError(f"cannot reach {store}")

    with pytest.raises(StoreError) as caught:
        ask()
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


# ------------------------------------------------------------------------------------------------ records


def test_records_asked_again_have_what_changed_since(address: str, record: Record) -> None:
    tracker, other = Mlflow(address), Mlflow(address)
    tracker.open_sweep("toy", {})
    other.open_sweep("toy", {})
    first, second = (tracker.open_trial("t", record(name)) for name in ("first", "second"))
    first.end("done", "", {})
    states = [{r.point: r.state for r in tracker.records("toy")}]
    second.end("failed", "no reason", {})
    other.open_trial("t", record("second", attempt=2)).end("done", "", {})
    other.open_trial("t", record("third")).end("missing", "stopped", {})
    states.append({r.point: r.state for r in tracker.records("toy")})
    tracker.retire(next(r for r in tracker.records("toy") if r.point == "first"))
    states.append({r.point: r.state for r in tracker.records("toy")})
    assert states == [
        {"first": "done", "second": "running"},
        {"first": "done", "second": "done", "third": "missing"},
        {"second": "done", "third": "missing"},
    ]


def test_finished_trials_are_read_once(address: str, record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = Mlflow(address)
    tracker.open_sweep("toy", {})
    for name in ("first", "second"):
        tracker.open_trial("t", record(name)).end("done", "", {})
    before = tracker.records("toy")
    monkeypatch.setattr(tracker_module, "SKEW", -60.0)
    read: list[int] = []
    search = tracker.client.search_runs

    def counting(*values: Any, **named: Any) -> Any:
        found = search(*values, **named)
        read.append(len(found))
        return found

    tracker.client.search_runs = counting
    assert tracker.records("toy") == before and sum(read) == 0 < len(read)


def test_done_trial_stands_before_later_ones_that_are_not(address: str, record: Record) -> None:
    tracker = Mlflow(address)
    tracker.open_sweep("toy", {})
    tracker.open_trial("t", record(attempt=1)).end("done", "", {})
    tracker.open_trial("t", record(attempt=2)).end("failed", "", {})
    assert [(r.state, r.attempt) for r in tracker.records("toy")] == [("done", 1)]


def test_latest_of_several_attempts_stands_for_its_trial(address: str, record: Record) -> None:
    tracker = Mlflow(address)
    tracker.open_sweep("toy", {})
    for attempt in (1, 2, 3):
        tracker.open_trial("t", record(attempt=attempt)).end("failed", f"reason {attempt}", {})
    assert [(r.attempt, r.reason) for r in tracker.records("toy")] == [(3, "reason 3")]
