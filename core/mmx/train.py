"""The one training loop. Strategies, adapters and procedures plug into its stages and never own it."""

import copy
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from mmx.config import TrainingSpec
from mmx.contracts import Presence, Procedure, Strategy
from mmx.course import Course, Figures, Fit, Monitor
from mmx.data import Split, rows_that_have_any, shuffled, to_device
from mmx.errors import DataError
from mmx.model import MultimodalModel
from mmx.team import ALONE, Team

__all__ = ["Figures", "Fit", "Memory", "Monitor", "OnEpoch", "fit"]

OnEpoch = Callable[[int, Figures], bool]
"""Is told the number of an epoch (from 0) and its figures; True means: train no further."""


@runtime_checkable
class Memory(Protocol):
    """Where a training under way is kept, so that it can be carried on in another process."""

    def read(self) -> Mapping[str, Any] | None:
        """Give what was written last, None where there is nothing that can be read."""
        ...

    def write(self, state: Mapping[str, Any]) -> None:
        """Put plain values and tensors in the place of what was there."""
        ...

    def drop(self, reason: str) -> None:
        """Take away what cannot be used, and say so."""
        ...


def fit(
    model: MultimodalModel,
    procedure: Procedure,
    split: Split,
    presence: Presence,
    training: TrainingSpec,
    monitor: Monitor,
    validate: Callable[[], Figures],
    seed: int,
    device: torch.device,
    on_epoch: OnEpoch = lambda epoch, figures: False,
    memory: Memory | None = None,
    team: Team = ALONE,
) -> Fit:
    """Train, and restore the epoch that `validate` found best.

    Rows that have no modality under `presence` are left out. The order of batches and all dropout are
    functions of `seed`. Raises DivergedError at the first loss that is NaN or infinite.

    Each epoch is written to `memory` before `on_epoch` is told of it. What lies there from a training that
    was broken off is carried on, to the same bits; its epochs are told once more first.

    In a `team` every process calls this with equal arguments, a model in the same state included. Only the
    leader's `validate`, `on_epoch` and `memory` are used.
    """
    started = time.perf_counter()
    rows = rows_that_have_any(presence)
    if len(rows) == 0:
        raise DataError("no training row has any of the modalities that training sees")
    torch.manual_seed(seed)
    order = rows[shuffled(len(rows), seed, 0)]
    _calibrate(model, procedure, split, presence, order, training, device, team)
    _prepare(model, split, presence, rows, training, device)
    course = Course(model, procedure, training, len(rows), device, started, team)
    _recall(course, memory)
    for epoch, figures in enumerate(course.history):
        course.stopped |= team.decide(partial(_ends, on_epoch, epoch, figures))
    while not course.over():
        epoch = len(course.history)
        order = rows[shuffled(len(rows), seed, epoch)]
        batches = team.batches(split, order, training.batch_size, presence, training.loader_workers)
        trained = course.train(batches)
        course.note({**trained, **team.decide(partial(_plain, validate))}, monitor)
        _remember(course, memory)
        if team.decide(partial(_ends, on_epoch, epoch, course.history[-1])):
            course.stopped = True
            _remember(course, memory)  # whoever carries on must not train further either
    return course.end(monitor)


def _plain(validate: Callable[[], Figures]) -> Figures:
    return {name: float(value) for name, value in validate().items()}


def _ends(on_epoch: OnEpoch, epoch: int, figures: Figures) -> bool:
    return bool(on_epoch(epoch, figures))


def _remember(course: Course, memory: Memory | None) -> None:
    if memory is not None and course.team.leads:
        memory.write(course.state_dict())


def _recall(course: Course, memory: Memory | None) -> None:
    """Go on from what was written; where that does not fit, drop it and start from the beginning."""
    taken = course.team.decide(lambda: None if memory is None else _take_up(course, memory))
    if taken is not None and not course.team.leads:
        course.load_state_dict(taken)


def _take_up(course: Course, memory: Memory) -> Mapping[str, Any] | None:
    found = memory.read()
    if found is None:
        return None
    before = copy.deepcopy(course.state_dict())
    try:
        course.load_state_dict(found)
    except Exception as error:  # noqa: BLE001 what is in it may be anything
        course.load_state_dict(before)
        memory.drop(f"{type(error).__name__}: {error}")
        return None
    return found


def _prepare(
    model: MultimodalModel,
    split: Split,
    presence: Presence,
    rows: Tensor,
    training: TrainingSpec,
    device: torch.device,
) -> None:
    """Show a strategy that asks for it the encodings of all training rows, each process of a team alone."""
    if type(model.strategy).prepare is Strategy.prepare:
        return
    model.eval()
    batches = (to_device(b, device) for b in split.batches(rows, max(256, training.batch_size), presence))
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        model.strategy.prepare(model.encode(b.inputs, b.presence, b.presence) for b in batches)


def _calibrate(
    model: MultimodalModel,
    procedure: Procedure,
    split: Split,
    presence: Presence,
    order: Tensor,
    training: TrainingSpec,
    device: torch.device,
    team: Team,
) -> None:
    """Show adapters that ask for it the summed gradients of a few batches, to choose by what trains."""
    wanted = max((a.calibration_batches for a in model.adapters.values()), default=0)
    if not wanted:
        return
    model.train()
    procedure.epoch_started(0, wanted)
    shared, order = team.share(model), order[: wanted * training.batch_size]
    for batch in team.batches(split, order, training.batch_size, presence):
        for step in procedure.steps(shared, to_device(batch, device)):
            if step.loss.requires_grad:
                step.loss.backward()
    team.pool_gradients(model)
    for adapter in model.adapters.values():
        adapter.calibrate()
    model.zero_grad(set_to_none=True)
