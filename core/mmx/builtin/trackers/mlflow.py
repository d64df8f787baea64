"""MLflow as the keeper of all results: one experiment a sweep, a parent run, a child run a trial.

Only the client API with explicit run ids is used, so that no run is active behind the scenes; metrics go in
one batch a call, since SQL stores are slow by call.
"""

import contextlib
import functools
import gc
import logging
import math
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import quote, quote_plus, unquote, unquote_plus

# Over HTTP MLflow prints a run's address with user and password in it, unless told not to.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
# MLflow would try for minutes before it says that a server is gone: try after 0, 2, 4 and 8 seconds instead.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0.5")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
os.environ.setdefault("PGCONNECT_TIMEOUT", "10")

import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from requests import exceptions as http
from requests.utils import get_environ_proxies
from sqlalchemy import exc as sql

from mmx.builtin.trackers import mlflow_view
from mmx.contracts import Tracker, TrialLog, TrialRecord
from mmx.errors import InputError, MmxError, StoreError

# What it says there, with a traceback, is raised as well and told in one line.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)

STATES = {
    "FINISHED": "done",
    "FAILED": "failed",
    "KILLED": "missing",
    "RUNNING": "running",
    "SCHEDULED": "running",
}
STATUS = {"done": "FINISHED", "failed": "FAILED", "missing": "KILLED"}
LONGEST_VALUE = 6000
BATCH = 1000
FORBIDDEN = re.compile(r"[^A-Za-z0-9_\-. :/]")

DIALECTS = ("sqlite", "postgresql", "mysql", "mssql")
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
OPENING = 5.0
"""Seconds that a server may take to appear when a store is opened."""
PATIENCE = 12.0
"""Seconds that a server in use may be gone before a call fails."""
FRESH = 5.0
"""Seconds for which a server that answered is taken to be there."""

SECRET = re.compile(r"(?:pass\w*|pwd|secret|token|\w*key)=([^&;\s]+)", re.IGNORECASE)
HAPPENED = re.compile(
    r"\[Errno -?\d+\] [^'\")\n]+|too many \d+ error responses|(?:[Rr]ead|[Cc]onnect\w*) timed? ?out|"
    r"Remote end closed connection without response|Connection aborted"
)
PASSING = {
    "INTERNAL_ERROR",
    "TEMPORARILY_UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "REQUEST_LIMIT_EXCEEDED",
    "RESOURCE_EXHAUSTED",
}
LASTING = re.compile(
    r"no such (?:table|column)|not a database|(?:database|role) \"[^\"]*\" does not exist|error code 404"
)
LOGIN = re.compile(
    r"authentication failed|no password supplied|no pg_hba.conf entry|PERMISSION_DENIED|"
    r"error code 40[13]|40[13] Client Error"
)
NO_ADDRESS = (http.InvalidURL, http.InvalidSchema, http.MissingSchema, sql.ArgumentError)
ADDRESSES = "write sqlite:///mlflow.db, postgresql://user:password@host/database or http://host:5000"
ADVICE = {
    r"is full|No space left|quota": "free space there",
    r"read-?only|Permission denied|not permitted": "make it writable",
    r"is locked": "SQLite serves a handful of workers; take fewer, or PostgreSQL or an MLflow server",
    r"I/O error|Input/output": "check the disk that it is on",
    r"": "see that it is up and can be reached from here",
}
OUT_OF_DATE = """{where} has an older schema; stop all writers, back it up, then run:
  mlflow db upgrade {address}
{login}(if that does not know the revision, a newer MLflow made the store: upgrade MLflow here instead)"""
WITH_LOGIN = "with your own user:password@ after the '//' and what the address has after a '?'\n"

Given = ParamSpec("Given")
Result = TypeVar("Result")


