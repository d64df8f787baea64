"""Results over HTTP: all that a tracker does works through MLflow's server; a server's faults are told."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from mlflow import MlflowClient

from mmx.builtin.trackers import mlflow_connection
from mmx.builtin.trackers.mlflow import Mlflow
from mmx.contracts import TrialRecord
from mmx.errors import InputError, MmxError, StoreError
from mmx.sweep.spool import Spooling

Record = Callable[..., TrialRecord]
MlflowServer = Any
Relay = Any
"""As the fixtures make them."""


def finish(tracker: Any, record: TrialRecord, folder: Path) -> str:
    """Run a trial's calls from opening to end, and give its run."""
    log = tracker.open_trial("t0001", record)
    log.metrics({"train/loss": 0.5}, 0)
    log.metrics({"train/loss": 0.25}, 1)
    path = folder / "notes.txt"
    path.write_text("what was seen", encoding="utf-8")
    log.artifact(path)
    log.end("done", "", {"mmx.mask_sha": "abc"})
    return str(log.run_id)


def test_trial_that_was_written_over_http_is_read_back(
    mlflow_server: MlflowServer, tmp_path: Path, record: Record
) -> None:
    tracker = Mlflow(mlflow_server.address)
    tracker.open_sweep("round-trip", {"mmx.objective": "loss"})
    run = finish(tracker, record(), tmp_path)
    (found,) = tracker.records("round-trip")
    assert (found.run_id, found.state, found.params["strategy"]) == (run, "done", "zero_fill")
    assert tracker.history(run, "train/loss") == {0: 0.5, 1: 0.25}
    assert tracker.running("round-trip") == []


def test_files_of_a_trial_go_through_the_server(
    mlflow_server: MlflowServer, tmp_path: Path, record: Record
) -> None:
    tracker = Mlflow(mlflow_server.address)
    tracker.open_sweep("files", {})
    run = finish(tracker, record(), tmp_path)
    got = MlflowClient(mlflow_server.address).download_artifacts(run, "notes.txt", str(tmp_path))
    assert Path(got).read_text(encoding="utf-8") == "what was seen"
    assert list(mlflow_server.artifacts.rglob("notes.txt"))


def test_sweep_is_closed_over_http_with_its_curves_files_and_view(
    mlflow_server: MlflowServer, tmp_path: Path, record: Record
) -> None:
    tracker = Mlflow(mlflow_server.address)
    parent = tracker.open_sweep("closed", {"mmx.objective": "loss"})
    finish(tracker, record(), tmp_path)
    tracker.close_sweep({"curve": {0: 1.0, 50: 0.5}}, [tmp_path / "notes.txt"], ["strategy"], "done")
    client = MlflowClient(mlflow_server.address)
    assert tracker.history(parent, "curve") == {0: 1.0, 50: 0.5}
    assert client.get_run(parent).info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(parent)] == ["notes.txt"]
    assert "mlflow.sharedViewState.robustness" in client.get_experiment_by_name("closed").tags
    assert "/experiments/" in tracker.page("closed") and "closed" in tracker.find_sweeps()


def test_eight_writers_at_once_lose_nothing(
    mlflow_server: MlflowServer, write_at_once: Callable[[str, str], set[str]]
) -> None:
    tracker = Mlflow(mlflow_server.address)
    tracker.open_sweep("crowd", {})
    wanted = write_at_once(mlflow_server.address, "crowd")
    records = tracker.records("crowd")
    assert {r.point for r in records} == wanted and len(records) == len(wanted)
    assert {r.state for r in records} == {"done"} and all(len(r.metrics) == 2 for r in records)
    assert {len(tracker.history(r.run_id, "train/loss")) for r in records} == {3}
    client = MlflowClient(mlflow_server.address)
    assert all(len(client.list_artifacts(r.run_id)) == 1 for r in records)


# ------------------------------------------------------------------------------------------------ logins


@pytest.mark.parametrize("place", ["address", "environment"])
def test_login_is_taken_from_the_address_or_the_environment(
    relay: Relay, tmp_path: Path, record: Record, place: str, password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay.login = f"someone:{password}"
    address = relay.address
    if place == "address":
        address = f"http://someone:{quote(password, safe='')}@127.0.0.1:{relay.port}"
    else:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "someone")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    tracker = Mlflow(address)
    tracker.open_sweep(f"login-{place}", {})
    run = finish(tracker, record(), tmp_path)
    assert [file.path for file in tracker.client.list_artifacts(run)] == ["notes.txt"]


def test_login_that_is_refused_is_told_with_where_it_goes(relay: Relay) -> None:
    relay.login = "someone:else"
    with pytest.raises(InputError, match=r"refuses the login.*MLFLOW_TRACKING_PASSWORD"):
        Mlflow(relay.address)


