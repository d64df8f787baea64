"""Names the process that does some work, so that another can tell whether it still lives."""

import os
import socket


def this_worker() -> str:
    """Name this process as host:pid."""
    return f"{socket.gethostname()}:{os.getpid()}"


def is_gone(worker: str) -> bool:
    """Tell whether a worker of this host no longer lives; False for those elsewhere, which nobody knows."""
    host, _, pid = worker.rpartition(":")
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
