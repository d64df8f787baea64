"""Runs one trial, from its frozen spec to its figures: a straight line."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmx import evaluate, metrics
from mmx.config import ComponentSpec, TrialSpec, digest, plain
from mmx.contracts import Dataset, Modality, Presence, Procedure, Task
from mmx.data import Split
from mmx.errors import DataError, InputError, TrialError
from mmx.evaluate import Predictions
from mmx.model import MultimodalModel, build_model
from mmx.protocols import Protocol, derive_seed, draw_presence
from mmx.registry import Registry
from mmx.registry.signature import construct
from mmx.train import Figures, Fit, Monitor, fit

NAME_RULE = "letters, digits and '_'"


@dataclass
class Outcome:
    """What a finished trial tells."""

    metrics: dict[str, dict[int, float]] = field(default_factory=dict)
    """Metric name to value by step."""
    predictions: Predictions | None = None
    state: Mapping[str, Tensor] = field(default_factory=dict)
    """What training changed: adapters, tokens, heads."""
    mask_digest: str = ""

    def set(self, name: str, value: float, step: int = 0) -> None:
        """Note a figure."""
        self.metrics.setdefault(name, {})[step] = float(value)

    def last(self) -> Figures:
        """Give the last value of each metric."""
        return {name: by_step[max(by_step)] for name, by_step in self.metrics.items()}


class Bench:
    """Opens datasets once and keeps them for the trials that follow."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self._datasets: dict[str, Dataset] = {}
        self._splits: dict[tuple[str, str, tuple[str, ...]], Split] = {}

    def dataset(self, spec: ComponentSpec) -> Dataset:
        """Build a dataset (once for equal specs)."""
        key = digest(plain(spec))
        if key not in self._datasets:
            cls = self.registry.load_class("dataset", spec.name)
            self._datasets[key] = construct(cls, spec.options, {})
            for name in self._datasets[key].modalities:
                if not name.replace("_", "").isalnum():
                    raise DataError(f"dataset '{spec.name}': modality '{name}' is not made of {NAME_RULE}")
        return self._datasets[key]

    def modalities(self, spec: TrialSpec) -> tuple[Modality, ...]:
        """Give the trial's modalities, in the dataset's order: those that it has an encoder for."""
        return tuple(m for m in self.dataset(spec.dataset).modalities if m in spec.encoders)

    def split(self, spec: TrialSpec, name: str) -> Split:
        """Open a split (once for equal datasets and modalities)."""
        key = (digest(plain(spec.dataset)), name, self.modalities(spec))
        if key not in self._splits:
            self._splits[key] = Split(self.dataset(spec.dataset), name, self.modalities(spec))
        return self._splits[key]

    def model(self, spec: TrialSpec) -> MultimodalModel:
        """Build the trial's model."""
        train = self.split(spec, "train")
        examples = {m: train.example(m) for m in self.modalities(spec)}
        return build_model(spec, self.dataset(spec.dataset), examples, self.registry)

    def protocol(self, spec: TrialSpec) -> Protocol:
        """Build the trial's protocol."""
        cls = self.registry.load_class("protocol", spec.missing.protocol.name)
        known = {"modalities": self.modalities(spec), "seed": spec.missing.seed}
        return construct(cls, spec.missing.protocol.options, known)

    def procedure(self, spec: TrialSpec) -> Procedure:
        """Build the trial's procedure."""
        cls = self.registry.load_class("procedure", spec.procedure.name)
        known = {
            "modalities": self.modalities(spec),
            "task": self.dataset(spec.dataset).task,
            "seed": spec.seed,
        }
        return construct(cls, spec.procedure.options, known)


def monitor_of(spec: TrialSpec, task: Task) -> Monitor:
    """Find the validation figure that picks the epoch (InputError where the task has none such)."""
    key = spec.training.monitor or f"val/{task.scores[0].name}"
    known = {"val/loss": False, **{f"val/{s.name}": s.higher_is_better for s in task.scores}}
    if key not in known:
        raise InputError(f"training.monitor: '{key}' is none of {', '.join(known)}")
    return Monitor(key, known[key])


def run_trial(
    spec: TrialSpec,
    bench: Bench,
    device: torch.device,
    on_epoch: Callable[[int, Figures], None] = lambda epoch, figures: None,
) -> Outcome:
    """Train and evaluate one trial.

    Training masks come from (missing.seed, seed), validation and test masks from missing.seed alone. The
    test split is opened after training has ended and the epoch has been picked.
    """
    model = bench.model(spec).to(device)
    fitted = _train(spec, bench, model, device, on_epoch)
    outcome = Outcome(state={n: t.cpu().contiguous() for n, t in model.trained_state().items()})
    for epoch, figures in enumerate(fitted.history):
        for name, value in figures.items():
            outcome.set(name, value, epoch)
    size = max(256, spec.training.batch_size)
    _evaluate_split(spec, bench, model, device, "val", size, outcome)
    started = time.perf_counter()
    outcome.predictions = _evaluate_split(spec, bench, model, device, "test", size, outcome)
    trainable, total = model.count_parameters()
    outcome.set("cost/trainable_params", trainable)
    outcome.set("cost/total_params", total)
    outcome.set("cost/train_seconds", fitted.seconds)
    outcome.set("cost/eval_seconds", time.perf_counter() - started)
    outcome.set("cost/peak_memory_mb", _peak_memory(device))
    outcome.set("cost/best_epoch", fitted.best_epoch)
    return outcome


