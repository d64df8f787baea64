"""A training under way: its steps, its best epoch, and all that a checkpoint must hold."""

import math
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from mmx.config import TrainingSpec
from mmx.contracts import Batch, Procedure, Step
from mmx.data import to_device
from mmx.errors import DivergedError, TrialError
from mmx.model import MultimodalModel, fingerprint
from mmx.team import ALONE, Team

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


class Course:
    """A training under way, with all that a checkpoint must hold."""

    def __init__(
        self,
        model: MultimodalModel,
        procedure: Procedure,
        training: TrainingSpec,
        rows: int,
        device: torch.device,
        started: float,
        team: Team = ALONE,
    ) -> None:
        self.model, self.procedure, self.training, self.team = model, procedure, training, team
        self.rows, self.device, self.started = rows, device, started
        self.batches = max(1, math.ceil(rows / training.batch_size))
        self.optimizer = _optimizer(model, training)
        factor = _warm_cosine(training, self.batches)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        self.changing = model.trained_state().keys()
        self.history: list[Figures] = []
        self.best: float | None = None
        self.best_epoch = 0
        self.best_state: dict[str, Tensor] = {}
        self.stopped = False

    @cached_property
    def frozen(self) -> str:
        """The digest of what does not train, and is in no checkpoint."""
        return fingerprint({n: t for n, t in self.model.state_dict().items() if n not in self.changing})

    def over(self) -> bool:
        """Tell whether nothing is left to train."""
        done, patience = len(self.history), self.training.patience
        tired = bool(patience) and done - 1 - self.best_epoch >= patience
        return self.stopped or tired or done >= self.training.epochs

    def train(self, batches: Iterable[Batch]) -> Figures:
        """Train the next epoch; give the means of its losses."""
        self.model.train()
        self._draw_alike()
        shared = self.team.share(self.model)
        epoch, losses, reached = len(self.history), _Means(), False
        self.procedure.epoch_started(epoch, self.batches)
        for batch in batches:
            if len(batch.ids) == 1 < self.training.batch_size and self.rows > 1:
                continue  # a remainder of one row: batch norm has no variance over it
            with _precision(self.training.precision, self.device):
                for step in self.procedure.steps(shared, to_device(batch, self.device)):
                    reached |= step.loss.requires_grad
                    self._apply(step, epoch)
                    losses.add({"loss": step.loss, **step.losses})
            self.schedule.step()
        self.team.settle(self.model)
        if not reached:
            raise TrialError("no training row reaches anything that trains; check modalities and fusion")
        return {f"train/{name}": value for name, value in losses.means().items()}

    def _draw_alike(self) -> None:
        """Begin an epoch with the leader's random states, whatever was drawn outside the loop."""
        if self.team.size > 1:
            states = self.team.decide(lambda: _random_states(self.device))
            _set_random_states(states, self.device)

    def _apply(self, step: Step, epoch: int) -> None:
        """Take one optimiser step."""
        if not bool(torch.isfinite(step.loss)):
            parts = ", ".join(f"{n} {float(v.detach()):.4g}" for n, v in step.losses.items())
            loss = float(step.loss.detach())
            raise DivergedError(
                f"the loss became {loss} in epoch {epoch} ({parts}); lower training.learning_rate"
            )
        self.optimizer.zero_grad(set_to_none=True)
        if step.loss.requires_grad:  # else no row of the batch has what the fusion reads, say: nothing moves
            step.loss.backward()
            self.team.pool_gradients(self.model)
        if step.after_backward is not None:
            step.after_backward()
        if self.training.gradient_clip:
            moved = [p for p in self.model.parameters() if p.grad is not None]
            nn.utils.clip_grad_norm_(moved, self.training.gradient_clip)
        self.optimizer.step()

    def note(self, figures: Figures, monitor: Monitor) -> None:
        """Take note of an epoch that has ended, and of its state where it is the best so far."""
        self.history.append(figures)
        if monitor.better(figures[monitor.key], self.best):
            self.best, self.best_epoch = figures[monitor.key], len(self.history) - 1
            self.best_state = {n: t.detach().clone() for n, t in self.model.trained_state().items()}

    def end(self, monitor: Monitor) -> Fit:
        """Restore the best epoch (DivergedError where there is none)."""
        if self.best is None:
            raise DivergedError(f"{monitor.key} was NaN in every epoch; lower training.learning_rate")
        self.model.load_state_dict(self.best_state, strict=False)
        return Fit(self.history, self.best_epoch, time.perf_counter() - self.started)

    def state_dict(self) -> dict[str, Any]:
        """Give what carrying on needs beyond what is built anew: plain values and tensors."""
        # The tensors of the best epoch, while it is the last: torch writes what occurs twice only once.
        fresh = self.best_state if self.best_epoch == len(self.history) - 1 else {}
        now = {**self.model.state_dict(), **fresh}
        return {
            "frozen": self.frozen,
            "model": {n: now[n] for n in self.changing},
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "procedure": self.procedure.state_dict(),
            "history": [{n: float(v) for n, v in figures.items()} for figures in self.history],
            "best": None if self.best is None else float(self.best),
            "best_epoch": self.best_epoch,
            "best_state": self.best_state,
            "stopped": self.stopped,
            "seconds": time.perf_counter() - self.started,
            "random": _random_states(self.device),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back (any error where it is not of this training)."""
        if state["frozen"] != self.frozen or state["model"].keys() != self.changing:
            raise ValueError("it is of another model")
        self.model.load_state_dict(state["model"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.procedure.load_state_dict(state["procedure"])
        self.history, self.stopped = list(state["history"]), state["stopped"]
        self.best, self.best_epoch, self.best_state = state["best"], state["best_epoch"], state["best_state"]
        self.started = time.perf_counter() - state["seconds"]
        _set_random_states(state["random"], self.device)


def _random_states(device: torch.device) -> dict[str, Any]:
    name, words, *rest = cast(tuple, np.random.get_state())
    found = {
        "torch": torch.get_rng_state(),
        "numpy": (name, words.tolist(), *rest),
        "python": random.getstate(),
    }
    return {**found, "cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else found


def _set_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    torch.set_rng_state(states["torch"])
    np.random.set_state(states["numpy"])
    random.setstate(states["python"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


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
