"""Scores of predictions, and what is told about a robustness curve."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Names = frozenset[str]


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
    # From the confusion matrix: scikit-learn's checks of its arguments cost more than a whole curve.
    classes = outputs.shape[1]
    confusion = np.bincount(targets * classes + outputs.argmax(axis=1), minlength=classes**2)
    confusion = confusion.reshape(classes, classes)
    sizes = confusion.sum(axis=0) + confusion.sum(axis=1)
    return float(np.mean(2 * np.diag(confusion) / np.maximum(sizes, 1)))


def macro_auroc(outputs: Array, targets: Array) -> float:
    """Give the mean over classes of one-against-rest AUROC, over the classes that have both kinds."""
    from scipy.stats import rankdata

    one_hot = targets > 0.5 if targets.ndim == 2 else np.eye(outputs.shape[1], dtype=bool)[targets]
    positive = one_hot.sum(axis=0)
    negative = len(one_hot) - positive
    both = (positive > 0) & (negative > 0)
    if not both.any():
        return float("nan")
    # The Mann-Whitney form: how often a positive outranks a negative, ties as halves; all classes at once.
    ranks = np.where(one_hot, rankdata(outputs, axis=0), 0.0).sum(axis=0)
    areas = (ranks - positive * (positive + 1) / 2)[both] / (positive * negative)[both]
    return float(np.mean(areas))


def multilabel_f1(average: str) -> Callable[[Array, Array], float]:
    """Give F1 of probabilities thresholded at 0.5, `average` "macro" or "micro"."""

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


def summarise(
    curve: Mapping[float, float], patterns: Mapping[Names, float], name: str, higher_is_better: bool
) -> dict[str, float]:
    """Sum a score up: mean of the curve, clean, worst pattern, drop at 50 % and retention.

    `curve` maps the missing rate of target `any` to the score; `patterns` maps each availability pattern to
    its score. `clean`, `drop_at_50` and `retention` are left out where the curve lacks rate 0 (or 0.5).
    """
    summary = {f"robust_{name}": float(np.mean(list(curve.values())))} if curve else {}
    if patterns:
        summary["worst"] = min(patterns.values()) if higher_is_better else max(patterns.values())
    if 0.0 in curve:
        clean = curve[0.0]
        summary["clean"] = clean
        if clean:
            summary["retention"] = summary[f"robust_{name}"] / clean
        if 0.5 in curve:
            summary["drop_at_50"] = clean - curve[0.5]
    return summary


def shapley(values: Mapping[Names, float], modalities: tuple[str, ...]) -> dict[str, float]:
    """Give each modality's exact Shapley value of the score.

    `values` maps every subset of the modalities, the empty one included, to its score. The values add up to
    the score of all minus the score of none (efficiency). Source: Shapley (1953).
    """
    n = len(modalities)
    result = {}
    for m in modalities:
        others = [o for o in modalities if o != m]
        result[m] = sum(
            (values[frozenset((*chosen, m))] - values[frozenset(chosen)]) / (n * comb(n - 1, size))
            for size in range(n)
            for chosen in combinations(others, size)
        )
    return result
