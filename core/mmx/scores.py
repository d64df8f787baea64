"""Scores of predictions: those that every trial logs, and those that `mmx eval` adds.

What a trial needs hundreds of times is written out here, since scikit-learn's checks of its arguments cost
more than the figure; tests hold it against scikit-learn. All else is scikit-learn's, where that has it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

BINS = 15
"""Bins of the calibration error, as in its source."""
STRONGEST = 3
"""Where the scale of sentiment ends, on both sides."""


@dataclass(frozen=True)
class Score:
    """A named figure of merit.

    `compute(outputs, targets)` takes outputs (samples, out) and targets, and gives one value a sample where
    `per_sample` holds (the score is then their mean, and a curve over missing rates is exact), else a float.
    """

    name: str
    compute: Callable[[Array, Array], Any]
    per_sample: bool = False
    higher_is_better: bool = True

    def __call__(self, outputs: Array, targets: Array) -> float:
        """Give the score of a set of samples; NaN where it is not defined on them."""
        if len(targets) == 0:
            return float("nan")
        return float(np.mean(self.compute(outputs, targets)))


def correct(outputs: Array, targets: Array) -> Array:
    """Tell per sample whether the class with the largest output is the target."""
    return (outputs.argmax(axis=1) == targets).astype(np.float64)


def macro_f1(outputs: Array, targets: Array) -> float:
    """Give the unweighted mean over the classes of F1, for a single label."""
    classes = outputs.shape[1]
    confusion = np.bincount(targets * classes + outputs.argmax(axis=1), minlength=classes**2)
    confusion = confusion.reshape(classes, classes)
    sizes = confusion.sum(axis=0) + confusion.sum(axis=1)
    return float(np.mean(2 * np.diag(confusion) / np.maximum(sizes, 1)))


def macro_auroc(outputs: Array, targets: Array) -> float:
    """Give the mean over classes of one-against-rest AUROC, over the classes that have both kinds."""
    from scipy.stats import rankdata

    one_hot = _one_hot(outputs, targets)
    positive = one_hot.sum(axis=0)
    negative = len(one_hot) - positive
    both = (positive > 0) & (negative > 0)
    if not both.any():
        return float("nan")
    # The Mann-Whitney form: how often a positive outranks a negative, ties as halves; all classes at once.
    ranks = np.where(one_hot, rankdata(outputs, axis=0), 0.0).sum(axis=0)
    areas = (ranks - positive * (positive + 1) / 2)[both] / (positive * negative)[both]
    return float(np.mean(areas))


def _one_hot(outputs: Array, targets: Array) -> Array:
    """Tell which classes or labels are true, (samples, out)."""
    return targets > 0.5 if targets.ndim == 2 else np.eye(outputs.shape[1], dtype=bool)[targets]


def balanced_accuracy(outputs: Array, targets: Array) -> float:
    """Give the unweighted mean of the recalls, over the classes that have samples."""
    from sklearn.metrics import recall_score

    # Not `balanced_accuracy_score`, which warns of every class that is predicted and has no samples.
    return float(recall_score(targets, outputs.argmax(axis=1), labels=np.unique(targets), average="macro"))


def weighted_f1(outputs: Array, targets: Array) -> float:
    """Give the mean over the classes of F1, weighted with how many samples each has, for a single label."""
    from sklearn.metrics import f1_score

    return float(f1_score(targets, outputs.argmax(axis=1), average="weighted", zero_division=0))


def macro_average_precision(outputs: Array, targets: Array) -> float:
    """Give the mean of average precision over the classes or labels that have both kinds.

    Average precision is Σ_n (R_n − R_(n−1)) P_n over falling thresholds, without interpolation.
    """
    from sklearn.metrics import average_precision_score

    one_hot = _one_hot(outputs, targets)
    found = [
        average_precision_score(truth, output)
        for truth, output in zip(one_hot.T, outputs.T, strict=True)
        if truth.any() and not truth.all()
    ]
    return float(np.mean(found)) if found else float("nan")


def expected_calibration_error(outputs: Array, targets: Array) -> float:
    """Give Σ_b |B_b| / N · |accuracy(B_b) − confidence(B_b)| of the class with the largest probability.

    The bins B_b = ((b − 1) / 15, b / 15] have equal widths. Source: Guo et al. (ICML 2017), equation 3.
    """
    confidence = outputs.max(axis=1)
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = np.bincount(bins, weights=correct(outputs, targets) - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / len(targets))


def multilabel_f1(average: str) -> Callable[[Array, Array], float]:
    """Give F1 of probabilities thresholded at 0.5, `average` "macro", "micro" or "weighted"."""

    def compute(outputs: Array, targets: Array) -> float:
        from sklearn.metrics import f1_score

        return float(f1_score(targets > 0.5, outputs > 0.5, average=average, zero_division=0))

    return compute


def absolute_error(outputs: Array, targets: Array) -> Array:
    """Give per sample the mean absolute error over the outputs."""
    return np.abs(outputs - targets.reshape(outputs.shape)).mean(axis=1)


def pearson(outputs: Array, targets: Array) -> float:
    """Give Pearson's correlation, averaged over the outputs."""
    targets = targets.reshape(outputs.shape)
    if len(targets) < 2:
        return float("nan")
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.mean([np.corrcoef(o, t)[0, 1] for o, t in zip(outputs.T, targets.T, strict=True)]))


def sentiment_not_negative(outputs: Array, targets: Array) -> Array:
    """Tell per sample whether output and target are both negative, or both are not.

    Acc-2 as negative against non-negative, the older of the two readings that Hazarika et al. (MISA, ACM MM
    2020) tell apart; zero is non-negative.
    """
    outputs, targets = outputs[:, 0], targets.reshape(-1)
    return ((outputs >= 0) == (targets >= 0)).astype(np.float64)


def sentiment_positive(outputs: Array, targets: Array) -> float:
    """Give Acc-2 as negative against positive: targets of zero are left out, and only an output above zero is
    positive, as in the released code of Tsai et al. (MulT, ACL 2019)."""
    outputs, targets = outputs[:, 0], targets.reshape(-1)
    told = targets != 0
    if not told.any():
        return float("nan")
    return float(np.mean((outputs[told] > 0) == (targets[told] > 0)))


def sentiment_in_seven(outputs: Array, targets: Array) -> Array:
    """Tell per sample whether output and target, clipped to [−3, 3], round to the same whole number: Acc-7.

    A half goes to the even number, as in the released code of Tsai et al. (MulT, ACL 2019). NaN where a
    target lies outside [−3, 3]: that is no sentiment (our choice).
    """
    outputs, targets = outputs[:, 0], targets.reshape(-1)
    same = np.round(np.clip(outputs, -STRONGEST, STRONGEST)) == np.round(targets)
    return np.where(np.abs(targets) <= STRONGEST, same, np.nan)
