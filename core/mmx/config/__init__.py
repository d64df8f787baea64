"""Configuration: a sweep file to frozen specs, with every fault told at once. Imports no torch."""

from mmx.config.load import SINGLE, component_keys, load_sweep, read_sweep
from mmx.config.paths import get_path, set_path
from mmx.config.reader import NOTHING, component, convert, read, read_trial
from mmx.config.space import RawCell, apply, cells
from mmx.config.specs import (
    ComponentSpec,
    EvalMissingSpec,
    MissingSpec,
    PhaseSpec,
    RunSpec,
    SearchSpec,
    StoreSpec,
    SweepSpec,
    TrainingSpec,
    TrainMissingSpec,
    TrialSpec,
    digest,
    plain,
)

__all__ = [
    "NOTHING",
    "SINGLE",
    "ComponentSpec",
    "EvalMissingSpec",
    "MissingSpec",
    "PhaseSpec",
    "RawCell",
    "RunSpec",
    "SearchSpec",
    "StoreSpec",
    "SweepSpec",
    "TrainMissingSpec",
    "TrainingSpec",
    "TrialSpec",
    "apply",
    "cells",
    "component",
    "component_keys",
    "convert",
    "digest",
    "get_path",
    "load_sweep",
    "plain",
    "read",
    "read_sweep",
    "read_trial",
    "set_path",
]
