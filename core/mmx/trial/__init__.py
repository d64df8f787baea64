"""Runs one trial, from its frozen spec to its figures: a straight line."""

import time
from contextlib import nullcontext

import numpy as np
import torch

from mmx import evaluate
from mmx.config import TrialSpec
from mmx.errors import TrialError
from mmx.evaluate import Predictions
from mmx.model import MultimodalModel
from mmx.team import ALONE
from mmx.train import OnEpoch
from mmx.trial.bench import SPLITS, Bench, monitor_of
from mmx.trial.encoded import open_split
from mmx.trial.figures import Outcome, curves_of, summarise, tell
from mmx.trial.helpers import Helpers
from mmx.trial.phases import Stage, train_in_phases

__all__ = ["SPLITS", "Bench", "Helpers", "Outcome", "monitor_of", "run_trial", "tell"]


def run_trial(
    spec: TrialSpec,
    bench: Bench,
    device: torch.device,
    on_epoch: OnEpoch = lambda epoch, figures: False,
    helpers: Helpers | None = None,
) -> Outcome:
    """Train and evaluate one trial.

    Training masks come from (missing.seed, seed), validation and test masks from missing.seed alone. The
    test split is opened after training has ended and the epoch has been picked. The last phase's checkpoint
    stays until `bench.forget`: what follows may fail, a store that is full, say.

    Where the bench has a folder, a checkpoint is there before `on_epoch` is told of an epoch, whatever that
    raises: called again, the trial goes on behind that epoch and comes to the same numbers, after it has told
    `on_epoch` of all earlier ones again. When `on_epoch` gives True in the last phase, training ends and the
    best epoch so far is evaluated.

    `helpers`: the processes that train it together with this one, if any; this one alone evaluates.
    """
    with helpers.trial(spec) if helpers is not None else nullcontext(ALONE) as team:
        model, stages = train_in_phases(spec, bench, device, on_epoch, team)
    whole = model.state_dict() if spec.training.phases else model.trained_state()
    outcome = Outcome(state={n: t.cpu().contiguous() for n, t in whole.items()})
    _tell_training(stages, model, bool(spec.training.phases), outcome)
    size = max(256, spec.training.batch_size)
    _evaluate_split(spec, bench, model, device, "val", size, outcome)
    started = time.perf_counter()
    outcome.predictions = _evaluate_split(spec, bench, model, device, "test", size, outcome)
    outcome.set("cost/eval_seconds", time.perf_counter() - started)
    outcome.set("cost/peak_memory_mb", _peak_memory(device))
    return outcome


def _tell_training(stages: list[Stage], model: MultimodalModel, phased: bool, outcome: Outcome) -> None:
    """Note the epochs, which go on counting from phase to phase, and what training cost."""
    epoch = 0
    for place, stage in enumerate(stages):
        for figures in stage.fit.history:
            for name, value in figures.items():
                outcome.set(name, value, epoch)
            epoch += 1
        if phased:
            outcome.set("phase/trainable_params", stage.trainable, place)
            outcome.set("phase/trainable_share", stage.trainable / stage.total, place)
            outcome.set("phase/train_seconds", stage.fit.seconds, place)
            outcome.set("phase/best_epoch", stage.fit.best_epoch, place)
    outcome.set("cost/trainable_params", max(stage.trainable for stage in stages))
    outcome.set("cost/total_params", model.count_parameters()[1])
    outcome.set("cost/train_seconds", sum(stage.fit.seconds for stage in stages))
    outcome.set("cost/best_epoch", stages[-1].fit.best_epoch)


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
    split = open_split(spec, bench, model, name, device)
    predictions = evaluate.predict_patterns(model, split, device, batch_size, spec.training.loader_workers)
    if not all(_finite(predictions, pattern) for pattern in predictions.outputs):
        raise TrialError(f"predictions on the {name} split are NaN or infinite; lower training.learning_rate")
    if name == "test":
        tell(spec, bench.protocol(spec), predictions, split.task, outcome)
    else:
        curves = curves_of(spec, bench.protocol(spec), predictions, split.task.scores, "any", name)
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
