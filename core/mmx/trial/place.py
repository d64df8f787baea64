"""Where a process stands among those of a trial, and how it meets them."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection

import torch
from torch import distributed
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from mmx.trial.together import Together

HOST = "127.0.0.1"
PATIENCE = timedelta(minutes=5)
"""How long processes wait for each other within a step; that one has died is noticed at once."""


@dataclass(frozen=True)
class Place:
    """Where a process stands among those of a trial."""

    rank: int
    size: int
    device: str
    backend: str
    port: int
    threads: int

    def join(self, pipes: Sequence[Connection], store: TCPStore | None = None) -> Together:
        """Meet the others, by accelerate; waits until all are there."""
        from accelerate import PartialState  # type: ignore[import-untyped]

        store = store or TCPStore(HOST, self.port, self.size, timeout=PATIENCE)
        device = torch.device(self.device)
        torch.set_num_threads(self.threads)
        PartialState._reset_state()
        with environment(self._variables(device)):
            PartialState(
                cpu=device.type == "cpu",
                backend=self.backend,
                store=store,
                rank=self.rank,
                world_size=self.size,
                timeout=PATIENCE,
            )
        return Together(self.rank, self.size, device, pipes)

    def _variables(self, device: torch.device) -> dict[str, str]:
        """Name what accelerate reads; it takes the local rank for the number of the GPU."""
        loopback = "lo" if sys.platform == "linux" else "lo0"
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(self.rank if device.type == "cpu" else device.index or 0),
            "LOCAL_WORLD_SIZE": str(self.size),
            **threads_of(self.threads),
            "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", loopback),
            # Give up what hangs, but not the process.
            "TORCH_NCCL_ASYNC_ERROR_HANDLING": "2",
        }


def leave() -> None:
    """Leave the group, so that another can be joined."""
    from accelerate import PartialState

    with suppress(RuntimeError):  # its other members are gone
        distributed.destroy_process_group()
    PartialState._reset_state()


def threads_of(count: int) -> dict[str, str]:
    """Name the variables that give a new process so many threads."""
    return {"OMP_NUM_THREADS": str(count), "MKL_NUM_THREADS": str(count)}


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables for a while."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
