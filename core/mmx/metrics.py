"""What is told about a robustness curve, and what each modality contributes."""

from collections.abc import Mapping
from itertools import combinations
from math import comb

import numpy as np

Names = frozenset[str]


def summarise(
    curve: Mapping[float, float], patterns: Mapping[Names, float], name: str, higher_is_better: bool
) -> dict[str, float]:
    """Sum a score up as a trial logs it: `robust` under the score's own name, and no area."""
    found = sum_up(curve, patterns, higher_is_better)
    found.pop("area", None)
    return {f"robust_{name}" if figure == "robust" else figure: value for figure, value in found.items()}


def sum_up(
    curve: Mapping[float, float], patterns: Mapping[Names, float], higher_is_better: bool
) -> dict[str, float]:
    """Sum a score up: mean of the curve (`robust`), area, clean, worst pattern, drop at 50 % and retention.

    `curve` maps the missing rate of target `any` to the score; `patterns` maps each availability pattern to
    its score. `clean`, `drop_at_50` and `retention` are left out where the curve lacks rate 0 (or 0.5),
    `area` where it has one rate alone.
    """
    summary = {"robust": float(np.mean(list(curve.values())))} if curve else {}
    if len(curve) > 1:
        summary["area"] = area(curve)
    if patterns:
        summary["worst"] = min(patterns.values()) if higher_is_better else max(patterns.values())
    if 0.0 in curve:
        clean = curve[0.0]
        summary["clean"] = clean
        if clean:
            summary["retention"] = summary["robust"] / clean
        if 0.5 in curve:
            summary["drop_at_50"] = clean - curve[0.5]
    return summary


def area(curve: Mapping[float, float]) -> float:
    """Give the area under a curve by the trapezoid rule, divided by the range of its rates.

    Other than the mean over the rates it does not hang on where the rates lie close together. NaN where there
    are fewer than two rates.
    """
    rates = sorted(curve)
    if len(rates) < 2:
        return float("nan")
    return float(np.trapezoid([curve[r] for r in rates], rates)) / (rates[-1] - rates[0])


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