class Connection:
    """A store's address, its secrets, and what is known of its health."""

    def __init__(self, store: str) -> None:
        self.store = _with_driver(store)
        self.address = _without_secrets(store)
        self.where = f"store.tracking '{self.address}'"
        self.is_server = store.startswith(("http://", "https://"))
        self.dialect = store.partition(":")[0].partition("+")[0]
        self.hidden = _secrets(self.store, self.address) | _secrets(store, self.address)
        self.door = _door(store)
        self.answered = -math.inf
        self.gone = False

    def hide(self, text: str) -> str:
        """Take the store's login out of a text."""
        for secret, instead in self.hidden.items():
            text = text.replace(secret, instead)
        return text

    @contextlib.contextmanager
    def asked(self, patience: float | None = None) -> Iterator[None]:
        """Tell every fault of the store as what it is; a server that is gone is waited for (PATIENCE s).

        No fault names another as its cause: tracebacks would show the address that was asked, login and all.
        """
        self._knock(PATIENCE if patience is None else patience)
        try:
            yield
        except MmxError:
            raise
        except (MlflowException, sql.SQLAlchemyError, OSError, ModuleNotFoundError) as error:
            told = self._told(error)
            self.gone = isinstance(told, StoreError)
            raise told from None
        self.gone, self.answered = False, time.monotonic()

    def _knock(self, patience: float) -> None:
        """Wait until the server takes connections; one that was found gone is tried once."""
        if self.door is None or time.monotonic() - self.answered < FRESH:
            return
        until = time.monotonic() + (0.0 if self.gone else patience)
        while True:
            try:
                socket.create_connection(self.door, timeout=3.0).close()
            except OSError as error:
                if time.monotonic() >= until:
                    self.gone = True
                    raise self._unavailable(str(error)) from None
                time.sleep(0.3)
            else:
                return

    def _unavailable(self, reason: str) -> StoreError:
        advice = next(told for pattern, told in ADVICE.items() if re.search(pattern, reason, re.IGNORECASE))
        return StoreError(f"{self.where} cannot be reached or written: {reason}; {advice}")

    def _told(self, error: Exception) -> MmxError:
        """Turn what MLflow and the libraries below it raise into advice."""
        reason, causes = self.hide(_reason(error)), list(_causes(error))
        if isinstance(error, ModuleNotFoundError):
            package = "'mmx[postgres]'" if "psycopg" in str(error.name) else error.name
            return InputError(f"{self.where} needs '{error.name}', not installed here: pip install {package}")
        if "out-of-date" in reason:
            login = "" if self.dialect == "sqlite" else WITH_LOGIN
            return InputError(
                OUT_OF_DATE.format(where=self.where, address=_without_secrets(self.store), login=login)
            )
        if LOGIN.search(reason):
            names = (
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" if self.is_server else "PGPASSWORD"
            )
            return InputError(
                f"{self.where} refuses the login: {reason}; write user:password@ before its host or "
                f"set {names}"
            )
        if any(isinstance(cause, NO_ADDRESS) for cause in causes):
            return InputError(f"{self.where} is no address of a store: {reason}; {ADDRESSES}")
        if LASTING.search(reason):
            return InputError(f"{self.where} is no store of results: {reason}; {ADDRESSES}")
        if any(self._passes(cause) for cause in causes):
            return self._unavailable(reason)
        return MmxError(f"{self.where}: {reason}")

    def _passes(self, error: BaseException) -> bool:
        """Tell whether the same call may do well later."""
        if isinstance(error, http.HTTPError) and error.response is not None:
            return error.response.status_code == 429 or error.response.status_code >= 500
        if isinstance(error, sql.DBAPIError):
            gone = isinstance(error, (sql.OperationalError, sql.InterfaceError))
            return gone or error.connection_invalidated or "read-only" in str(error)
        if isinstance(error, MlflowException):
            return self.is_server and error.error_code in PASSING
        return isinstance(error, (OSError, sql.TimeoutError))


