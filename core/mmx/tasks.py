"""What is predicted: the loss, the outputs that are stored, and the scores."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mmx import scores
from mmx.errors import InputError, did_you_mean
from mmx.scores import Array, Score


class Task(ABC):
    """A kind of prediction. `out` is the number of logits; the first score is the primary one."""

    @property
    @abstractmethod
    def out(self) -> int:
        """Number of logits."""

    @property
    @abstractmethod
    def scores(self) -> tuple[Score, ...]:
        """Scores that every trial logs, the primary one first."""

    @property
    def more_scores(self) -> tuple[Score, ...]:
        """Scores that `mmx eval` alone computes."""
        return ()

    @abstractmethod
    def losses(self, logits: Float[Tensor, "batch out"], target: Tensor) -> Float[Tensor, " batch"]:
        """Give one loss a sample."""

    @abstractmethod
    def outputs(self, logits: Float[Tensor, "batch out"]) -> Float[Tensor, "batch out"]:
        """Give what is stored and scored: probabilities or values."""

    @abstractmethod
    def targets(self, targets: Sequence[Any]) -> Tensor:
        """Stack the targets of some samples."""

    @abstractmethod
    def constant(self, targets: Array) -> Array:
        """Give the best outputs (samples, out) of a model that sees no input: what chance means here."""

    def loss(self, logits: Float[Tensor, "batch out"], target: Tensor) -> Float[Tensor, ""]:
        """Give the mean loss."""
        return self.losses(logits, target).mean()

    def score(self, name: str) -> Score:
        """Look a score up by name, among those of a trial and those of `mmx eval` (InputError: none)."""
        known = {score.name: score for score in (*self.scores, *self.more_scores)}
        if name not in known:
            raise InputError(f"{type(self).__name__} has no score '{name}'.{did_you_mean(name, known)}")
        return known[name]


@dataclass(frozen=True)
class SingleLabel(Task):
    """One class of `classes`; cross-entropy; targets are class indices."""

    classes: int

    @property
    def out(self) -> int:
        """Number of classes."""
        return self.classes

    @property
    def scores(self) -> tuple[Score, ...]:
        """Accuracy, macro F1 and macro AUROC."""
        return (
            Score("accuracy", scores.correct, per_sample=True),
            Score("macro_f1", scores.macro_f1),
            Score("auroc", scores.macro_auroc),
        )

    @property
    def more_scores(self) -> tuple[Score, ...]:
        """Other averages of recall and F1, average precision, and how well probabilities are calibrated."""
        return (
            Score("balanced_accuracy", scores.balanced_accuracy),
            Score("micro_f1", scores.correct, per_sample=True),  # one label a sample: it is the accuracy
            Score("weighted_f1", scores.weighted_f1),
            Score("average_precision", scores.macro_average_precision),
            Score("expected_calibration_error", scores.expected_calibration_error, higher_is_better=False),
        )

    def losses(self, logits: Float[Tensor, "batch out"], target: Tensor) -> Float[Tensor, " batch"]:
        """Cross-entropy a sample."""
        return F.cross_entropy(logits, target, reduction="none")

    def outputs(self, logits: Float[Tensor, "batch out"]) -> Float[Tensor, "batch out"]:
        """Class probabilities."""
        return logits.softmax(dim=1)

    def targets(self, targets: Sequence[Any]) -> Tensor:
        """Stack class indices (samples,)."""
        return torch.as_tensor([int(t) for t in targets], dtype=torch.long)

    def constant(self, targets: Array) -> Array:
        """Class frequencies, the same for every sample."""
        counts = np.bincount(targets, minlength=self.classes)
        return np.tile(counts / max(1, len(targets)), (len(targets), 1))


@dataclass(frozen=True)
class MultiLabel(Task):
    """Any of `labels`; binary cross-entropy; targets are vectors of 0 and 1."""

    labels: int

    @property
    def out(self) -> int:
        """Number of labels."""
        return self.labels

    @property
    def scores(self) -> tuple[Score, ...]:
        """Macro F1 and micro F1 at 0.5, macro AUROC."""
        return (
            Score("macro_f1", scores.multilabel_f1("macro")),
            Score("micro_f1", scores.multilabel_f1("micro")),
            Score("auroc", scores.macro_auroc),
        )

    @property
    def more_scores(self) -> tuple[Score, ...]:
        """Weighted F1 at 0.5, and mAP."""
        return (
            Score("weighted_f1", scores.multilabel_f1("weighted")),
            Score("mean_average_precision", scores.macro_average_precision),
        )

    def losses(self, logits: Float[Tensor, "batch out"], target: Tensor) -> Float[Tensor, " batch"]:
        """Binary cross-entropy a sample, averaged over the labels."""
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(dim=1)

    def outputs(self, logits: Float[Tensor, "batch out"]) -> Float[Tensor, "batch out"]:
        """Label probabilities."""
        return logits.sigmoid()

    def targets(self, targets: Sequence[Any]) -> Tensor:
        """Stack label vectors (samples, labels)."""
        return torch.stack([torch.as_tensor(t, dtype=torch.float32) for t in targets])

    def constant(self, targets: Array) -> Array:
        """Label frequencies, the same for every sample."""
        return np.tile(targets.mean(axis=0), (len(targets), 1))


@dataclass(frozen=True)
class Regression(Task):
    """`outputs` real numbers; mean absolute error as loss, as in the sentiment literature."""

    outputs_count: int = 1

    def __init__(self, outputs: int = 1) -> None:
        object.__setattr__(self, "outputs_count", outputs)

    @property
    def out(self) -> int:
        """Number of values."""
        return self.outputs_count

    @property
    def scores(self) -> tuple[Score, ...]:
        """Mean absolute error (lower is better) and Pearson's correlation."""
        return (
            Score("mae", scores.absolute_error, per_sample=True, higher_is_better=False),
            Score("pearson", scores.pearson),
        )

    @property
    def more_scores(self) -> tuple[Score, ...]:
        """For a single output, what is told of sentiment: Acc-2 in both readings, and Acc-7."""
        if self.out != 1:
            return ()
        return (
            Score("acc2_non_negative", scores.sentiment_not_negative, per_sample=True),
            Score("acc2_positive", scores.sentiment_positive),
            Score("acc7", scores.sentiment_in_seven, per_sample=True),
        )

    def losses(self, logits: Float[Tensor, "batch out"], target: Tensor) -> Float[Tensor, " batch"]:
        """Absolute error a sample, averaged over the outputs."""
        return (logits - target.reshape(logits.shape)).abs().mean(dim=1)

    def outputs(self, logits: Float[Tensor, "batch out"]) -> Float[Tensor, "batch out"]:
        """Give the values as they are."""
        return logits

    def targets(self, targets: Sequence[Any]) -> Tensor:
        """Stack values (samples, outputs)."""
        return torch.stack([torch.as_tensor(t, dtype=torch.float32).reshape(self.out) for t in targets])

    def constant(self, targets: Array) -> Array:
        """Give the median, which minimises the absolute error."""
        return np.tile(np.median(targets.reshape(-1, self.out), axis=0), (len(targets), 1))
