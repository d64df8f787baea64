"""The spaces that are tuned inside cells: distributions, small finite spaces, samplers."""

import math
import warnings
from collections.abc import Mapping
from itertools import product
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from mmx.config import ComponentSpec
from mmx.protocols import derive_seed

LARGEST_GRID = 200
"""Up to so many combinations a tuned space is enumerated: samplers would repeat themselves in it."""


def combinations(tune: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    """List a small finite space; None where it is continuous or large."""
    values = []
    for tuned in tune.values():
        chosen = distribution(tuned)
        if isinstance(chosen, CategoricalDistribution):
            values.append(list(chosen.choices))
        elif isinstance(chosen, IntDistribution) and (chosen.high - chosen.low) / chosen.step < LARGEST_GRID:
            values.append(list(range(chosen.low, chosen.high + 1, chosen.step)))
        else:
            return None
    if math.prod(len(v) for v in values) > LARGEST_GRID:
        return None
    return [dict(zip(tune, combination, strict=True)) for combination in product(*values)]


def budget(tune: Mapping[str, Mapping[str, Any]], trials: int) -> int:
    """Give how many different trials a cell can have, at most `trials`."""
    space = combinations(tune)
    return trials if space is None else min(trials, len(space))


def distribution(tuned: Mapping[str, Any]) -> BaseDistribution:
    """Turn {low, high, …} or {choices} into Optuna's form; whole numbers where both ends are."""
    if "choices" in tuned:
        return CategoricalDistribution(tuned["choices"])
    low, high, log = tuned["low"], tuned["high"], bool(tuned.get("log", False))
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log, step=int(tuned.get("step", 1)))
    return FloatDistribution(float(low), float(high), log=log, step=tuned.get("step"))


def suggest(trial: optuna.Trial, tune: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Let the study's sampler draw a value for each tuned parameter."""
    for path, tuned in tune.items():
        chosen = distribution(tuned)
        if isinstance(chosen, CategoricalDistribution):
            trial.suggest_categorical(path, chosen.choices)
        elif isinstance(chosen, IntDistribution):
            trial.suggest_int(path, chosen.low, chosen.high, step=chosen.step, log=chosen.log)
        elif isinstance(chosen, FloatDistribution):
            trial.suggest_float(path, chosen.low, chosen.high, step=chosen.step, log=chosen.log)
    return dict(trial.params)


def sampler_of(spec: ComponentSpec, cell: str, count: int) -> optuna.samplers.BaseSampler:
    """Build the sampler for the next proposal of a cell that has `count` of them.

    Its seed moves on with the cell, or a restart would repeat suggestions; a quasi-random sequence keeps its
    seed and counts in the study how far it got.
    """
    base = spec.options.get("seed", 0)
    seed = derive_seed(base, cell, count) % 2**32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if spec.name == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        if spec.name == "qmc":
            return optuna.samplers.QMCSampler(seed=derive_seed(base, cell) % 2**32)
        if spec.name == "cmaes":
            return optuna.samplers.CmaEsSampler(seed=seed)
        return optuna.samplers.TPESampler(seed=seed)