def _train(
    spec: TrialSpec,
    bench: Bench,
    model: MultimodalModel,
    device: torch.device,
    on_epoch: Callable[[int, Figures], None],
) -> Fit:
    protocol, rate, seed = bench.protocol(spec), spec.missing.train.rate, spec.missing.seed
    train, val = bench.split(spec, "train"), bench.split(spec, "val")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    def presence(split: Split, mask_seed: int) -> Presence:
        return draw_presence(protocol, rate, split.ids, split.natural, mask_seed, split.name)

    val_presence, size = presence(val, seed), max(256, spec.training.batch_size)
    return fit(
        model,
        bench.procedure(spec),
        train,
        presence(train, derive_seed(seed, "train", spec.seed)),
        spec.training,
        monitor_of(spec, train.task),
        lambda: evaluate.validate(model, val, val_presence, device, size, spec.training.loader_workers),
        spec.seed,
        device,
        on_epoch,
    )


def _evaluate_split(
    spec: TrialSpec,
    bench: Bench,
    model: MultimodalModel,
    device: torch.device,
    name: str,
    batch_size: int,
    outcome: Outcome,
) -> Predictions:
    """Predict every pattern of a split; the test split's figures are the result, validation's only select."""
    split = bench.split(spec, name)
    predictions = evaluate.predict_patterns(model, split, device, batch_size, spec.training.loader_workers)
    if not all(_finite(predictions, pattern) for pattern in predictions.outputs):
        raise TrialError(f"predictions on the {name} split are NaN or infinite; lower training.learning_rate")
    if name == "test":
        tell(spec, bench.protocol(spec), predictions, split.task, outcome)
    else:
        for score in split.task.scores:
            for key, value in summary_of(spec, bench.protocol(spec), predictions, score, split).items():
                if score is split.task.scores[0] or key.startswith("robust_"):
                    outcome.set(f"selection/{key}", value)
    return predictions


def _finite(predictions: Predictions, pattern: frozenset[str]) -> bool:
    return bool(
        torch.isfinite(torch.from_numpy(predictions.outputs[pattern][predictions.has(pattern)])).all()
    )


def summary_of(
    spec: TrialSpec, protocol: Protocol, predictions: Predictions, score: metrics.Score, split: Split
) -> Figures:
    """Sum up one score over the `any` curve and the patterns."""
    curve = {
        rate: evaluate.curve_point(predictions, score, protocol, rate, spec.missing.seed, split.name)
        for rate in spec.missing.eval.rates
    }
    patterns = {p: predictions.score(p, score) for p in predictions.outputs if predictions.has(p).any()}
    return metrics.summarise(curve, patterns, score.name, score.higher_is_better)


def tell(spec: TrialSpec, protocol: Protocol, predictions: Predictions, task: Task, outcome: Outcome) -> None:
    """Note the test split's figures: curves, patterns, summary, contributions, realised rates."""
    seed, rates, order = spec.missing.seed, spec.missing.eval.rates, predictions.modalities
    for score in task.scores:
        curves: dict[str, dict[float, float]] = {}
        for target in spec.missing.eval.targets:
            curves[target] = {
                r: evaluate.curve_point(
                    predictions, score, protocol, evaluate.target_rate(target, r), seed, "test"
                )
                for r in rates
            }
            for r, value in curves[target].items():
                outcome.set(f"robustness/{score.name}_missing_{target}", value, percent(r))
        patterns = {p: predictions.score(p, score) for p in predictions.outputs if predictions.has(p).any()}
        for pattern, value in patterns.items():
            name = evaluate.pattern_name(pattern, order)
            if spec.missing.eval.patterns == "all" or name in spec.missing.eval.patterns:
                outcome.set(f"pattern/{score.name}_has_{name}", value)
        _sum_up(task, score, curves.get("any", {}), patterns, predictions, outcome)
    _tell_masks(spec, protocol, predictions, outcome)


def _sum_up(
    task: Task,
    score: metrics.Score,
    curve: Mapping[float, float],
    patterns: Mapping[frozenset[str], float],
    predictions: Predictions,
    outcome: Outcome,
) -> None:
    """Note `summary/…`, and for the primary score what each modality contributes."""
    primary = score is task.scores[0] or score.name == task.scores[0].name
    for key, value in metrics.summarise(curve, patterns, score.name, score.higher_is_better).items():
        if primary or key.startswith("robust_"):
            outcome.set(f"summary/{key}", value)
    if primary and len(patterns) == 2 ** len(predictions.modalities) - 1:
        nothing = score(task.constant(predictions.targets), predictions.targets)
        values = {**patterns, frozenset[str](): nothing}
        for m, value in metrics.shapley(values, predictions.modalities).items():
            outcome.set(f"contribution/shapley_{m}", value)


def _tell_masks(spec: TrialSpec, protocol: Protocol, predictions: Predictions, outcome: Outcome) -> None:
    drawn = []
    for target in spec.missing.eval.targets:
        for rate in spec.missing.eval.rates:
            presence = draw_presence(
                protocol,
                evaluate.target_rate(target, rate),
                predictions.ids,
                predictions.natural,
                spec.missing.seed,
            )
            drawn.append(presence)
            if target == "any":
                for m, realised in evaluate.realised_rates(presence).items():
                    outcome.set(f"missing/realised_rate_{m}", realised, percent(rate))
    outcome.mask_digest = evaluate.mask_digest(drawn)


def percent(rate: float) -> int:
    """Give a rate as the whole percent that MLflow takes as a step."""
    return round(rate * 100)


def _peak_memory(device: torch.device) -> float:
    """Give the peak in MB: of the GPU's allocator, or of the whole process on a CPU (Linux counts in kB)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def outcome_facts(outcome: Outcome) -> dict[str, Any]:
    """Give what observers are told of a finished trial."""
    return {"state": "done", "reason": "", "metrics": outcome.last()}
