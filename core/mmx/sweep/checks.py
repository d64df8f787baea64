"""What a sweep gets wrong although its form is right: rates, targets, modalities, training, search."""

import math
from collections.abc import Mapping
from typing import Any

from mmx.config import ComponentSpec, SweepSpec, TrainingSpec, TrialSpec
from mmx.contracts import Task
from mmx.errors import Fault, InputError, did_you_mean
from mmx.evaluate import pattern_name, target_rate
from mmx.protocols import all_patterns, rate_of_each
from mmx.sweep.pruning import check_pruner
from mmx.trial import Bench, monitor_of

SAMPLERS = ("tpe", "random", "qmc", "cmaes")
RESOURCES = ("cpu", "gpu", "memory")
SMALLEST_MEMORY = 2**20
"""Bytes of memory below which a number was surely meant in another unit."""


def check_search(sweep: SweepSpec, faults: list[Fault]) -> None:
    """Check the budget, the sampler and the pruner, and what a trial is to have of a cluster."""
    search = sweep.search
    if search.trials_per_cell > 1 and not search.tune:
        faults.append(Fault("search.trials_per_cell", "is above 1, but nothing is tuned; add search.tune"))
    _check_sampler(search.sampler, len(search.objective), faults)
    check_pruner(sweep, faults)
    _check_resources(sweep.run.resources, faults)


def _check_sampler(sampler: ComponentSpec, objectives: int, faults: list[Fault]) -> None:
    key, name = "search.sampler", sampler.name
    if name not in SAMPLERS:
        faults.append(Fault(f"{key}.name", f"'{name}' is no sampler.{did_you_mean(name, SAMPLERS)}"))
    if name == "cmaes" and objectives > 1:
        faults.append(
            Fault(f"{key}.name", f"'cmaes' searches for one objective, not {objectives}; write tpe")
        )
    for option, value in sampler.options.items():
        if option != "seed" or isinstance(value, bool) or not isinstance(value, int):
            faults.append(Fault(f"{key}.{option}", "takes only a whole number 'seed'"))


def _check_resources(resources: Mapping[str, float], faults: list[Fault]) -> None:
    """Check what Ray is asked for; beside the known names there may be a cluster's own."""
    for name, amount in resources.items():
        key = f"run.resources.{name}"
        bare = name.lower().removeprefix("num_").rstrip("s")
        if name not in RESOURCES and bare in (*RESOURCES, "mem"):
            faults.append(Fault(key, f"unknown key.{did_you_mean(bare, RESOURCES, cutoff=0.3)}"))
        elif not 0 < amount < math.inf:
            faults.append(Fault(key, f"{amount:g} must be above 0"))
        elif name == "memory" and amount < SMALLEST_MEMORY:
            faults.append(Fault(key, f"{amount:g} is in bytes; 4.0e9 is 4 GB"))
        elif amount > 1 and amount % 1:
            faults.append(Fault(key, f"{amount:g} must be a share below 1, or whole"))


def check_cell(bench: Bench, spec: TrialSpec, faults: list[Fault]) -> None:
    """Check what hangs on the data: modalities, rates, targets, patterns, the monitor."""
    dataset = bench.dataset(spec.dataset)
    known = list(dataset.modalities)
    for m in spec.encoders:
        if m not in known:
            message = f"dataset '{spec.dataset.name}' has no modality '{m}'.{did_you_mean(m, known)}"
            faults.append(Fault(f"encoders.{m}", message))
            return
    modalities = bench.modalities(spec)
    for place, stage in enumerate(spec.stages()):
        key = f"training.phases.{place}" if spec.training.phases else "training"
        _check_training(stage.training, key, faults)
        seen_key = key if spec.training.phases else "missing.train"
        _check_seen(stage, f"{seen_key}.modalities", modalities, faults)
        _check_rates(bench, stage, f"{seen_key}.rate", modalities, faults)
        try:
            monitor_of(stage, dataset.task)
        except InputError as error:
            faults.append(Fault("", str(error)))
    names = [pattern_name(p, modalities) for p in all_patterns(modalities)]
    if spec.missing.eval.patterns != "all":
        for name in spec.missing.eval.patterns:
            if name not in names:
                faults.append(
                    Fault("missing.eval.patterns", f"'{name}' is no pattern.{did_you_mean(name, names)}")
                )


