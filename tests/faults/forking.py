"""A process that has imported everything once, and forks a child for each command that a test gives.

A child is `mmx` itself in a session of its own, with faults that are named in the order: it is killed at an
exact event, held there, or finds that something fails. An event is what another process could notice: a
statement that writes to a store, its commit, a renaming, half a file, an optimiser step.
"""

import atexit
import errno
import gc
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, NoReturn

EPOCHS = "epochs.txt"
"""File with a line for each epoch that was trained in a folder, by whichever process."""
TRACE = "trace.txt"
STARTS = "starts.txt"
"""File with a line for each worker that starts, before it can do anything."""
KILLED = "killed.txt"
"""File with a line for each kill: the event at which it came."""
OUT = "out.txt"
WRITES = re.compile(r"\s*(INSERT INTO|UPDATE|DELETE FROM) \"?(\w+)")
BASES = ("fork", "_do", "call", "apply", "<lambda>", "patiently")

Event = Callable[[str], None]
watchers: list[Event] = []
pipes: list[Any] = []
kept: list[Any] = []
"""What a forked worker inherits and must neither use nor close."""
worker_faults: list[list[Any]] = []
start_takes = [0.0]


# ------------------------------------------------------------------------------------------------- events


def note(label: str) -> None:
    """Tell watchers of an event; those of other threads come at any time, and do not count."""
    if watchers and threading.current_thread() is threading.main_thread():
        told = f"{label} in {_place()}"
        for watcher in list(watchers):
            watcher(told)