def _asked(
    method: Callable[Concatenate[Any, Given], Result],
) -> Callable[Concatenate[Any, Given], Result]:
    """Have every fault of the store told by its connection."""

    @functools.wraps(method)
    def call(self: Any, /, *values: Given.args, **named: Given.kwargs) -> Result:
        with self.connection.asked():
            return method(self, *values, **named)

    return call


def _with_driver(address: str) -> str:
    """Name the driver that is here: SQLAlchemy 2.1 takes psycopg where none is named, older ones psycopg2."""
    plain = "postgresql://"
    if address.startswith(plain) and not find_spec("psycopg") and find_spec("psycopg2"):
        return address.replace(plain, "postgresql+psycopg2://", 1)
    return address


def _without_secrets(address: str) -> str:
    """Give an address for messages: no user, no password, nothing after a '?'."""
    return re.sub(r"://[^/:@]*(?::.*)?@", "://", address, count=1).partition("?")[0]


def _secrets(address: str, public: str) -> dict[str, str]:
    """List what may be in no text, each with what stands there instead, the longest first."""
    login = re.match(r"[^:]+://[^/:@]*:(.*)@", address)
    query = address.partition("?")[2]
    words = {login[1]} if login else set()
    words |= {*SECRET.findall(query), *SECRET.findall(unquote(query))}
    plain = {form(word) for word in words for form in (str, unquote, unquote_plus)} - {""}
    forms = {
        form(word) for word in plain for form in (str, quote, quote_plus, lambda w: quote(w, ""), _escaped)
    }
    # A word as common as the database's own name is hidden only where it stands as a password.
    hidden = {word: "***" for word in forms if len(word) > 3 and word not in public}
    hidden |= {
        f"{sign}{word}{end}": f"{sign}***{end}" for word in forms for sign, end in ((":", "@"), ("=", ""))
    }
    if address != public:
        hidden[address] = public
    return dict(sorted(hidden.items(), key=lambda item: -len(item[0])))


def _escaped(text: str) -> str:
    return repr(text)[1:-1]


