"""Paired tests: the best, or a control, against each other one, on shared samples, masks and seeds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from mmx.contracts import TrialRecord
from mmx.errors import InputError, MmxError, did_you_mean
from mmx.evaluate import drawn_outputs, target_rate, values_at
from mmx.report.resampling import (
    bootstrap_p,
    holm,
    interval,
    resampled,
    resampled_means,
    signed_rank_p,
)
from mmx.report.results import Results, task_of
from mmx.report.standings import Standing
from mmx.scores import Array, Score
from mmx.trial.bench import build_protocol


@dataclass(frozen=True)
class Measured:
    """What one trial predicted at each rate of a curve, its samples in the order of their ids.

    `values` is (rates, samples) of a score that is a mean over samples; (rates, samples, out) of outputs
    under one draw of masks for any other.
    """

    ids: Sequence[str]
    targets: Array
    rates: Sequence[float]
    values: Array
    score: Score


def measure(results: Results, record: TrialRecord, score: str, target: str) -> Measured:
    """Read a trial's predictions (MmxError where they, the score or the protocol cannot be had)."""
    run = results.run(record)
    predictions, _, split = run.stored
    try:
        figure = task_of(run, results.registry).score(score)
    except KeyError as error:
        raise InputError(f"'{score}' is no score of run '{record.title}'") from error
    protocol = build_protocol(results.registry, run.spec.missing, predictions.modalities)
    rates = run.spec.missing.eval.rates
    asked = [target_rate(target, rate) for rate in rates]
    if figure.per_sample:
        values = [values_at(predictions, figure, protocol, rate) for rate in asked]
    else:
        seed = run.spec.missing.seed
        values = [drawn_outputs(predictions, protocol, rate, seed, split) for rate in asked]
    order = np.argsort(np.asarray(predictions.ids), kind="stable")
    ids = [predictions.ids[int(i)] for i in order]
    return Measured(ids, predictions.targets[order], rates, np.stack(values)[:, order], figure)


@dataclass(frozen=True)
class Comparison:
    """One paired comparison. `difference` and its interval are positive where `one` is the better.

    `refused`: why there is none.
    """

    one: str
    other: str
    difference: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    p: float = float("nan")
    corrected: float = float("nan")
    seeds: int = 0
    samples: int = 0
    confidence: float = 0.95
    by_sample: bool = True
    refused: str = ""

    @property
    def better(self) -> str:
        """Name the one that is better where both interval and test say so; empty: neither can be told."""
        if self.refused or not self.corrected < 1 - self.confidence:
            return ""
        return self.one if self.low > 0 else self.other if self.high < 0 else ""

    def told(self) -> str:
        """Say in words what was found."""
        if self.refused:
            return f"{self.one} is not compared with {self.other}: {self.refused}"
        sign = -1.0 if self.better == self.other else 1.0
        low, high = sorted((sign * self.low, sign * self.high))
        test = "Holm-corrected p" if self.by_sample else "Holm-corrected bootstrap p"
        found = (
            f"{percent_of(self.confidence)} interval {low:.3f} to {high:.3f}; {test} {_p(self.corrected)}; "
            f"{_seeds(self.seeds)}, {self.samples:,} samples"
        )
        if not self.better:
            return (
                f"no difference can be told between {self.one} and {self.other} "
                f"({self.difference:+.3f} for {self.one}; {found})"
            )
        loser = self.other if self.better == self.one else self.one
        return f"{self.better} is better than {loser} by {abs(self.difference):.3f} ({found})"


def sentences(found: Sequence[Comparison]) -> list[str]:
    """Say in words what all comparisons found; those refused for one reason share a sentence."""
    refused: dict[tuple[str, str], list[str]] = {}
    for c in found:
        if c.refused:
            refused.setdefault((c.one, c.refused), []).append(c.other)
    told = [c.told() for c in found if not c.refused]
    return told + [
        f"{one} is not compared with {', '.join(others)}: {why}" for (one, why), others in refused.items()
    ]


