"""Sweeps in folders of their own, run by processes that are killed, held or stopped."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forking
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

SMALL = {
    "dataset": {"name": "toy_world", "train_size": 16, "val_size": 12, "test_size": 16},
    "training": {"epochs": 3, "batch_size": 8, "learning_rate": 0.01},
    "missing.eval": {"rates": [0.0, 1.0], "targets": ["any"]},
    "plugins": ["./moody.py"],
}
PLUGIN = """
import os, signal, time
from pathlib import Path

import torch
from mmx import Component, hookimpl
from mmx.contracts import Filled, Strategy

class Moody(Strategy):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.batches = 0

    def fill(self, tokens, presence, targets):
        self.batches += self.training
        if self.training:
            self.suffer()
        return Filled({m: t._replace(valid=torch.ones_like(t.valid)) for m, t in tokens.items()})

class Waiting(Moody):
    def suffer(self):
        Path("threads.txt").write_text(str(torch.get_num_threads()))
        if self.batches == 5:
            Path(f"held-{os.getpid()}").touch()
            while not Path("go").exists():
                time.sleep(0.01)

class Deadly(Moody):
    def suffer(self):
        os.kill(os.getpid(), signal.SIGKILL)

class Greedy(Moody):
    def suffer(self):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

class Hungry(Moody):
    def suffer(self):
        raise MemoryError

class Failing(Moody):
    def suffer(self):
        raise ValueError("it is in no mood")

@hookimpl
def register_strategies():
    kinds = (Waiting, Deadly, Greedy, Hungry, Failing)
    return [Component(kind.__name__.lower(), f"{__name__}:{kind.__name__}") for kind in kinds]