def _door(address: str) -> tuple[str, int] | None:
    """Give host and port to ask whether a server is there; None where that cannot be known so."""
    try:
        url = sqlalchemy.make_url(address)
    except (sql.ArgumentError, ValueError):
        return None
    port = url.port or PORTS.get(url.drivername.partition("+")[0])
    if not url.host or port is None or ("http" in url.drivername and get_environ_proxies(address)):
        return None
    return url.host, port


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _reason(error: Exception) -> str:
    """Say in one line what happened."""
    driver = next((c.orig for c in _causes(error) if isinstance(c, sql.DBAPIError)), None)
    text = str(driver or error).strip() or type(error).__name__
    happened = HAPPENED.findall(text)
    return happened[-1] if happened else re.sub(r"^\([\w.]+\) ", "", text.splitlines()[0])[:300]


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
        with self.connection.asked(OPENING):
            self._connect()
            self.client = MlflowClient(tracking_uri=self.connection.store)
            self.client.search_experiments(max_results=1)

    @_asked
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

    @_asked
    def find_sweeps(self) -> list[str]:
        """List the experiments that hold a sweep."""
        found: list[str] = []
        token: str | None = None
        while True:
            page = self.client.search_experiments(
                filter_string="tags.`mmx.role` = 'sweep'",
                order_by=["last_update_time DESC"],
                page_token=token,
            )
            found += [experiment.name for experiment in page]
            token = page.token
            if not token:
                return found

    @_asked
    def records(self, name: str) -> list[TrialRecord]:
        """List the latest attempt of each (point, seed); about 1.5 ms a run of 130 figures."""
        experiment = self._find_experiment(name)
        best: dict[tuple[str, int], TrialRecord] = {}
        for run in self._search(experiment, "tags.`mmx.role` = 'trial'") if experiment else ():
            if run.data.tags.get("mmx.retired") == "true":
                continue
            record = self._record(run)
            known = best.setdefault((record.point, record.seed), record)
            if (record.state == "done", record.attempt) > (known.state == "done", known.attempt):
                best[record.point, record.seed] = record
        return list(best.values())[::-1]

    @_asked
    def history(self, run_id: str, metric: str) -> dict[int, float]:
        """Give a metric by step."""
        return {m.step: m.value for m in self.client.get_metric_history(run_id, metric)}

    @_asked
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
        params = [Param(_key(k), self.hide(v)[:LONGEST_VALUE]) for k, v in record.params.items()]
        for start in range(0, len(params), 100):
            self.client.log_batch(run_id, params=params[start : start + 100])
        return _MlflowTrial(self, run_id)

    @_asked
    def running(self, name: str) -> list[TrialRecord]:
        """List the runs of trials that MLflow calls running."""
        experiment = self._find_experiment(name)
        if experiment is None:
            return []
        found = self._search(experiment, "tags.`mmx.role` = 'trial' AND attributes.status = 'RUNNING'")
        return [self._record(run) for run in found]

    def reopen(self, run_id: str) -> TrialLog:
        """Go on writing to a run."""
        return _MlflowTrial(self, run_id)

    @_asked
    def retire(self, record: TrialRecord) -> None:
        """Tag a run so that it no longer counts."""
        self.client.set_tag(record.run_id, "mmx.retired", "true")

    @_asked
    def close_sweep(
        self,
        curves: Mapping[str, Mapping[int, float]],
        artifacts: Sequence[Path],
        group_by: Sequence[str],
        state: str,
    ) -> None:
        """Log the parent's curves (what changed of them) and files, prepare the view, and end it."""
        log = _MlflowTrial(self, self.parent)
        changed: dict[int, dict[str, float]] = {}
        for name, curve in curves.items():
            known = self.history(self.parent, _key(name))
            for step, value in curve.items():
                if known.get(step) != value:
                    changed.setdefault(step, {})[name] = value
        for step, values in changed.items():
            log.metrics(values, step)
        for path in artifacts:
            log.artifact(path)
        self._prepare_view(group_by)
        self.client.set_terminated(self.parent, status=STATUS[state])

    @_asked
    def page(self, name: str) -> str:
        """Give the prepared view of a sweep's runs."""
        experiment = self._find_experiment(name)
        return mlflow_view.page_of(experiment) if experiment else ""

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
            params={sys.intern(k): sys.intern(v) for k, v in run.data.params.items()},
            metrics={sys.intern(k): v for k, v in run.data.metrics.items()},
        )


class _MlflowTrial(TrialLog):
    """One run, by its id."""

    def __init__(self, tracker: Mlflow, run_id: str) -> None:
        self.tracker = tracker
        self.connection = tracker.connection
        self.run_id = run_id

    @_asked
    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log one batch; NaN and infinity would wreck MLflow's axes and are left out."""
        now = int(self.tracker.clock() * 1000)
        finite = [Metric(_key(k), float(v), now, step) for k, v in values.items() if math.isfinite(v)]
        for start in range(0, len(finite), BATCH):
            self.tracker.client.log_batch(self.run_id, metrics=finite[start : start + BATCH])

    def artifact(self, path: Path) -> None:
        """Upload a file (OSError where it cannot be read)."""
        path.open("rb").close()
        with self.connection.asked():
            self.tracker.client.log_artifact(self.run_id, str(path))

    @_asked
    def end(self, state: str, reason: str, tags: Mapping[str, str]) -> None:
        """Set the final status."""
        told = {**tags, "mmx.state_reason": reason[:LONGEST_VALUE]}
        own = [RunTag(k, self.connection.hide(v)) for k, v in told.items()]
        self.tracker.client.log_batch(self.run_id, tags=own)
        self.tracker.client.set_terminated(self.run_id, STATUS[state], int(self.tracker.clock() * 1000))


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


def _key(name: str) -> str:
    """Make a name that MLflow takes."""
    return FORBIDDEN.sub("_", name)