def percent_of(confidence: float) -> str:
    """Say a confidence."""
    return f"{100 * confidence:g} %"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def compare_all(
    results: Results,
    best: Mapping[str, Standing],
    score: str,
    target: str,
    confidence: float,
    against: str | None = None,
) -> list[Comparison]:
    """Compare the best point by validation with that of every other value, corrected for their number.

    `against`: the value to compare with instead (InputError where there is none of that name).
    """
    if against is not None and against not in best:
        raise InputError(
            f"--against '{against}' is no value of the first table.{did_you_mean(against, best)}"
        )
    if len(best) < 2:
        return []
    ranks = {s.point: n for n, s in enumerate(results.found)}
    ranked = sorted(best, key=lambda label: (label != against, ranks[best[label].point]))
    first, *others = ranked
    measured = partial(measure, results, score=score, target=target)
    own: dict[int, Measured] = {}
    found = []
    for other in others:
        named = Comparison(first, other, confidence=confidence)
        try:
            found.append(_compare(named, best, measured, own))
        except MmxError as error:
            found.append(replace(named, refused=str(error)))
    made = [c for c in found if not c.refused]
    corrected = iter(holm([c.p for c in made]))
    return [c if c.refused else replace(c, corrected=next(corrected)) for c in found]


def _compare(
    named: Comparison,
    best: Mapping[str, Standing],
    measured: Callable[[TrialRecord], Measured],
    own: dict[int, Measured],
) -> Comparison:
    """Read the trials of the seeds that both have, and compare them; `own`, by seed: what was read of one."""
    one, other = ({r.seed: r for r in best[label].records} for label in (named.one, named.other))
    shared = sorted(one.keys() & other.keys())
    if not shared:
        raise InputError("they share no seed; run both with the same search.seeds")
    own |= {seed: measured(one[seed]) for seed in shared if seed not in own}
    return compare(named, [own[seed] for seed in shared], [measured(other[seed]) for seed in shared])


def compare(named: Comparison, one: Sequence[Measured], other: Sequence[Measured]) -> Comparison:
    """Compare two sides, a `Measured` for each shared seed (InputError where they cannot be paired)."""
    first = one[0]
    for m in (*one, *other):
        if list(m.ids) != list(first.ids) or not np.array_equal(m.targets, first.targets):
            raise InputError("their test samples differ")
        if list(m.rates) != list(first.rates):
            raise InputError("they were evaluated at different rates")
    sign = 1.0 if first.score.higher_is_better else -1.0
    counted = replace(named, seeds=len(one), samples=len(first.ids), by_sample=first.score.per_sample)
    if first.score.per_sample:
        pairs = zip(one, other, strict=True)
        return _by_sample(counted, sign * np.stack([(a.values - b.values).mean(axis=0) for a, b in pairs]))
    return _by_score(counted, one, other, sign)


def _by_sample(named: Comparison, differences: Array) -> Comparison:
    """Compare by differences (seeds, samples): bootstrap of seeds and samples, Wilcoxon over samples."""
    low, high = interval(resampled_means(differences[:, None])[:, 0], named.confidence)
    p = signed_rank_p(differences.mean(axis=0))
    return replace(named, difference=float(differences.mean()), low=low, high=high, p=p)


def _by_score(
    named: Comparison, one: Sequence[Measured], other: Sequence[Measured], sign: float
) -> Comparison:
    """Compare by a score of all samples together: bootstrap of seeds and samples."""

    def difference(seed: int, index: Array) -> float:
        return sign * (_robust(one[seed], index) - _robust(other[seed], index))

    everything = np.arange(named.samples)
    draws = resampled(difference, named.seeds, named.samples)
    middle = float(np.mean([difference(seed, everything) for seed in range(named.seeds)]))
    low, high = interval(draws, named.confidence)
    return replace(named, difference=middle, low=low, high=high, p=bootstrap_p(draws))


def _robust(measured: Measured, index: Array) -> float:
    """Give the mean over the rates of a score on some samples."""
    targets = measured.targets[index]
    return float(np.mean([measured.score(outputs[index], targets) for outputs in measured.values]))