"""
"""Strategies: one waits in its third epoch for a file `go`, the others end badly."""
UNREPEATABLE = ("cost/", "phase/train_seconds")
"""Beginnings of the names of metrics that differ from run to run."""
PATIENCE = 120.0
"""Seconds after which a test takes a process for stuck; the machine may be busy."""
ALIVE = "select run_uuid, status from runs where lifecycle_stage = 'active' order by start_time"
Fault = list[Any]


class Zygote:
    """The process that forks commands (see `forking`)."""

    def __init__(self) -> None:
        quiet = {"OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
        self.process = subprocess.Popen(
            [sys.executable, forking.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | quiet,
        )

    def ask(self, **order: Any) -> Any:
        """Give an order, and the answer."""
        assert self.process.stdin and self.process.stdout
        assert self.process.poll() is None, f"the zygote has ended with {self.process.returncode}"
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        """End it, and what it has forked."""
        assert self.process.stdin
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


@dataclass(frozen=True)
class Run:
    """One run of a trial, as the result store has it."""

    key: tuple[str, int]
    """Its point and seed."""
    id: str
    status: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    figures: frozenset[tuple[str, int, float]]
    """Every value of every metric that must be the same each time: name, step, value."""

    @property
    def reason(self) -> str:
        """Why it ended."""
        return self.tags.get("mmx.state_reason", "")


@dataclass
class Place:
    """A folder with a sweep and its stores."""

    folder: Path
    zygote: Zygote

    def start(self, *faults: Fault, command: tuple[str, ...] = ("run", "sweep.yaml")) -> int:
        """Start a command and give its process."""
        environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{self.folder}/mlflow.db"}
        return self.zygote.ask(
            folder=str(self.folder), command=command, faults=faults, environment=environment
        )

    def wait(self, process: int, seconds: float = PATIENCE) -> int:
        """Wait for a process; give its exit code, minus the signal that ended it."""
        code = self.zygote.ask(wait=process, seconds=seconds)
        if code is None:
            os.killpg(process, signal.SIGKILL)
            self.zygote.ask(wait=process, seconds=5.0)
            pytest.fail(f"it went on for {seconds:.0f} s:\n{self.said()}")
        return code

    def run(self, *faults: Fault, command: tuple[str, ...] = ("run", "sweep.yaml")) -> int:
        """Run a command to its end, and give its exit code."""
        return self.wait(self.start(*faults, command=command))

    def wait_until(self, holds: Callable[[], object]) -> None:
        """Wait until something holds."""
        until = time.monotonic() + PATIENCE
        while not holds():
            assert time.monotonic() < until, self.said()
            time.sleep(0.02)

    def wait_for(self, name: str) -> None:
        """Wait for a file."""
        self.wait_until((self.folder / name).exists)

    def held(self, count: int = 1) -> list[int]:
        """Wait until so many processes are in a third epoch, and give them."""
        self.wait_until(lambda: len(list(self.folder.glob("held-*"))) >= count)
        return [int(path.name.removeprefix("held-")) for path in sorted(self.folder.glob("held-*"))]

    def asked(self, *processes: int) -> None:
        """Wait until processes have noted that they are to stop."""
        self.wait_until(lambda: all((self.folder / f"asked-{process}").exists() for process in processes))

    def go(self) -> None:
        """Let those that are held go on, and hold no others."""
        (self.folder / "go").touch()

    def said(self) -> str:
        """Give what all commands have printed."""
        return (self.folder / forking.OUT).read_text(encoding="utf-8")

    def lines(self, name: str) -> list[str]:
        """Give a file's lines; none where it is not there."""
        path = self.folder / name
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    def rows(self, base: str, query: str) -> list[tuple[Any, ...]]:
        """Ask a store."""
        with sqlite3.connect(self.folder / f"{base}.db", timeout=60) as connection:
            return connection.execute(query).fetchall()

    def runs(self) -> list[Run]:
        """List all runs of trials, every attempt."""
        tags = _by_run(self.rows("mlflow", "select run_uuid, key, value from tags"))
        params = _by_run(self.rows("mlflow", "select run_uuid, key, value from params"))
        figures: dict[str, set[tuple[str, int, float]]] = {}
        for run, key, step, value in self.rows("mlflow", "select run_uuid, key, step, value from metrics"):
            if not key.startswith(UNREPEATABLE):
                figures.setdefault(run, set()).add((key, step, value))
        return [
            Run(
                (tags[run]["mmx.point"], int(tags[run]["mmx.seed"])),
                run,
                status,
                tags[run],
                params.get(run, {}),
                frozenset(figures.get(run, ())),
            )
            for run, status in self.rows("mlflow", ALIVE)
            if tags[run].get("mmx.role") == "trial"
        ]

    def delete(self, *runs: Run) -> None:
        """Delete runs, as MLflow's page does."""
        for run in runs:
            change = "update runs set lifecycle_stage = 'deleted'"
            self.rows("mlflow", f"{change} where run_uuid = '{run.id}'")

    def finished(self) -> dict[tuple[str, int], Run]:
        """Give the finished run of each point and seed; there may be only one."""
        found: dict[tuple[str, int], Run] = {}
        for run in self.runs():
            if run.status == "FINISHED":
                assert run.key not in found, f"{run.key} was finished twice: {found[run.key].id} and {run.id}"
                found[run.key] = run
        return found

    def files(self, run: Run) -> dict[str, bytes]:
        """Read the files of a run, but for the one that tells which command and machine it was of."""
        found = self.folder.glob(f"mlartifacts/*/{run.id}/artifacts/*")
        return {path.name: path.read_bytes() for path in found if path.name != "environment.json"}

    def trials(self) -> list[tuple[str, str, str]]:
        """List the search store's trials: study, state, values of what is tuned."""
        journal = self.folder / "optuna.log"
        if journal.exists():
            storage = JournalStorage(JournalFileBackend(str(journal)))
            return [
                (study.study_name, trial.state.name, str(trial.params or ""))
                for study in storage.get_all_studies()
                for trial in storage.get_all_trials(study._study_id)
            ]
        values = "coalesce(group_concat(param_name || '=' || param_value), '')"
        return self.rows(
            "optuna",
            f"select study_name, state, {values} from trials join studies using (study_id) "  # noqa: S608 own text
            "left join trial_params using (trial_id) group by trial_id",
        )

    def tried(self) -> list[tuple[str, str]]:
        """List what was tried to its end of what is tuned: study and values."""
        return sorted((study, values) for study, state, values in self.trials() if values and state != "FAIL")

    def check_nothing_runs(self) -> None:
        """Check that no store calls anything running."""
        assert "RUNNING" not in [status for _, status in self.rows("mlflow", ALIVE)], self.said()
        assert not [trial for trial in self.trials() if trial[1] == "RUNNING"], self.said()

    def check_like(self, undisturbed: "Place") -> None:
        """Check that everything was finished, once, and as it was without disturbance, to the last bit."""
        self.check_nothing_runs()
        expected, found = undisturbed.finished(), self.finished()
        assert found.keys() == expected.keys()
        for key, run in expected.items():
            assert found[key].figures == run.figures, key
            assert found[key].params == run.params, key
            assert self.files(found[key]) == undisturbed.files(run), key
            assert found[key].reason == run.reason, key
        assert self.tried() == undisturbed.tried()


def _by_run(rows: list[tuple[str, str, str]]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for run, key, value in rows:
        found.setdefault(run, {})[key] = value
    return found


Make = Callable[..., Place]
