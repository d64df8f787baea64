"""The connection to MLflow's store: whether it is there, and what its faults mean."""

import contextlib
import functools
import logging
import math
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, Concatenate, ParamSpec, TypeVar

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
from mlflow.exceptions import MlflowException
from requests import exceptions as http
from requests.utils import get_environ_proxies
from sqlalchemy import exc as sql

from mmx.config.address import secrets_of, with_driver, without_login
from mmx.errors import InputError, MmxError, StoreError

# What it says there, with a traceback, is raised as well and told in one line.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)

PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
PATIENCE = 12.0
"""Seconds that a server in use may be gone before a call fails."""
FRESH = 5.0
"""Seconds for which a server that answered is taken to be there."""
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
        self.store = with_driver(store)
        self.address = without_login(store)
        self.where = f"store.tracking '{self.address}'"
        self.is_server = store.startswith(("http://", "https://"))
        self.dialect = store.partition(":")[0].partition("+")[0]
        self.hidden = secrets_of(self.store, self.address) | secrets_of(store, self.address)
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
                OUT_OF_DATE.format(where=self.where, address=without_login(self.store), login=login)
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


def asked(
    method: Callable[Concatenate[Any, Given], Result],
) -> Callable[Concatenate[Any, Given], Result]:
    """Have every fault of the store told by its connection."""

    @functools.wraps(method)
    def call(self: Any, /, *values: Given.args, **named: Given.kwargs) -> Result:
        with self.connection.asked():
            return method(self, *values, **named)

    return call


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
