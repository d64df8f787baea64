"""The one training loop. Strategies, adapters and procedures plug into its stages and never own it."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mmx.config import TrainingSpec
from mmx.contracts import Presence, Procedure, Step
from mmx.data import Split, rows_that_have_any, shuffled, to_device
from mmx.errors import DataError, DivergedError, TrialError
from mmx.model import MultimodalModel

Figures = dict[str, float]


@dataclass
class Fit:
    """What training left behind; the model holds the best epoch's state."""

    history: list[Figures] = field(default_factory=list)
    best_epoch: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Monitor:
    """The validation figure that picks the epoch."""

    key: str
    higher_is_better: bool

    def better(self, value: float, best: float | None) -> bool:
        """Tell whether a value beats the best so far; NaN never does."""
        if math.isnan(value):
            return False
        return best is None or (value > best if self.higher_is_better else value < best)


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
    on_epoch: Callable[[int, Figures], None] = lambda epoch, figures: None,
) -> Fit:
    """Train, and restore the epoch that `validate` found best.

    Rows that have no modality under `presence` are left out. The order of batches and all dropout are
    functions of `seed`. Raises DivergedError at the first loss that is NaN or infinite.
    """
    started = time.perf_counter()
    rows = rows_that_have_any(presence)
    if len(rows) == 0:
        raise DataError("no training row has any of the modalities that training sees")
    torch.manual_seed(seed)
    _calibrate(model, procedure, split, presence, rows[shuffled(len(rows), seed, 0)], training, device)
    optimizer = _optimizer(model, training)
    batches = max(1, math.ceil(len(rows) / training.batch_size))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _warm_cosine(training, batches))
    result, best, best_state = Fit(), None, model.trained_state()
    for epoch in range(training.epochs):
        model.train()
        losses, reached = _Means(), False
        procedure.epoch_started(epoch, batches)
        order = rows[shuffled(len(rows), seed, epoch)]
        for batch in split.batches(order, training.batch_size, presence, training.loader_workers):
            if len(batch.ids) == 1 < training.batch_size and len(rows) > 1:
                continue  # a remainder of one row: batch norm has no variance over it
            with _precision(training.precision, device):
                for step in procedure.steps(model, to_device(batch, device)):
                    reached |= step.loss.requires_grad
                    _apply(step, model, optimizer, training.gradient_clip, epoch)
                    losses.add({"loss": step.loss, **step.losses})
            schedule.step()
        if not reached:
            raise TrialError("no training row reaches anything that trains; check modalities and fusion")
        figures = {**{f"train/{n}": v for n, v in losses.means().items()}, **validate()}
        result.history.append(figures)
        on_epoch(epoch, figures)
        if monitor.better(figures[monitor.key], best):
            best, result.best_epoch = figures[monitor.key], epoch
            best_state = {n: t.detach().clone() for n, t in model.trained_state().items()}
        elif training.patience and epoch - result.best_epoch >= training.patience:
            break
    if best is None:
        raise DivergedError(f"{monitor.key} was NaN in every epoch; lower training.learning_rate")
    model.load_state_dict(best_state, strict=False)
    result.seconds = time.perf_counter() - started
    return result


def _calibrate(
    model: MultimodalModel,
    procedure: Procedure,
    split: Split,
    presence: Presence,
    order: Tensor,
    training: TrainingSpec,
    device: torch.device,
) -> None:
    """Show adapters that ask for it the summed gradients of a few batches, to choose by what trains."""
    wanted = max((a.calibration_batches for a in model.adapters.values()), default=0)
    if not wanted:
        return
    model.train()
    procedure.epoch_started(0, wanted)
    for batch in split.batches(order[: wanted * training.batch_size], training.batch_size, presence):
        for step in procedure.steps(model, to_device(batch, device)):
            if step.loss.requires_grad:
                step.loss.backward()
    for adapter in model.adapters.values():
        adapter.calibrate()
    model.zero_grad(set_to_none=True)


def _apply(step: Step, model: nn.Module, optimizer: torch.optim.Optimizer, clip: float, epoch: int) -> None:
    """Take one optimiser step."""
    if not bool(torch.isfinite(step.loss)):
        parts = ", ".join(f"{n} {float(v.detach()):.4g}" for n, v in step.losses.items())
        loss = float(step.loss.detach())
        raise DivergedError(
            f"the loss became {loss} in epoch {epoch} ({parts}); lower training.learning_rate"
        )
    optimizer.zero_grad(set_to_none=True)
    if step.loss.requires_grad:  # else no row of the batch has what the fusion reads, say: nothing moves
        step.loss.backward()
    if step.after_backward is not None:
        step.after_backward()
    if clip:
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], clip)
    optimizer.step()


def _optimizer(model: nn.Module, training: TrainingSpec) -> torch.optim.Optimizer:
    """AdamW over what trains; no decay on vectors (biases, norms, scales)."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=training.learning_rate, fused=True)


def _warm_cosine(training: TrainingSpec, batches: int) -> Callable[[int], float]:
    """Rise linearly over the warm-up, then fall to zero as a cosine."""
    total = max(1, training.epochs * batches)
    warm = int(training.warmup * total)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / (warm + 1)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, total - warm))))

    return factor


def _precision(name: str, device: torch.device) -> torch.autocast:
    """Use bfloat16 where it was asked for, or where `auto` finds a GPU that has it."""
    able = device.type == "cuda" and torch.cuda.is_bf16_supported()
    enabled = name == "bfloat16" or (name == "auto" and able)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


class _Means:
    """Running means of losses, kept on the device until an epoch ends."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach().float()
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> Figures:
        return {name: float(total) / self.counts[name] for name, total in self.sums.items()}
