"""What a cluster's tasks are told, and what they ask of a node."""

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmx.config import RunSpec, StoreSpec
from mmx.sweep.call import Call
from mmx.sweep.devices import devices_of
from mmx.sweep.places import (
    study_address,
    tracking_address,
)
from mmx.sweep.remote import Job

FORWARDED = ("MMX_", "MLFLOW_TRACKING_", "PGPASS", "PGUSER", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
"""How names of variables begin that tasks take over: what a sweep hangs on, logins included."""
RELATIVE = re.compile(r"((?:sqlite(?:\+\w+)?|journal):///)(?!/|:memory:|file:)(.+)")


@dataclass(frozen=True)
class ClusterJob(Job):
    """What all tasks of a call are told; put into Ray's object store, which no page or log shows."""

    folder: str = ""
    """The driver's, where relative paths of datasets begin."""
    environment: Mapping[str, str] = field(default_factory=dict)
    cpus: float = 1.0


@dataclass(frozen=True)
class Unit:
    """What one task does: a (cell, seed); of a tuned cell a proposal, or what earlier values lack."""

    task: str
    """Its name, however often it is tried."""
    place: int
    """Of the item in the plan."""
    values: Mapping[str, Any] | None = None


def needs(run: RunSpec, devices: Sequence[str]) -> dict[str, Any]:
    """Give Ray's options of a task: `run.resources`, else a CPU, and a GPU where the device is one.

    Ray itself tries no task again: who died of what is told apart here.
    """
    given, processes = dict(run.resources), float(run.processes_per_trial)
    gpus = processes * any(device.startswith("cuda") for device in devices)
    options: dict[str, Any] = {"num_cpus": given.pop("cpu", processes), "num_gpus": given.pop("gpu", gpus)}
    if "memory" in given:
        options["memory"] = int(given.pop("memory"))
    return {**options, "resources": given, "max_retries": 0}


def job_of(call: Call, name: str, options: Mapping[str, Any]) -> ClusterJob:
    """Say what a task needs to know, with addresses and paths that hold wherever it runs."""
    sweep = call.plan.sweep
    store = StoreSpec(*(absolute(a) for a in (tracking_address(sweep), study_address(sweep))))
    run = replace(sweep.run, folder=str(Path(sweep.run.folder).absolute()))
    source = str(Path(sweep.source).absolute())
    names = [f"cuda:{i}" for i in range(math.ceil(options["num_gpus"]))] or ["cpu"]
    return ClusterJob(
        replace(sweep, store=store, run=run, source=source),
        devices_of(0, names, sweep.run.processes_per_trial),
        0,
        call.known,
        task=name,
        calls=call.search.calls,
        folder=str(Path.cwd()),
        environment={n: v for n, v in os.environ.items() if n.startswith(FORWARDED)},
        cpus=options["num_cpus"],
    )


def absolute(address: str) -> str:
    """Give the address of a store that is a file so that it does not hang on the current folder."""
    found = RELATIVE.fullmatch(address)
    return f"{found[1]}{Path(found[2]).absolute()}" if found else address


def demand(options: Mapping[str, Any]) -> dict[str, float]:
    """List what a task takes of a node, by Ray's names."""
    asked = {"CPU": options["num_cpus"], "GPU": options["num_gpus"], "memory": options.get("memory", 0)}
    return {name: amount for name, amount in {**asked, **options["resources"]}.items() if amount}
