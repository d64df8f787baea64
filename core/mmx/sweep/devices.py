"""Finds the devices that a call may use."""

from collections.abc import Sequence
from pathlib import Path

import torch

from mmx.config import SweepSpec
from mmx.errors import InputError
from mmx.trial import Helpers


def find_device(name: str) -> torch.device:
    """Give the device: `auto` is a GPU where there is one (InputError where the asked one is not there)."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device '{name}' cannot be used ({reason}); use auto, cpu or cuda:0") from error
    return device


def device_names(asked: str) -> list[str]:
    """List devices: `auto` is every GPU, or the CPU; several are joined by commas (`cuda:0,cuda:1`)."""
    if asked == "auto":
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]
    return [name.strip() for name in asked.split(",") if name.strip()]


def devices_of(worker: int, names: Sequence[str], processes: int) -> str:
    """Name the devices of a worker's processes, joined by commas; used again where there are too few."""
    return ",".join(names[(worker * processes + place) % len(names)] for place in range(processes))


def helpers_of(sweep: SweepSpec, names: str) -> Helpers | None:
    """Give the processes that help a worker on devices of such names, None where a trial has one process."""
    size, folder = sweep.run.processes_per_trial, Path(sweep.source).parent
    if size == 1:
        return None
    # Not `find_device`, which would take memory on the GPUs of the others.
    devices = [find_device(name) if name == "auto" else torch.device(name) for name in names.split(",")]
    return Helpers(size, devices, [folder / file for file in sweep.plugins])
