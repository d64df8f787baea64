"""Estimates how long a sweep has still to run: from finished trials, or from a few timed training steps."""

import copy
import math
import time
from collections.abc import Sequence
from statistics import mean

from mmx.config import TrialSpec
from mmx.contracts import TrialRecord
from mmx.data import rows_that_have_any, seen_in_training
from mmx.sweep.plan import Plan
from mmx.sweep.tuning import budget
from mmx.trial import Bench

STEPS = 2
BEYOND_TRAINING = 1.3
"""Validation and evaluation, as a multiple of the training steps' time (measured on `quickstart`)."""


def seconds_left(plan: Plan, records: Sequence[TrialRecord]) -> float:
    """Estimate the seconds of all trials that are not done, one after another, on the CPU unless some ran."""
    each: dict[str, float] = {}
    total = 0.0
    for cell in plan.cells:
        name = cell.raw.method or cell.spec.strategy.name
        points = budget(cell.raw.tune, plan.sweep.search.trials_per_cell) if cell.raw.tune else 1
        done = {(r.point, r.seed) for r in records if r.cell == cell.id and r.state == "done"}
        missing = points * len(plan.sweep.search.seeds) - len(done)
        if missing > 0:
            if name not in each:
                own = [r for r in records if r.params.get("method", r.params.get("strategy")) == name]
                each[name] = _seconds_of_one(plan.bench, cell.spec, own)
            total += missing * each[name]
    return total


def _seconds_of_one(bench: Bench, spec: TrialSpec, records: Sequence[TrialRecord]) -> float:
    known = [
        r.metrics["cost/train_seconds"] + r.metrics["cost/eval_seconds"] for r in records if r.state == "done"
    ]
    return mean(known) if known else sum(_time_steps(bench, stage) for stage in spec.stages())


def _time_steps(bench: Bench, spec: TrialSpec) -> float:
    """Time a few training steps on real rows and extend them to all epochs."""
    model, split = bench.model(spec).train(), bench.split(spec, "train")
    procedure = bench.procedure(spec, model, teacher=copy.deepcopy(model))
    presence = seen_in_training(split.natural, spec.missing.train.modalities)
    batch = split.batch(rows_that_have_any(presence)[: spec.training.batch_size], presence)
    started = 0.0
    for step in range(STEPS + 1):
        if step == 1:  # the first is a warm-up
            started = time.perf_counter()
        procedure.epoch_started(0, 1)
        for part in procedure.steps(model, batch):
            if part.loss.requires_grad:
                part.loss.backward()
    each = (time.perf_counter() - started) / STEPS
    batches = math.ceil(len(split) / spec.training.batch_size)
    return each * batches * spec.training.epochs * BEYOND_TRAINING
