"""The way to a Ray cluster: connect, see what it has, and open the desk between tasks and driver."""

import logging
import os
import re
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, no_type_check

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mmx.config import SweepSpec
from mmx.errors import InputError
from mmx.sweep.cluster.job import demand
from mmx.sweep.places import (
    study_address,
    tracking_address,
)

ADDRESS = "RAY_ADDRESS"
STORE = 80 * 2**20
"""Bytes of a local cluster's object store: what tasks are told is small."""
PASSWORD = re.compile(r"//[^/@\s]*:[^/@\s]*@|[?&]password=")


@contextmanager
def connected() -> Iterator[bool]:
    """Be connected to a cluster; tell whether it is one that was started for this, and ends with it."""
    address = os.environ.get(ADDRESS) or "local"
    if address.startswith("ray://"):
        raise InputError(
            f"--ray-address '{address}' is Ray's client; run mmx on a node of the cluster with --ray-address "
            f"auto, or as a job: ray job submit -- mmx run …"
        )
    if address != "local" and any(PASSWORD.search(argument) for argument in sys.argv):
        raise InputError(
            "Ray's dashboard shows the command line, and yours holds a password; write the address into the "
            "sweep file, or set MLFLOW_TRACKING_PASSWORD or PGPASSWORD"
        )
    if ray.is_initialized():
        yield False
        return
    _connect(address)
    try:
        yield address == "local"
    finally:
        ray.shutdown()


def _connect(address: str) -> None:
    """Start or join a cluster; Ctrl-C and SIGTERM are mmx's, whatever Ray makes of them."""
    mine = threading.current_thread() is threading.main_thread()
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)} if mine else {}
    group = os.getpgrp()
    local = {"object_store_memory": STORE, "include_dashboard": False} if address == "local" else {}
    try:
        _knock(address)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except (RayError, ConnectionError, RuntimeError, ValueError, OSError) as error:
        told, advice = "run.executor: Ray cannot be started here", ""
        if not local:
            told = f"--ray-address '{address}' is no cluster"
            advice = "; see that it is up (ray status), with the same Ray, Python and RAY_AUTH_MODE"
        raise InputError(f"{told}: {first_sentence(error)}{advice}") from error
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if os.getpgrp() != group:
            os.setpgid(0, group)  # Ray leaves the group that a terminal sends Ctrl-C to


def _knock(address: str) -> None:
    """See that somebody listens at host:port; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def room_for(options: Mapping[str, Any]) -> int:
    """Count the tasks that the cluster could run at once if it did nothing else."""
    asked = demand(options)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(int(min(has.get(name, 0) / amount for name, amount in asked.items())) for has in nodes)


def check_stores(sweep: SweepSpec) -> None:
    """Refuse stores that are files of one machine where the cluster has several (InputError)."""
    hosts = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    advice = {
        "tracking": "an MLflow server, http://…, or postgresql://…",
        "study": "postgresql://…, or journal:///… on a disk that they share",
    }
    addresses = {"tracking": tracking_address(sweep), "study": study_address(sweep)}
    bad = {key: address for key, address in addresses.items() if address.startswith("sqlite")}
    if len(hosts) > 1 and bad:
        told = "; ".join(f"store.{key} '{address}': use {advice[key]}" for key, address in bad.items())
        raise InputError(f"SQLite serves one machine, and the Ray cluster has {len(hosts)}: {told}")


def open_desk() -> Any:
    """Start the actor between tasks and driver, on the driver's node."""

    # A local class is sent whole, so that its process need not import torch; one that is wrapped cannot be.
    @no_type_check
    class Desk:
        def __init__(self) -> None:
            self.said: list[Any] = []
            self.answers: dict[str, Any] = {}
            self.stopped: set[str] = set()

        def say(self, name: str, message: Any) -> bool:
            self.said.append((name, *message))
            return "" in self.stopped or name in self.stopped

        async def answer_to(self, name: str) -> Any:
            import asyncio

            while name not in self.answers:
                await asyncio.sleep(0.02)
            return self.answers.pop(name)

        def hear(self) -> list[Any]:
            said, self.said = self.said, []
            return said

        def answer(self, name: str, answer: Any) -> None:
            self.answers[name] = answer

        def stop(self, name: str) -> None:
            self.stopped.add(name)

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Desk).options(num_cpus=0, scheduling_strategy=here).remote()


def first_sentence(error: Exception) -> str:
    """Give the heart of what Ray says; of an error inside a task the error, which comes last."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1 if isinstance(error, RayTaskError) else 0].partition(". ")[0].strip().rstrip(".")
