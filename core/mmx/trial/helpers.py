"""The processes that help one worker to train its trials: started once, fed through a pipe each.

The worker's own process leads; it alone talks to stores and evaluates. Helpers build the same parts from the
same spec and go through the same training. They heed no Ctrl-C, and end when the worker is gone. When a trial
fails or is broken off, wherever that is, they are killed, and the next trial gets new ones.
"""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context, get_start_method, parent_process, resource_tracker, set_start_method
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from pathlib import Path

import torch
from torch import distributed
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from mmx.config import TrialSpec
from mmx.errors import InputError, TrialError
from mmx.registry import Registry
from mmx.trial.bench import Bench
from mmx.trial.phases import train_in_phases
from mmx.trial.place import HOST, PATIENCE, Place, environment, leave, threads_of
from mmx.trial.together import LostError, Together, told_as_lost

LAST_WORDS = 5.0
"""Seconds that helpers have to end once one of them is lost."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Helpers:
    """The other processes of a worker's trials; they start with the first trial.

    `size`: processes of a trial, this one included. `devices`: that of each process, this one's first; where
    there are fewer they are used again (processes on one GPU talk through the CPU). `files`: one-off plugin
    files. Threads of this process are divided among all. Raises InputError for devices other than GPUs and
    the CPU.
    """

    def __init__(self, size: int, devices: Sequence[torch.device], files: Sequence[Path] = ()) -> None:
        self.size = size
        self.devices = [devices[rank % len(devices)] for rank in range(size)]
        self.files = tuple(files)
        for device in self.devices:
            if device.type not in ("cpu", "cuda"):
                told = "several processes train on CPUs or CUDA devices only; set it to 1"
                raise InputError(f"run.processes_per_trial: {size} on device '{device}': {told}")
        self.team: Together | None = None
        self.processes: list[BaseProcess] = []
        self.pipes: list[Connection] = []
        self.threads = torch.get_num_threads()
        self._watch: _Watch | None = None
        # Before multiprocessing waits for them at the end of this process.
        Finalize(self, _kill, (self.processes,), exitpriority=0)

    @contextmanager
    def trial(self, spec: TrialSpec) -> Iterator[Together]:
        """Have the helpers train a trial, through all its phases, and give the team that trains it here.

        Raises TrialError, with the reason, where a helper fails or dies.
        """
        try:
            team = self._ready()
            for pipe in self.pipes:
                with told_as_lost():
                    pipe.send(spec)
            yield team
        except BaseException as error:
            reason = self._reason() if isinstance(error, LostError) else ""
            self.close()
            if reason:
                raise TrialError(reason) from error
            raise

    def close(self) -> None:
        """End all helpers; the next trial starts new ones."""
        if self._watch is not None:
            self._watch.over.set()
        _kill(self.processes)
        if self._watch is not None:
            self._watch.join()
            self._watch = None
        for pipe in self.pipes:
            pipe.close()
        self.pipes.clear()
        if self.team is not None:
            self.team = None
            leave()
        torch.set_num_threads(self.threads)

    def _ready(self) -> Together:
        """Give the team; start it where there is none, or where one has died since the last trial."""
        if self.team is None or not all(process.is_alive() for process in self.processes):
            self.close()
            self.team = self._start()
            self._watch = _Watch(self.processes)
            self._watch.start()
        return self.team

    def _start(self) -> Together:
        store = TCPStore(HOST, 0, self.size, True, PATIENCE, wait_for_workers=False)
        gpus = {device for device in self.devices if device.type == "cuda"}
        backend = "nccl" if len(gpus) == self.size else "gloo"  # nccl takes one process a GPU
        threads = max(1, self.threads // self.size)
        places = [
            Place(rank, self.size, str(device), backend, store.port, threads)
            for rank, device in enumerate(self.devices)
        ]
        for place in places[1:]:
            self._spawn(place)
        for pipe in self.pipes:
            with told_as_lost():
                reason = pipe.recv() if pipe.poll(PATIENCE.total_seconds()) else "it does not start"
            if reason:
                raise TrialError(f"a process of the trial cannot help: {reason}")
        return places[0].join(self.pipes, store)

    def _spawn(self, place: Place) -> None:
        context = get_context("spawn")
        near, far = context.Pipe()
        arguments = (place, far, self.files, get_start_method(allow_none=True))
        process = context.Process(target=help_out, args=arguments, name=f"mmx-rank-{place.rank}")
        resource_tracker.ensure_running()  # it would unblock the signals
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # and so they are in the new process
        try:
            with environment({**threads_of(place.threads), "OMP_WAIT_POLICY": "PASSIVE"}):
                process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        far.close()
        self.processes.append(process)
        self.pipes.append(near)

    def _reason(self) -> str:
        """Find out which helper failed or died; empty where none tells."""
        wait([process.sentinel for process in self.processes], LAST_WORDS)
        for number, (process, pipe) in enumerate(zip(self.processes, self.pipes, strict=True), start=2):
            process.join(LAST_WORDS / 10)
            told = ""
            with suppress(EOFError, OSError):
                told = pipe.recv() if pipe.poll() else ""
            if told or process.exitcode:
                how = f"failed: {told}" if told else f"died ({_told(process.exitcode)})"
                return f"process {number} of the {self.size} that train the trial {how}"
        return ""


class _Watch(threading.Thread):
    """Breaks up the group when a helper dies: not every backend notices that by itself."""

    def __init__(self, processes: Sequence[BaseProcess]) -> None:
        super().__init__(daemon=True)
        self.processes = tuple(processes)
        self.over = threading.Event()

    def run(self) -> None:
        """Wait for the first to end."""
        wait([process.sentinel for process in self.processes])
        if not self.over.is_set():
            with suppress(RuntimeError):
                distributed.distributed_c10d._get_default_group().abort()


def help_out(place: Place, pipe: Connection, files: Sequence[Path], start_method: str | None) -> None:
    """Be a helper: the whole life of its process. Its loaders start as the worker's do."""
    set_start_method(start_method, force=True)  # a spawned process would spawn its own
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        bench = Bench(Registry.load(files=files))
        pipe.send("")
        team = place.join([pipe])
        while True:
            with told_as_lost():
                spec = pipe.recv()
            train_in_phases(spec, bench, team.device, team=team)
    except LostError:  # the worker has ended, or another helper
        return
    except Exception as error:  # noqa: BLE001 whatever it is, the worker tells it
        traceback.print_exc()
        with suppress(OSError):
            pipe.send(f"{type(error).__name__}: {error}")
        sys.exit(1)


def _end_with_parent() -> None:
    """End at once when the worker is gone, even in the middle of a step."""
    parent = parent_process()
    if parent is not None:
        parent.join()
    os._exit(0)


def _kill(processes: list[BaseProcess]) -> None:
    for process in processes:
        process.kill()
        process.join()
    processes.clear()


def _told(code: int | None) -> str:
    if code is not None and code < 0:
        return f"signal {-code}" + (", which the system sends when memory runs out" if code == -9 else "")
    return f"exit code {code}"