def _place() -> str:
    """Name the innermost function of the sweep that is at work."""
    names = [
        f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}"
        for frame in _frames(sys._getframe())
        if "/mmx/" in frame.f_code.co_filename and frame.f_code.co_name not in BASES
    ]
    return " < ".join(names[:3])


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def watch_everything() -> None:
    """Have events told."""
    import torch
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def execute(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if found := WRITES.match(statement):
            note(f"{Path(connection.engine.url.database).stem}: {found[1].split()[0].lower()} {found[2]}")

    def commit(connection: Any) -> None:
        note(f"{Path(connection.engine.url.database).stem}: commit")

    event.listen(Engine, "before_cursor_execute", execute)
    event.listen(Engine, "commit", commit)
    for module, name in ((os, "replace"), (os, "rename"), (os, "unlink"), (shutil, "rmtree")):
        _before(module, name)
    _before(torch.optim.AdamW, "step")
    _halved(shutil, "copyfileobj", lambda source, *_, **__: Path(source.name).read_bytes()[:100])
    _halved(torch, "save", lambda *_, **__: b"PK\x03\x04 half a checkpoint")


def _before(owner: Any, name: str) -> None:
    plain = getattr(owner, name)

    def noting(*values: Any, **named: Any) -> Any:
        note(name)
        return plain(*values, **named)

    setattr(owner, name, noting)


def _halved(owner: Any, name: str, begin: Callable[..., bytes]) -> None:
    """Write how a file begins before all of it, so that a process can be killed in between."""
    plain = getattr(owner, name)

    def noting(source: Any, target: Any, *values: Any, **named: Any) -> Any:
        if watchers and hasattr(target, "name"):
            start = target.tell()
            target.write(begin(source))
            target.flush()
            note(f"half of {name}")
            target.seek(start)
            target.truncate()
        return plain(source, target, *values, **named)

    setattr(owner, name, noting)


def count_epochs() -> None:
    """Have a line written for each epoch that is trained."""
    from mmx.course import Course

    plain = Course.train

    def train(self: Any, batches: Any) -> Any:
        with Path(EPOCHS).open("a", encoding="utf-8") as file:
            file.write(f"{len(self.history)}\n")
        return plain(self, batches)

    Course.train = train  # type: ignore[method-assign]


def tell_requests() -> None:
    """Have a file appear for each process that has noted that it is to stop."""
    from mmx.sweep.limits import Stopping

    plain = Stopping._note

    def noting(self: Any, number: int, frame: Any) -> None:
        plain(self, number, frame)
        Path(f"asked-{os.getpid()}").touch()

    Stopping._note = noting  # type: ignore[method-assign]


# ------------------------------------------------------------------------------------------------- faults


def trace() -> None:
    """Write every event down."""
    file = Path(TRACE).open("a", encoding="utf-8")  # noqa: SIM115 as long as the process
    watchers.append(lambda label: (file.write(label + "\n"), file.flush()))


def kill_at(number: int) -> None:
    """Kill the process at an event, by its number from 1."""
    numbers = count(1)
    watchers.append(lambda label: _die(label) if next(numbers) == number else None)


def kill_on(label: str) -> None:
    """Kill the process at the first event that begins so."""
    watchers.append(lambda told: _die(told) if told.startswith(label) else None)


def kill_first_at(number: int) -> None:
    """Kill the process at an event, by its number from 1, if no other was killed before."""
    numbers = count(1)
    watchers.append(
        lambda label: _die(label) if next(numbers) >= number and not Path(KILLED).exists() else None
    )


def hold_on(pattern: str, name: str) -> None:
    """Hold the process at the first event that a pattern is found in, until a file `name-go` appears."""
    once: list[str] = []

    def hold(label: str) -> None:
        if not once and re.search(pattern, label):
            once.append(label)
            Path(f"{name}-held").touch()
            while not Path(f"{name}-go").exists():
                time.sleep(0.01)

    watchers.append(hold)


def _die(label: str) -> None:
    with Path(KILLED).open("a", encoding="utf-8") as file:
        file.write(f"{label}\n")
    os.kill(os.getpid(), signal.SIGKILL)


def other_host(name: str) -> None:
    """Let the process take itself for one on another machine."""
    from mmx import worker

    worker._name.cache_clear()
    worker.socket = SimpleNamespace(gethostname=lambda: name)


def still_heart() -> None:
    """Let the process give no sign of life after the first."""
    from mmx.sweep.claims import Heart

    Heart._run = lambda self: None  # type: ignore[method-assign]


def full_disk(name: str) -> None:
    """Let copying a file of that name fail, wherever to."""

    def failing(plain: Any) -> Any:
        def copy(source: Any, target: Any, *values: Any, **named: Any) -> Any:
            if Path(getattr(source, "name", source)).name == name:
                raise OSError(errno.ENOSPC, "No space left on device", name)
            return plain(source, target, *values, **named)

        return copy

    shutil.copyfile = failing(shutil.copyfile)
    shutil.copyfileobj = failing(shutil.copyfileobj)


def fall_on_death() -> None:
    """Let the parent of workers fall over a bug when one dies."""
    from mmx.sweep import launch

    def fall(*_: Any, **__: Any) -> None:
        raise RuntimeError("it fell")

    launch.reclaim = fall


def long_ago() -> None:
    """Let a call have begun an hour before, once a file `late` is there."""
    from mmx.sweep import limits

    later = SimpleNamespace(monotonic=lambda: time.monotonic() + 3600 * Path("late").exists())
    limits.time = later


def in_workers(*faults: list[Any]) -> None:
    """Give the workers of the process these faults."""
    worker_faults.extend(faults)


def cheap_workers(seconds: float = 0.0) -> None:
    """Let workers be forked, since a real start takes seconds; what they inherit they neither use nor close.

    For so many seconds they are as workers are that are still importing.
    """
    from mmx.sweep import launch

    start_takes.append(seconds)
    plain = get_context("fork")

    class Cheap:
        @staticmethod
        def Pipe() -> Any:  # noqa: N802 the name that is looked for
            near, far = plain.Pipe()
            pipes.append(near)
            return near, far

        @staticmethod
        def Process(target: Any, args: Any, name: str) -> Any:  # noqa: N802 the name that is looked for
            return plain.Process(target=as_worker, args=(target, args), name=name)

    launch.get_context = lambda kind: Cheap  # type: ignore[assignment]


def as_worker(target: Any, args: Any) -> None:
    """Be a forked worker: forget what the parent had open."""
    import mlflow.store.tracking.sqlalchemy_store as store
    from mlflow.tracking._tracking_service import utils

    for pipe in pipes:
        pipe.close()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    kept.append(dict(store.SqlAlchemyStore._engine_map))
    store.SqlAlchemyStore._engine_map.clear()
    kept.append(utils._tracking_store_registry)
    utils._tracking_store_registry._get_store_with_resolved_uri.cache_clear()
    watchers.clear()
    apply(worker_faults)
    with Path(STARTS).open("a", encoding="utf-8") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(start_takes[-1])
    target(*args)


FAULTS = {
    f.__name__: f
    for f in (
        trace,
        kill_at,
        kill_on,
        kill_first_at,
        fall_on_death,
        hold_on,
        other_host,
        still_heart,
        full_disk,
        long_ago,
        in_workers,
        cheap_workers,
    )
}


def apply(faults: list[list[Any]]) -> None:
    """Prepare faults, each a name and its values."""
    for name, *values in faults:
        FAULTS[name](*values)


# ------------------------------------------------------------------------------------------------- server


def prepare() -> None:
    """Import what a sweep needs, and make it quick where that changes nothing that the tests look at."""
    import importlib

    import torch
    from mlflow.store.db import utils
    from optuna.storages._rdb import storage
    from sqlalchemy import event
    from sqlalchemy.pool import Pool

    torch.set_num_threads(1)
    for name in MODULES:
        importlib.import_module(name)
    # What a killed process wrote is the system's: only power cuts need a disk that is waited for.
    event.listen(Pool, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
    from mmx.sweep import artifacts, close
    from mmx.trial import code

    artifacts.environment = lambda: ""
    close.write_report = lambda *_: []
    utils._verify_schema = lambda engine: None
    storage._VersionManager.check_table_schema_compatibility = lambda self: None
    for package in ("mmx", "mmx_datasets", "mmx_encoders", "mmx_strategies"):
        code._hash(*code._source(package))
    watch_everything()
    count_epochs()
    tell_requests()
    gc.collect()
    gc.freeze()  # or each child's first collection would copy all pages
    assert threading.active_count() == 1, "no process with threads can be forked"


MODULES = (
    "alembic.command",
    "matplotlib.backends.backend_agg",
    "mlflow.store.tracking.sqlalchemy_store",
    "mmx.builtin.adapters.full",
    "mmx.builtin.fusions.mean",
    "mmx.builtin.procedures.joint",
    "mmx.builtin.protocols.per_modality",
    "mmx.builtin.trackers.mlflow",
    "mmx.cli.app",
    "mmx.cli.open",
    "mmx.cli.progress",
    "mmx.sweep",
    "mmx_datasets.toy_world",
    "mmx_encoders.mlp",
    "mmx_strategies.skip",
    "mmx_strategies.zero_fill",
    "optuna.storages._rdb.models",
    "optuna.storages._rdb.storage",
    "pyarrow.pandas_compat",
    "rich.table",
    "scipy.stats",
    "sqlalchemy.dialects.sqlite",
    "torch._dynamo",
)


def start(order: dict[str, Any]) -> int:
    """Fork a child that runs a command in a folder."""
    process = os.fork()
    if not process:
        be_child(order)
    return process


def be_child(order: dict[str, Any]) -> NoReturn:
    """Run a command, and leave."""
    os.setsid()
    os.chdir(order["folder"])
    os.environ.update(order["environment"])
    out = os.open(OUT, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    for number, target in ((null, 0), (out, 1), (out, 2)):
        os.dup2(number, target)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    apply(order["faults"])
    sys.argv = ["mmx", *order["command"]]
    _end(_run())


def _run() -> int:
    from mmx.cli import main

    try:
        main()
    except SystemExit as error:
        return int(error.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _end(code: int) -> NoReturn:
    """Leave without freeing, page by page, what the parent has."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)


def wait(process: int, seconds: float) -> int | None:
    """Wait for a child; give its exit code, minus the signal that ended it, None where it goes on."""
    until = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= until:
            return None
        time.sleep(0.005)


def serve() -> None:
    """Take orders, a line each, until there is nobody left to give any."""
    prepare()
    children: set[int] = set()
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            found = wait(order["wait"], order["seconds"])
            children -= set() if found is None else {order["wait"]}
        else:
            found = start(order)
            children.add(found)
        answer.write(json.dumps(found) + "\n")
        answer.flush()
    for process in children:
        os.killpg(process, signal.SIGKILL)


if __name__ == "__main__":
    serve()
