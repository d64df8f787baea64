"""Estimates how long a sweep has still to run: from finished trials, or from a few timed training steps."""

import math
import time
from collections.abc import Sequence
from statistics import mean

import torch

from mmx.config import TrialSpec
from mmx.contracts import TrialRecord
from mmx.sweep.plan import Plan
from mmx.sweep.study import budget
from mmx.trial import Bench

STEPS = 2
BEYOND_TRAINING = 1.3
"""Validation and evaluation, as a multiple of the training steps' time (measured on `quickstart`)."""


def seconds_left(plan: Plan, records: Sequence[TrialRecord]) -> float:
    """Estimate the seconds of all trials that are not done, one after another, on the CPU unless some ran."""
    per_strategy: dict[str, float] = {}
    total = 0.0
    for cell in plan.cells:
        name = cell.spec.strategy.name
        points = budget(cell.raw.tune, plan.sweep.search.trials_per_cell) if cell.raw.tune else 1
        done = {(r.point, r.seed) for r in records if r.cell == cell.id and r.state == "done"}
        missing = points * len(plan.sweep.search.seeds) - len(done)
        if missing > 0:
            if name not in per_strategy:
                per_strategy[name] = _seconds_of_one(plan.bench, cell.spec, records)
            total += missing * per_strategy[name]
    return total


def _seconds_of_one(bench: Bench, spec: TrialSpec, records: Sequence[TrialRecord]) -> float:
    known = [
        r.metrics["cost/train_seconds"] + r.metrics["cost/eval_seconds"]
        for r in records
        if r.state == "done" and r.params.get("strategy") == spec.strategy.name
    ]
    return mean(known) if known else _time_steps(bench, spec)


def _time_steps(bench: Bench, spec: TrialSpec) -> float:
    """Time a few training steps on real rows and extend them to all epochs."""
    model, split, procedure = bench.model(spec).train(), bench.split(spec, "train"), bench.procedure(spec)
    batch = split.batch(torch.arange(min(len(split), spec.training.batch_size)), split.natural)
    started = 0.0
    for step in range(STEPS + 1):
        if step == 1:  # the first is a warm-up
            started = time.perf_counter()
        for part in procedure.steps(model, batch):
            part.loss.backward()
    each = (time.perf_counter() - started) / STEPS
    batches = math.ceil(len(split) / spec.training.batch_size)
    return each * batches * spec.training.epochs * BEYOND_TRAINING
