"""The statistics of a paired comparison: intervals by resampling, a signed-rank test, Holm's correction.

Sources: Efron and Tibshirani (1993) for the bootstrap and its percentile interval; Owen (2007) for resampling
two crossed factors; Wilcoxon (1945); Holm (1979).
"""

from collections.abc import Callable, Sequence

import numpy as np

from mmx.protocols import derive_seed
from mmx.scores import Array

DRAWS = 2000
"""How many times seeds and samples are drawn anew, where a score is a mean over samples."""
BAND_DRAWS = 500
"""The same for the band of a curve, which is only looked at."""
SLOW_DRAWS = 500
"""The same for other scores, which are computed anew each time."""
CHUNK = 2_000_000
"""How many drawn samples are held in memory at once."""


def resampled_means(values: Array, draws: int = DRAWS) -> Array:
    """Give the mean of `values` (seeds, figures, samples) in each draw, as (draws, figures).

    Seeds and samples are drawn with replacement, crossed: a sample that is drawn is drawn for every seed and
    figure. Equal shapes get equal draws.
    """
    seeds, figures, samples = values.shape
    random = np.random.default_rng(derive_seed("report", "bootstrap", seeds, samples))
    columns = values.reshape(seeds * figures, samples).T
    found = []
    for start in range(0, draws, step := max(1, CHUNK // samples)):
        count = min(step, draws - start)
        by_sample = _counts(random, count, samples) @ columns / samples
        by_seed = _counts(random, count, seeds) / seeds
        found.append(np.einsum("ds,dsf->df", by_seed, by_sample.reshape(count, seeds, figures)))
    return np.concatenate(found)


def _counts(random: np.random.Generator, draws: int, size: int) -> Array:
    """Say how often each of `size` things is drawn, for each draw."""
    picked = random.integers(0, size, (draws, size)) + size * np.arange(draws)[:, None]
    return np.bincount(picked.ravel(), minlength=draws * size).reshape(draws, size).astype(np.float64)


def resampled(measure: Callable[[int, Array], float], seeds: int, samples: int) -> Array:
    """Give in each draw the mean of `measure(seed, samples drawn)` over the seeds drawn."""
    random = np.random.default_rng(derive_seed("report", "bootstrap", seeds, samples))
    found = []
    for _ in range(SLOW_DRAWS):
        index = random.integers(0, samples, samples)
        picked, often = np.unique(random.integers(0, seeds, seeds), return_counts=True)
        found.append(np.average([measure(int(seed), index) for seed in picked], weights=often))
    return np.asarray(found)


def interval(draws: Array, confidence: float) -> tuple[float, float]:
    """Give the percentile interval; draws in which the figure is not defined are left out."""
    tail = (1 - confidence) / 2
    known = draws[np.isfinite(draws)]
    low, high = np.quantile(known, [tail, 1 - tail]) if len(known) else (np.nan, np.nan)
    return float(low), float(high)


def bootstrap_p(draws: Array) -> float:
    """Give twice the share of draws beyond zero on the rarer side; one is added, so that it is never 0."""
    known = draws[np.isfinite(draws)]
    rarer = min(np.sum(known <= 0), np.sum(known >= 0))
    return min(1.0, 2 * (1 + float(rarer)) / (1 + len(known)))


def signed_rank_p(differences: Array) -> float:
    """Give Wilcoxon's two-sided p; samples without a difference say nothing, and without others it is 1."""
    from scipy.stats import wilcoxon

    # Sums of weights that should be equal may differ by rounding, and a rank knows no small difference.
    differing = differences[np.abs(differences) > 1e-12]
    return float(wilcoxon(differing.round(12)).pvalue) if len(differing) else 1.0


def holm(values: Sequence[float]) -> list[float]:
    """Correct p values for their number, step by step from the smallest."""
    order = np.argsort(values, kind="stable")
    corrected, highest = [0.0] * len(values), 0.0
    for place, i in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - place) * values[i]))
        corrected[i] = highest
    return corrected
