"""Runs one trial, from its frozen spec to its figures: a straight line."""

import time
from collections.abc import Callable

import numpy as np
import torch

from mmx import evaluate
from mmx.config import TrialSpec
from mmx.contracts import Presence
from mmx.data import Split
from mmx.errors import TrialError
from mmx.evaluate import Predictions
from mmx.model import MultimodalModel
from mmx.protocols import derive_seed, draw_presence
from mmx.train import Figures, Fit, fit
from mmx.trial.bench import Bench, monitor_of
from mmx.trial.figures import Outcome, curves_of, summarise, tell

__all__ = ["Bench", "Outcome", "monitor_of", "run_trial", "tell"]


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
        curves = curves_of(spec, bench.protocol(spec), predictions, split.task, "any", name)
        summarise(split.task, curves, predictions, "selection", outcome)
    return predictions


def _finite(predictions: Predictions, pattern: frozenset[str]) -> bool:
    return bool(np.isfinite(predictions.outputs[pattern][predictions.has(pattern)]).all())


def _peak_memory(device: torch.device) -> float:
    """Give the peak in MB: of the GPU's allocator, or of the whole process on a CPU (Linux counts in kB)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
