"""Names the process that does some work, so that another can tell whether it still lives."""

import os
import socket
from functools import cache

import psutil

CLOCK = 5.0
"""Seconds by which a process's start may seem to move when the clock is set."""


@cache
def _name(process: int) -> str:
    """Tell its start too: numbers of processes are used again."""
    return f"{socket.gethostname()}:{process}:{psutil.Process(process).create_time():.2f}"


def this_worker() -> str:
    """Name this process as host:pid:start."""
    return _name(os.getpid())


def host_of(worker: str) -> str:
    """Give the host of a worker."""
    return worker.split(":", maxsplit=1)[0]


def is_gone(worker: str) -> bool:
    """Tell whether a worker of this host no longer lives; False for those elsewhere, which nobody knows."""
    host, _, rest = worker.partition(":")
    number, _, start = rest.partition(":")
    if host != socket.gethostname() or not number.isdigit():
        return False
    try:
        process = psutil.Process(int(number))
        another = bool(start) and abs(process.create_time() - float(start)) > CLOCK
        return another or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False
