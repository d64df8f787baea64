"""Optuna's storage: opened by its address, asked again while it is away, never named with its password."""

import logging
import time
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from mmx.config.address import secrets_of, with_driver, without_login
from mmx.errors import InputError, MmxError, StoreError

optuna.logging.set_verbosity(optuna.logging.WARNING)
logging.getLogger("alembic").setLevel(logging.WARNING)
JOURNAL = "journal:///"
BEATS = 5
"""Signs of life within a lease."""
PATIENCE = 300.0
"""Seconds for which a storage that is away is asked again before a worker gives up."""
AWAY = (StorageInternalError, OperationalError, InterfaceError, PoolTimeoutError, ConnectionError)
Found = TypeVar("Found")


def open_storage(address: str, lease: float) -> BaseStorage:
    """Open the search store: SQL (`sqlite:///optuna.db`, `postgresql://…`), or a file on shared disk
    (`journal:///folder/optuna.log`; relative with three strokes, absolute with four)."""
    address = with_driver(address)
    try:
        if address.startswith(JOURNAL):
            return JournalStorage(JournalFileBackend(address.removeprefix(JOURNAL)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            storage = RDBStorage(
                address,
                engine_kwargs=_engine(address),
                heartbeat_interval=max(1, round(lease / BEATS)),
                grace_period=max(1, round(lease)),
            )
        return optuna.storages.get_storage(storage)
    except Exception as error:  # noqa: BLE001 drivers raise anything
        raise _explained(error, address) from None


def _engine(address: str) -> dict[str, Any]:
    """Let writers of SQLite wait for each other, and a server that was restarted be called again."""
    if address.startswith("sqlite:"):
        return {"connect_args": {"timeout": 60}}
    return {"pool_pre_ping": True}


def _explained(error: Exception, address: str) -> MmxError:
    told = without_login(address)
    if "optuna storage upgrade" in str(error):
        return InputError(
            f"store.study '{told}' was made by an older Optuna; stop all writers, back it up, then run: "
            f"optuna storage upgrade --storage {told}"
        )
    if isinstance(error, ModuleNotFoundError):
        return InputError(
            f"store.study '{told}' needs '{error.name}'; for PostgreSQL: pip install 'mmx[postgres]'"
        )
    kind = StoreError if isinstance(error, AWAY) else MmxError
    reason = first_line(error)
    for secret, instead in secrets_of(address, told).items():
        reason = reason.replace(secret, instead)
    return kind(f"store.study '{told}' cannot be opened ({reason}); check the address and its folder")


def first_line(error: Exception) -> str:
    """Give the heart of an error."""
    lines = str(getattr(error, "orig", None) or error).splitlines()
    return lines[0] if lines else type(error).__name__


def patiently(call: Callable[[], Found], patience: float = PATIENCE) -> Found:
    """Make a call to the storage; while that is away, make it again (StoreError after `patience` seconds)."""
    until, pause = time.monotonic() + patience, 0.5
    while True:
        try:
            return call()
        except AWAY as error:
            if _is_hopeless(error) or time.monotonic() + pause > until:
                raise StoreError(
                    f"store.study cannot be used ({first_line(error)}); what was finished is kept, "
                    f"`mmx run` carries on once it is back"
                ) from error
        time.sleep(pause)
        pause = min(2 * pause, 15.0)


def _is_hopeless(error: Exception) -> bool:
    """Tell what no waiting mends: a store that is read-only, or a disk that is full."""
    text = str(error.__cause__ if isinstance(error, StorageInternalError) else error).lower()
    return isinstance(error, (DBAPIError, StorageInternalError)) and any(
        sign in text for sign in ("readonly", "read-only", "is full", "no space", "no such table")
    )