def _check_seen(stage: TrialSpec, where: str, modalities: tuple[str, ...], faults: list[Fault]) -> None:
    """Check which modalities training sees."""
    seen = stage.missing.train.modalities
    if len(set(seen)) < len(seen):
        faults.append(Fault(where, f"{list(seen)} names a modality twice"))
    for m in seen:
        if m not in modalities:
            faults.append(Fault(where, f"there is no encoder for '{m}'.{did_you_mean(m, modalities)}"))


def _check_training(training: TrainingSpec, key: str, faults: list[Fault]) -> None:
    checks = {
        "epochs": (training.epochs >= 1, "at least 1"),
        "batch_size": (training.batch_size >= 1, "at least 1"),
        "learning_rate": (training.learning_rate > 0, "above 0"),
        "weight_decay": (training.weight_decay >= 0, "0 or more"),
        "warmup": (0 <= training.warmup < 1, "a share of the steps, 0 to below 1"),
        "gradient_clip": (training.gradient_clip >= 0, "0 or more"),
        "patience": (training.patience >= 0, "0 or more"),
        "loader_workers": (training.loader_workers >= 0, "0 or more"),
        "frozen_cache_gigabytes": (training.frozen_cache_gigabytes >= 0, "0 or more"),
        "precision": (training.precision in ("auto", "float32", "bfloat16"), "auto, float32 or bfloat16"),
    }
    for name, (holds, rule) in checks.items():
        if not holds:
            faults.append(Fault(f"{key}.{name}", f"{getattr(training, name)!r} must be {rule}"))


def _check_rates(
    bench: Bench, spec: TrialSpec, where: str, modalities: tuple[str, ...], faults: list[Fault]
) -> None:
    """Ask the protocol for the probabilities of every rate that will be drawn."""
    try:
        protocol = bench.protocol(spec)
    except InputError as error:
        faults.append(Fault("missing.protocol", str(error)))
        return
    asked: list[tuple[str, Any]] = [(where, spec.missing.train.rate)]
    for target in spec.missing.eval.targets:
        if target != "any" and target not in modalities:
            hint = did_you_mean(target, ["any", *modalities])
            faults.append(Fault("missing.eval.targets", f"'{target}' is no target.{hint}"))
            continue
        asked += [("missing.eval.rates", target_rate(target, r)) for r in spec.missing.eval.rates]
    rates = spec.missing.eval.rates
    if not rates or len({round(100 * r) for r in rates}) < len(rates):
        message = "must be one or more different rates, a whole percent (their step in the log) apart"
        faults.append(Fault("missing.eval.rates", message))
    for key, rate in asked:
        try:
            rate_of_each(rate, modalities)
            if len(modalities) > 1:
                protocol.weights(rate, modalities)
        except InputError as error:
            faults.append(Fault(key, str(error)))


def check_objective(sweep: SweepSpec, task: Task, faults: list[Fault]) -> None:
    """Refuse an objective that no trial has a figure for."""
    known = [f"summary/robust_{s.name}" for s in task.scores]
    known += [f"summary/{k}" for k in ("clean", "worst", "drop_at_50", "retention")]
    known += [
        f"cost/{k}"
        for k in ("trainable_params", "total_params", "train_seconds", "eval_seconds", "peak_memory_mb")
    ]
    for figure in sweep.search.objective:
        if figure not in known:
            faults.append(Fault("search.objective", f"'{figure}' is no figure.{did_you_mean(figure, known)}"))
