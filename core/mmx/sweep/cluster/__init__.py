"""`mmx run --executor ray`: points are tasks of a Ray cluster.

The driver hands tasks out, answers them and shows them, as the parent of local workers does; they reach it
through an actor, the desk. A task that is lost with its node is handed out again under the same name: what it
held is ended at once, and carried on from its checkpoint.
"""

import os

from mmx.errors import InputError

# Ray reads both when it is imported. A cluster that is started here listens on loopback alone, and what Ray
# prints of nodes that are lost, dozens of lines on the standard output, is told by mmx in one.
if not os.environ.get("RAY_ADDRESS"):
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "^")

try:
    import ray  # noqa: F401 whether it is there
except ModuleNotFoundError as error:
    raise InputError("run.executor: 'ray' is not installed here: pip install 'mmx[ray]'") from error

from mmx.sweep.cluster.driver import run_on_ray

__all__ = ["run_on_ray"]
