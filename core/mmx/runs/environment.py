"""What a run's numbers hang on beside its spec: versions, plugins, machine, data, command."""

import os
import platform
import re
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import distributions
from typing import Any

import torch

from mmx.config import TrialSpec
from mmx.config.address import SECRET, without_login
from mmx.registry import Registry
from mmx.trial import Bench
from mmx.trial.code import code_digest, components_of

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG", "CUDA_VISIBLE_DEVICES")
"""Of the environment, what may change numbers."""


def environment_of(spec: TrialSpec, bench: Bench, device: torch.device) -> dict[str, Any]:
    """Describe where a trial runs, and with which code and data, as plain data. Holds no secrets."""
    return {
        "command": command(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "code": code_digest(spec, bench.registry),
        "data": bench.data_digest(spec),
        "plugins": plugins_of(spec, bench.registry),
        "packages": packages(),
    }


def command() -> list[str]:
    """Give the command line that this process was started with, without logins and other secrets."""
    return ["mmx", *(SECRET.sub(_hidden, without_login(argument)) for argument in sys.argv[1:])]


def _hidden(found: re.Match[str]) -> str:
    return found[0].replace(found[1], "***")


def _processor() -> str:
    return f"cpu: {platform.processor() or platform.machine()}"


def plugins_of(spec: TrialSpec, registry: Registry) -> list[dict[str, str]]:
    """List the components that a trial uses, with their distributions and versions."""
    named = {part for stage in spec.stages() for part in components_of(stage)}
    found = []
    for kind, name in sorted(named):
        offer = registry.find(kind, name)
        found.append(
            {"kind": kind, "name": name, "distribution": offer.distribution, "version": offer.version}
        )
    return found


def packages() -> dict[str, str]:
    """Give every installed distribution's version."""
    return dict(_packages())


@cache
def _packages() -> Mapping[str, str]:
    found = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]}
    return dict(sorted(found.items(), key=lambda pair: pair[0].lower()))


def environment() -> str:
    """List Python, the platform and every installed distribution, as pip would."""
    lines = [f"{name}=={version}" for name, version in packages().items()]
    return "\n".join([f"# python {platform.python_version()}", f"# {platform.platform()}", *lines]) + "\n"
