"""MLflow's server takes rows that lack modalities, and answers what cannot be read with 400."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from mmx.runs import open_run
from mmx.runs.export import export_run, open_exported

START = 180.0
"""Seconds that a server may take to start on a busy machine."""
ROW = [round(0.1 * i, 1) for i in range(16)]
OTHER = [1.0] * 16


class Answer(NamedTuple):
    """What the server said."""

    status: int
    body: Any

    @property
    def rows(self) -> pd.DataFrame:
        """The predictions."""
        assert self.status == 200, self.body
        return pd.DataFrame(self.body["predictions"])


class Server(NamedTuple):
    """A server, and what it serves."""

    port: int
    folder: Path

    def ask(self, body: Any, path: str = "invocations", kind: str = "application/json") -> Answer:
        """Ask, and read whatever comes back."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        url = f"http://127.0.0.1:{self.port}/{path}"
        request = urllib.request.Request(url, data, {"Content-Type": kind})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
                return Answer(answer.status, json.loads(answer.read().strip() or b"null"))
        except urllib.error.HTTPError as error:
            return Answer(error.code, json.loads(error.read()))

    def records(self, *rows: Any) -> Answer:
        """Ask with rows as records."""
        return self.ask({"dataframe_records": list(rows)})

    def expect(self, table: dict[str, Any]) -> pd.DataFrame:
        """Say what the model itself predicts."""
        return open_exported(self.folder).predict(
            pd.DataFrame({name: pd.Series(cells, dtype=object) for name, cells in table.items()})
        )


@pytest.fixture(scope="module")
def server(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    record = next(r for r in finished.tracker.records("toy") if r.params["strategy"] == "mask_token")
    folder = tmp_path_factory.mktemp("serving")
    export_run(open_run(finished.tracker, record.run_id), finished.plan.bench, folder / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(folder / "model")]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, "PATH": path},
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            _wait(port, process, folder / "log")
            yield Server(port, folder / "model")
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(port: int, process: Any, log: Path) -> None:
    until = time.monotonic() + START
    while time.monotonic() < until and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise AssertionError(log.read_text(encoding="utf-8"))


def test_rows_that_lack_either_modality_are_predicted_as_by_the_model(server: Server) -> None:
    found = server.records({"m0": ROW, "m1": OTHER}, {"m0": ROW, "m1": None}, {"m0": None, "m1": OTHER}).rows
    expected = server.expect({"m0": [ROW, ROW, None], "m1": [OTHER, None, OTHER]})
    assert list(found["present"]) == ["m0.m1", "m0", "m1"]
    assert list(found["prediction"]) == list(expected["prediction"])
    names = [f"output_{i}" for i in range(4)]
    np.testing.assert_allclose(found[names], expected[names], atol=1e-6)


def test_null_and_a_missing_column_say_the_same(server: Server) -> None:
    null = server.records({"m0": ROW, "m1": None}, {"m0": OTHER, "m1": None}).rows
    absent = server.records({"m0": ROW}, {"m0": OTHER}).rows
    some = server.records({"m0": ROW}, {"m0": OTHER, "m1": ROW}).rows  # in one row of two
    pd.testing.assert_frame_equal(null, absent)
    assert list(some["present"]) == ["m0", "m0.m1"]
    assert some["output_0"][0] == pytest.approx(null["output_0"][0], abs=1e-6)


def test_every_form_of_a_request_says_the_same(server: Server) -> None:
    records = [{"id": "a", "m0": ROW, "m1": OTHER}, {"id": "b", "m0": None, "m1": ROW}]
    split = {"columns": ["id", "m0", "m1"], "data": [["a", ROW, OTHER], ["b", None, ROW]]}
    columns = {"id": ["a", "b"], "m0": [ROW, None], "m1": [OTHER, ROW]}
    forms = {"dataframe_records": records, "dataframe_split": split, "inputs": columns}
    first, *others = [server.ask({name: rows}).rows for name, rows in forms.items()]
    others.append(server.ask({"inputs": records}).rows)
    assert list(first["id"]) == ["a", "b"] and list(first["present"]) == ["m0.m1", "m1"]
    for other in others:
        pd.testing.assert_frame_equal(first, other)


def test_instances_serve_for_rows_that_lack_the_same(server: Server) -> None:
    complete = server.ask({"instances": [{"m0": ROW, "m1": OTHER}, {"m0": OTHER, "m1": ROW}]})
    assert list(complete.rows["present"]) == ["m0.m1", "m0.m1"]
    assert list(server.ask({"instances": [{"m0": ROW}, {"m0": OTHER}]}).rows["present"]) == ["m0", "m0"]
    # MLflow makes columns arrays before the model sees them, so a null among lists ends there.
    assert server.ask({"instances": [{"m0": ROW}, {"m0": None}]}).status == 400


def test_row_without_any_modality_is_refused_by_its_number(server: Server) -> None:
    answer = server.records({"m0": ROW, "m1": None}, {"m0": None, "m1": None})
    assert answer.status == 400
    assert "row 1: no modality at all; a prediction needs at least one of m0, m1" in answer.body["message"]


BAD = {
    "too short": [1.0, 2.0],
    "text": "loud",
    "text in a list": ["1"] * 16,
    "path": "../../secret.npy",
    "infinite": [float("inf")] * 16,
    "NaN": [float("nan")] * 16,
    "too large": [1e300] * 16,
    "ragged": [[1.0], [1.0, 2.0]],
    "mapping": {"a": 1},
    "truth": True,
}


@pytest.mark.parametrize("case", BAD)
def test_malformed_row_is_refused_and_the_server_lives_on(server: Server, case: str) -> None:
    answer = server.records({"m0": ROW, "m1": OTHER}, {"m0": BAD[case], "m1": OTHER})
    assert answer.status == 400 and "row 1, column 'm0': " in answer.body["message"]
    assert "Traceback" not in json.dumps(answer.body)
    assert server.records({"m0": ROW}).status == 200


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        {},
        {"dataframe_records": []},
        {"dataframe_records": 3},
        {"dataframe_records": [{"x": ROW}]},
    ],
    ids=str,
)
def test_request_that_is_none_is_refused(server: Server, body: Any) -> None:
    assert server.ask(body).status == 400
    assert server.ask(None, "ping").status == 200


def test_requests_at_one_time_do_not_see_each_other(server: Server) -> None:
    tables = [{"m0": ROW}, {"m1": OTHER}, {"m0": OTHER, "m1": ROW}, {"m0": None}] * 5
    alone = [server.records(row) for row in tables[:4]]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(server.records, tables))
    assert [a.status for a in alone] == [200, 200, 200, 400]
    for answer, expected in zip(together, alone * 5, strict=True):
        assert answer == expected
