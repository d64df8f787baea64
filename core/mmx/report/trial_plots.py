"""Plots of one trial: robustness curves, the score of each availability pattern, confusion by pattern."""

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from mmx.contracts import Pattern
from mmx.evaluate import Predictions, pattern_name
from mmx.report.drawing import COLOURS, MARKERS, new_figure
from mmx.tasks import SingleLabel, Task
from mmx.trial import Outcome

CURVE = "robustness/"
MISSING = "_missing_"
LARGEST_CONFUSION = 30
"""Classes above which a confusion matrix is not drawn: nobody could read it."""
BARS = 40
"""Patterns that are drawn as bars, those with most modalities first."""
PANELS = 8
"""Patterns whose confusion is drawn: the complete one first, then by how much is missing."""


def write_trial_plots(folder: Path, outcome: Outcome, task: Task) -> list[Path]:
    """Draw what a finished trial found as PNG files, and list them."""
    figures = {"curve.png": draw_curves(outcome.metrics, task)}
    if outcome.predictions is not None:
        figures["patterns.png"] = draw_patterns(outcome.predictions, task)
        figures["confusion.png"] = draw_confusion(outcome.predictions, task)
    paths = []
    for name, figure in figures.items():
        if figure is not None:
            figure.savefig(folder / name, dpi=110)
            paths.append(folder / name)
    return paths


def draw_curves(metrics: Mapping[str, Mapping[int, float]], task: Task) -> Any:
    """Draw each target's curve of the primary score over percent missing; None where there is none."""
    start = f"{CURVE}{task.scores[0].name}{MISSING}"
    curves = {name.removeprefix(start): curve for name, curve in metrics.items() if name.startswith(start)}
    if not curves:
        return None
    figure, axis = new_figure(6.0, 4.0)
    for place, (target, curve) in enumerate(curves.items()):
        label = "any modality" if target == "any" else f"only {target}"
        look = {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}
        axis.plot(*zip(*sorted(curve.items()), strict=True), label=label, **look)
    axis.set(xlabel="missing (%)", ylabel=_label(task))
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    return figure


def draw_patterns(predictions: Predictions, task: Task) -> Any:
    """Draw the primary score of each availability pattern as bars, the complete one first."""
    score = task.scores[0]
    patterns = [p for p in _ordered(predictions) if predictions.has(p).any()][:BARS]
    values = [predictions.score(p, score) for p in patterns]
    figure, axis = new_figure(6.0, 0.9 + 0.35 * len(patterns))
    names = [
        f"{pattern_name(p, predictions.modalities)}  (n={int(predictions.has(p).sum())})" for p in patterns
    ]
    bars = axis.barh(names, values, color=COLOURS[0])
    axis.bar_label(bars, fmt="%.3f", padding=3)
    axis.invert_yaxis()
    axis.set(xlabel=f"{_label(task)}, when only these are present")
    axis.margins(x=0.15)
    return figure


def draw_confusion(predictions: Predictions, task: Task) -> Any:
    """Draw, for a single label of few classes, which class is taken for which under each pattern."""
    if not isinstance(task, SingleLabel) or task.classes > LARGEST_CONFUSION:
        return None
    shown = [p for p in _ordered(predictions) if predictions.has(p).any()][:PANELS]
    columns = min(4, len(shown))
    rows = ceil(len(shown) / columns)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(0.8 + 2.6 * columns, 0.6 + 2.6 * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns, sharex=True, sharey=True)).ravel()
    for axis, pattern in zip(axes, shown, strict=False):
        image = axis.imshow(confusion(predictions, pattern, task.classes), cmap="cividis", vmin=0, vmax=1)
        axis.set_title(pattern_name(pattern, predictions.modalities), fontsize="small")
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    figure.supxlabel("predicted class", fontsize="small")
    figure.supylabel("true class", fontsize="small")
    figure.colorbar(image, ax=axes.tolist(), shrink=0.8, label="share of the true class")
    return figure


def confusion(predictions: Predictions, pattern: Pattern, classes: int) -> Any:
    """Give (true, predicted) shares of each true class under a pattern; rows of classes that lack are 0."""
    from sklearn.metrics import confusion_matrix

    rows = predictions.has(pattern)
    chosen = predictions.outputs[pattern][rows].argmax(axis=1)
    counts = confusion_matrix(predictions.targets[rows], chosen, labels=range(classes))
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def _ordered(predictions: Predictions) -> Sequence[Pattern]:
    """List the patterns, what has most modalities first, then in the dataset's order."""
    place = {m: i for i, m in enumerate(predictions.modalities)}
    return sorted(predictions.outputs, key=lambda p: (-len(p), sorted(place[m] for m in p)))


def _label(task: Task) -> str:
    score = task.scores[0]
    return score.name.replace("_", " ") + ("" if score.higher_is_better else " (lower is better)")
