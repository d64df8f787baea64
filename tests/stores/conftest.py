"""Real stores to write to: a private PostgreSQL, and an MLflow server that can go away and come back."""

import contextlib
import http.server
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests
import sqlalchemy

from mmx.builtin.trackers.mlflow import Mlflow
from mmx.contracts import TrialRecord
from mmx.sweep import spool as spool_module

PASSWORD = "Pa/ss:w@rd%42 &?"  # noqa: S105 of a database that lives for one test run
HEADERS = ("authorization", "content-type", "accept")


def free_port() -> int:
    """Find a port of this machine that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_until(answers: Callable[[], Any], seconds: float, what: str) -> None:
    """Try until it no longer raises OSError."""
    until = time.monotonic() + seconds
    while True:
        try:
            answers()
        except OSError:
            if time.monotonic() > until:
                pytest.fail(f"{what} did not start within {seconds:.0f} s")
            time.sleep(0.05)
        else:
            return


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a spool with `every=0` try again at once, however long the last try took on this machine."""
    monkeypatch.setattr(spool_module, "SHARE", 0.0)


# -------------------------------------------------------------------------------------------- PostgreSQL


class Postgresql:
    """A PostgreSQL of its own: loopback, a password for everyone, no fsync."""

    user = "someone"
    password = PASSWORD

    def __init__(self, binaries: Path, folder: Path) -> None:
        self.binaries = binaries
        self.folder = folder
        self.port = free_port()
        self.made = 0
        account = "postgres" if "postgres" in {entry.pw_name for entry in pwd.getpwall()} else "nobody"
        # PostgreSQL refuses to run as root.
        self.account = account if os.geteuid() == 0 else None

    def prepare(self) -> None:
        """Make the data folder."""
        secret = self.folder / "password"
        secret.write_text(self.password, encoding="utf-8")
        if self.account:
            for path in (self.folder, secret):
                shutil.chown(path, self.account)
        login = ["--username", self.user, "--pwfile", str(secret), "--auth", "scram-sha-256"]
        self._call("initdb", "--pgdata", "data", "--encoding", "UTF8", "--locale", "C", "--no-sync", *login)

    def start(self) -> None:
        """Start, and wait until it takes connections."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "port": self.port,
            "fsync": "off",
            "max_connections": 60,
            "shared_buffers": "32MB",
        }
        options = " ".join(f"-c {name}='{value}'" for name, value in settings.items())
        self._call("pg_ctl", "start", "--pgdata", "data", "--wait", "--log", "log", "--options", options)

    def stop(self) -> None:
        """Stop at once, as a crash would."""
        self._call("pg_ctl", "stop", "--pgdata", "data", "--mode", "immediate")

    def running(self) -> bool:
        """Tell whether it runs."""
        return (self.folder / "data" / "postmaster.pid").exists()

    def address(self, database: str, password: str | None = None) -> str:
        """Give the address of a database, with the login in it."""
        secret = quote(self.password if password is None else password, safe="")
        return f"postgresql://{self.user}:{secret}@127.0.0.1:{self.port}/{database}"

    def driven_address(self, database: str) -> str:
        """Give the address of a database with the driver that is installed."""
        driver = "psycopg" if find_spec("psycopg") else "psycopg2"
        return self.address(database).replace("postgresql:", f"postgresql+{driver}:", 1)

    def command(self, statement: str, database: str = "postgres") -> None:
        """Run one SQL statement."""
        engine = sqlalchemy.create_engine(self.driven_address(database), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text(statement))
        engine.dispose()

    def new_database(self, template: str = "template0") -> str:
        """Make a database as a copy of another, and give its name."""
        self.made += 1
        name = f"database_{self.made}"
        self.disconnect(template)
        self.command(f"create database {name} template {template}")
        return name

    def disconnect(self, database: str) -> None:
        """End all connections to a database."""
        own = f"where datname = '{database}'"
        self.command(f"select pg_terminate_backend(pid) from pg_stat_activity {own}")  # noqa: S608 own names

    def _call(self, program: str, *options: str) -> None:
        done = subprocess.run(
            [self.binaries / program, *options],
            cwd=self.folder,
            user=self.account,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{program}: {done.stderr}"


def postgresql_binaries() -> Path | None:
    """Find the folder of PostgreSQL's programs."""
    on_path = shutil.which("pg_ctl")
    candidates = [Path(on_path).resolve().parent] if on_path else []
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((c for c in candidates if (c / "initdb").exists() and (c / "pg_ctl").exists()), None)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Postgresql]:
    """A running PostgreSQL."""
    if not (find_spec("psycopg") or find_spec("psycopg2")):
        pytest.skip("no PostgreSQL driver: pip install 'mmx[postgres]'")
    binaries = postgresql_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL here: no pg_ctl on PATH or in /usr/lib/postgresql/*/bin")
    # Not pytest's own folder: another account could not enter that.
    folder = Path(tempfile.mkdtemp(prefix="mmx-postgresql-"))
    server = Postgresql(binaries, folder)
    try:
        server.prepare()
        server.start()
        yield server
    finally:
        if server.running():
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def mlflow_template(postgresql: Postgresql) -> str:
    """A database with MLflow's schema: making it takes long, copying it does not."""
    name = postgresql.new_database()
    Mlflow(postgresql.address(name))
    return name


@pytest.fixture
def tracking_database(postgresql: Postgresql, mlflow_template: str) -> str:
    """The address of an empty result store on PostgreSQL, login and all."""
    return postgresql.address(postgresql.new_database(mlflow_template))


@pytest.fixture
def study_database(postgresql: Postgresql) -> str:
    """The address of an empty database on PostgreSQL for a search store."""
    return postgresql.driven_address(postgresql.new_database())


# ------------------------------------------------------------------------------------------ MLflow server


class MlflowServer:
    """MLflow's server over a SQLite store of its own; artifacts go through it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.artifacts = folder / "artifacts"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start on the same port as before, and wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        command += ["--artifacts-destination", str(self.artifacts), "--host", "127.0.0.1"]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, env={**os.environ, **quiet}, stdout=log, stderr=log, start_new_session=True
            )
        wait_until(lambda: requests.get(f"{self.address}/health", timeout=5), 60, "the MLflow server")

    def stop(self) -> None:
        """Kill it."""
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="session")
def _mlflow_server(blank_stores: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(blank_stores / "mlflow.db", folder / "mlflow.db")
    server = MlflowServer(folder)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def mlflow_server(_mlflow_server: MlflowServer) -> Iterator[MlflowServer]:
    """A running server, shared by the tests; one that a test stopped runs again for the next."""
    yield _mlflow_server
    if _mlflow_server.process is None:
        _mlflow_server.start()


class Relay:
    """Stands between client and server: asks for a login, or answers with an error instead."""

    def __init__(self, server: str) -> None:
        self.server = server
        self.login = ""
        self.fault: int | None = None
        self.faults_left = -1
        """How many answers are faults; below zero: all."""
        self.asked = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                outer.answer(self)

            do_GET = do_POST = do_PUT = do_PATCH = answer  # noqa: N815 the names that the library looks for

            def log_message(self, *_: Any) -> None: ...

        self.listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.listening.server_address[1]
        self.address = f"http://127.0.0.1:{self.port}"

    def answer(self, request: Any) -> None:
        """Pass a request on, unless something forbids it."""
        self.asked += 1
        body = request.rfile.read(int(request.headers.get("content-length", 0)))
        status, content = self._verdict(request.headers.get("authorization", "")), b"refused"
        if status is None:
            headers = {k: v for k, v in request.headers.items() if k.lower() in HEADERS}
            url = self.server + request.path
            done = requests.request(request.command, url, headers=headers, data=body, timeout=30)
            status, content = done.status_code, done.content
        request.send_response(status)
        request.send_header("content-length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    def _verdict(self, authorization: str) -> int | None:
        if self.fault and self.faults_left:
            self.faults_left -= 1
            return self.fault
        wanted = "Basic " + b64encode(self.login.encode()).decode()
        return 401 if self.login and authorization != wanted else None


@contextlib.contextmanager
def relaying(server: str) -> Iterator[Relay]:
    """Run a relay."""
    relay = Relay(server)
    thread = threading.Thread(
        target=relay.listening.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
    )
    thread.start()
    try:
        yield relay
    finally:
        relay.listening.shutdown()
        relay.listening.server_close()
        thread.join()


@pytest.fixture
def relay(mlflow_server: MlflowServer) -> Iterator[Relay]:
    """A relay in front of the server."""
    with relaying(mlflow_server.address) as made:
        yield made


# ------------------------------------------------------------------------------------------------ writers

WRITERS = """
import os, sys, tempfile
from pathlib import Path
import mlflow.store.tracking.sqlalchemy_store  # once here, not in every writer
from mmx.builtin.trackers.mlflow import Mlflow
from mmx.contracts import TrialRecord

address, sweep, writers, trials = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])

def write(writer):
    tracker = Mlflow(address)
    tracker.open_sweep(sweep, {})
    place = Path(tempfile.mkdtemp()) / f"writer-{writer}.txt"
    place.write_text(str(writer))
    for trial in range(trials):
        record = TrialRecord("", f"point-{writer}-{trial}", 0, "running", params={"writer": str(writer)})
        log = tracker.open_trial(f"t-{writer}-{trial}", record)
        for epoch in range(3):
            log.metrics({"train/loss": writer + trial / 10, "val/loss": 1.0}, epoch)
        log.artifact(place)
        log.end("done", "", {"mmx.mask_sha": "abc"})

children = []
for writer in range(writers):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            write(writer)
            code = 0
        finally:
            os._exit(code)
    children.append(child)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


@pytest.fixture
def write_at_once() -> Callable[..., set[str]]:
    """Have processes (eight) write two trials each at the same time; give the points that they wrote."""

    def write(address: str, sweep: str, writers: int = 8, trials: int = 2) -> set[str]:
        command = [sys.executable, "-c", WRITERS, address, sweep, str(writers), str(trials)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return {f"point-{writer}-{trial}" for writer in range(writers) for trial in range(trials)}

    return write


@pytest.fixture
def password() -> str:
    """A password with every sign that an address must encode."""
    return PASSWORD


@pytest.fixture
def closed_port() -> int:
    """A port of this machine that nobody listens on."""
    return free_port()


@pytest.fixture
def record() -> Callable[..., TrialRecord]:
    """Make a trial's record."""

    def make(point: str = "point", **facts: Any) -> TrialRecord:
        given = {"seed": 0, "state": "running", "params": {"strategy": "zero_fill"}, **facts}
        return TrialRecord("", point, **given)

    return make


# --------------------------------------------------------------------------------------------- mmx ui


@pytest.fixture(scope="session")
def mlflow_page(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the link that `mmx ui` prints for the finished toy sweep, while it runs."""
    port = free_port()
    command = [sys.executable, "-m", "mmx", "ui", "--port", str(port), "--store", finished.address]
    log = tmp_path_factory.mktemp("ui") / "log.txt"
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, cwd=log.parent
        )
    try:
        wait_until(lambda: requests.get(f"http://127.0.0.1:{port}/health", timeout=5), 90, "the page")
        found = re.search(r"^toy: (\S+)$", log.read_text(encoding="utf-8"), re.MULTILINE)
        yield found[1] if found else pytest.fail(log.read_text(encoding="utf-8"))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