def test_password_of_a_server_is_in_no_output_and_no_result(
    relay: Relay,
    tmp_path: Path,
    record: Record,
    password: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mlflow_connection, "PATIENCE", 0.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    relay.login = f"someone:{password}"
    secrets = (password, quote(password, safe=""))
    tracker = Mlflow(f"http://someone:{secrets[1]}@127.0.0.1:{relay.port}")
    tracker.open_sweep("secret", {"told": f"asked {tracker.connection.store}"})
    run = finish(tracker, record(params={"store": tracker.connection.store}), tmp_path)
    spool = Spooling(tracker, tmp_path / "spool", every=0.0)
    told = []
    relay.fault = 500
    spool.open_trial("t", record(params={"store": tracker.connection.store})).end("failed", password, {})
    told.append(spool.send().reason)
    relay.fault, relay.login = None, "someone else"
    with pytest.raises(MmxError) as refused:
        tracker.records("secret")
    relay.login = ""
    found = tracker.client.get_run(run)
    parent = tracker.client.get_run(tracker.parent)
    kept = [path.read_text(encoding="utf-8") for path in spool.folder.rglob("*.jsonl")]
    output = capfd.readouterr()
    texts = [*told, str(refused.value), str(found.to_dictionary()), str(parent.to_dictionary()), *kept]
    for text in (*texts, output.out, output.err):
        assert not any(secret in text for secret in secrets), text
    assert all(told) and kept and "127.0.0.1" in found.data.params["store"]


# --------------------------------------------------------------------------------------- faults of servers


def test_server_that_fails_for_a_moment_is_asked_again(
    relay: Relay, tmp_path: Path, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Mlflow(relay.address)
    tracker.open_sweep("blip", {})
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    relay.fault, relay.faults_left = 503, 3
    log = tracker.open_trial("t", record())
    log.end("done", "", {})
    assert tracker.records("blip")[0].state == "done" and sum(waits) > 5


def test_server_that_keeps_failing_is_given_up_within_twenty_seconds(
    relay: Relay, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Mlflow(relay.address)
    tracker.open_sweep("failing", {})
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    relay.fault = 502
    with pytest.raises(
        StoreError, match=rf"{relay.address}.*too many 502 error responses.*see that it is up"
    ):
        tracker.open_trial("t", record())
    assert 5 < sum(waits) < 20


class FakeTime:
    """A clock that moves only while something sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """Tell the time."""
        return self.now

    time = monotonic

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


def test_server_that_is_gone_is_noticed_within_twenty_seconds_and_then_at_once(
    record: Record, mlflow_server: MlflowServer, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Mlflow(mlflow_server.address)
    tracker.open_sweep("gone", {})
    tracker.connection.door = ("127.0.0.1", closed_port)
    clock = FakeTime()
    tracker.connection.answered = clock.now - 60
    monkeypatch.setattr(mlflow_connection, "time", clock)
    with pytest.raises(StoreError, match="Connection refused; see that it is up"):
        tracker.open_trial("t", record())
    noticed = clock.now - 1000
    with pytest.raises(StoreError):
        tracker.open_trial("t", record())
    assert 5 < noticed < 20 and clock.now - 1000 - noticed < 1


def test_trial_goes_on_while_the_server_is_gone_and_is_whole_once_it_is_back(
    mlflow_server: MlflowServer, tmp_path: Path, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_connection, "PATIENCE", 0.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker = Spooling(Mlflow(mlflow_server.address), tmp_path / "spool", every=0.0)
    tracker.open_sweep("outage", {})
    first = tracker.open_trial("t1", record("first"))
    first.metrics({"train/loss": 1.0}, 0)
    mlflow_server.stop()
    first.metrics({"train/loss": 0.5}, 1)
    first.end("done", "", {})
    run = finish(tracker, record("second"), tmp_path)
    assert run.startswith("spooled-")
    mlflow_server.start()
    third = tracker.open_trial("t3", record("third"))
    assert not third.run_id.startswith("spooled-")
    records = {r.point: r for r in tracker.records("outage")}
    assert {point: r.state for point, r in records.items()} == {
        "first": "done", "second": "done", "third": "running",
    }  # fmt: skip
    assert tracker.history(first.run_id, "train/loss") == {0: 1.0, 1: 0.5}
    assert tracker.tracker.client.list_artifacts(records["second"].run_id)[0].path == "notes.txt"


DIE = """
import os, signal, sys
from pathlib import Path
from mmx.builtin.trackers.mlflow import Mlflow
from mmx.sweep.spool import Spooling

tracker = Mlflow(sys.argv[1])
calls = 0

def dying(method):
    def call(*values, **named):
        global calls
        calls += 1
        done = method(*values, **named)
        if calls == 3: os.kill(os.getpid(), signal.SIGKILL)
        return done
    return call

for name in ("create_run", "log_batch", "set_terminated"):
    setattr(tracker.client, name, dying(getattr(tracker.client, name)))
Spooling(tracker, Path(sys.argv[2])).send()
"""


def test_sender_that_is_killed_loses_and_doubles_nothing(
    relay: Relay, tmp_path: Path, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker = Mlflow(relay.address)
    spool = Spooling(tracker, tmp_path / "spool", every=0.0)
    spool.open_sweep("killed", {})
    relay.fault = 500
    finish(spool, record("point"), tmp_path)
    relay.fault = None
    died = subprocess.run(
        [sys.executable, "-c", DIE, relay.address, str(spool.folder)], check=False, capture_output=True
    )
    assert died.returncode == -9, died.stderr
    sent = spool.send()
    assert (sent.sent, sent.left) == (1, 0)
    (run,) = tracker.client.search_runs([tracker.experiment], "tags.`mmx.role` = 'trial'")
    history = tracker.client.get_metric_history(run.info.run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(0, 0.5), (1, 0.25)]
    assert run.info.status == "FINISHED" and run.data.params == {"strategy": "zero_fill"}
