"""A finished run scored again: at other rates, under other protocols, by other scores, without training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from mmx import metrics
from mmx.config import ComponentSpec, MissingSpec, TrialSpec
from mmx.contracts import Modality, Task
from mmx.errors import ConfigError, InputError, did_you_mean
from mmx.evaluate import (
    Predictions,
    mask_digest,
    pattern_name,
    predict_patterns,
    realised_rates,
    target_rate,
)
from mmx.protocols import Protocol, all_patterns
from mmx.registry import Registry
from mmx.registry.signature import bind
from mmx.runs import StoredRun
from mmx.scores import Score
from mmx.trial import SPLITS, Bench
from mmx.trial.bench import build_protocol
from mmx.trial.encoded import open_split
from mmx.trial.figures import curves_of, drawn_masks, patterns_of

STORED, MODEL = "stored predictions", "the model"
FIGURES = ("robust", "area", "clean", "worst", "drop_at_50", "retention")
"""What a curve is summed up in, in the order in which it is told."""

Curve = dict[float, float]


@dataclass(frozen=True)
class Asked:
    """What to score; what is None is as the run itself has it."""

    rates: tuple[float, ...] | None = None
    protocol: ComponentSpec | None = None
    targets: tuple[str, ...] | None = None
    scores: tuple[str, ...] | None = None
    """Names; None: all that the task has."""
    patterns: str | tuple[str, ...] | None = None
    seed: int | None = None
    """That of the masks."""
    split: str = "test"


@dataclass(frozen=True)
class Found:
    """What a run scores."""

    missing: MissingSpec
    """The protocol with all its options, the rates, targets and patterns, the seed of the masks."""
    split: str
    source: str
    """Where the predictions come from: STORED or MODEL."""
    samples: int
    scores: tuple[Score, ...]
    curves: Mapping[str, Mapping[str, Curve]]
    """Target, score, rate."""
    patterns: Mapping[str, Mapping[str, float]]
    """Score, pattern; NaN where no sample has the pattern."""
    summaries: Mapping[str, Mapping[str, Mapping[str, float]]]
    """Target, score, figure (see FIGURES); `worst` is of target `any` alone."""
    realised: Mapping[Modality, Curve]
    """Which share of the samples lacks a modality, by rate of target `any`; empty without that target."""
    masks: str
    """Digest of all masks, as a run has it; empty without target `any`."""


class _Source(NamedTuple):
    """Where predictions come from. `predict` is the costly part, and comes after all checks."""

    kind: str
    modalities: tuple[Modality, ...]
    task: Task
    predict: Callable[[], Predictions]


def score_again(run: StoredRun, asked: Asked, registry: Registry, device: torch.device) -> Found:
    """Score a finished run as asked (InputError: what is asked for does not exist).

    From its stored predictions where they are of the split. Else the model is built again, and predicts as it
    did in the trial.
    """
    if asked.split not in SPLITS:
        raise InputError(f"'{asked.split}' is no split.{did_you_mean(asked.split, SPLITS)}")
    source = _stored(run, asked.split, registry) or _model(run, asked.split, registry, device)
    own = (*source.task.scores, *source.task.more_scores)
    names = tuple(s.name for s in own) if asked.scores is None else asked.scores
    scores = tuple(source.task.score(name) for name in dict.fromkeys(names))
    spec = replace(run.spec, missing=_missing(run.spec.missing, asked, registry))
    protocol = build_protocol(registry, spec.missing, source.modalities)
    _check(spec.missing, protocol, source.modalities)
    predictions = source.predict()
    return _found(spec, protocol, predictions, scores, asked.split, source.kind)


def _stored(run: StoredRun, split: str, registry: Registry) -> _Source | None:
    """Give what the run stored; None where that is another split, or nothing that can be read."""
    try:
        predictions, task, stored = run.stored
    except InputError:
        return None
    if stored != split:
        return None
    task = task or Bench(registry).dataset(run.spec.dataset).task
    return _Source(STORED, predictions.modalities, task, lambda: predictions)


def _model(run: StoredRun, split: str, registry: Registry, device: torch.device) -> _Source:
    """Build the model with its trained weights, to predict in batches of the trial's size."""
    bench, training = Bench(registry), run.spec.training

    def predict() -> Predictions:
        model = run.model(bench).to(device)
        opened = open_split(run.spec, bench, model, split, device)
        return predict_patterns(model, opened, device, max(256, training.batch_size), training.loader_workers)

    return _Source(MODEL, bench.modalities(run.spec), bench.dataset(run.spec.dataset).task, predict)


def _missing(own: MissingSpec, asked: Asked, registry: Registry) -> MissingSpec:
    """Write what is asked for into what the run has."""
    targets = ("any", *own.eval.targets) if asked.targets is None else asked.targets
    rates = own.eval.rates if asked.rates is None else asked.rates
    patterns = own.eval.patterns if asked.patterns is None else asked.patterns
    evaluated = replace(
        own.eval,
        rates=tuple(dict.fromkeys(rates)),
        targets=tuple(dict.fromkeys(targets)),
        patterns=patterns,
    )
    protocol = _settled(asked.protocol or own.protocol, registry)
    return replace(
        own, protocol=protocol, eval=evaluated, seed=own.seed if asked.seed is None else asked.seed
    )


def _settled(protocol: ComponentSpec, registry: Registry) -> ComponentSpec:
    """Check a protocol's options and write the defaults out."""
    cls = registry.load_class("protocol", protocol.name)
    bound, faults = bind(cls, protocol.options, "protocol", f"protocol '{protocol.name}'")
    if faults:
        raise ConfigError("mmx eval", faults)
    return ComponentSpec(protocol.name, bound)


def _check(missing: MissingSpec, protocol: Protocol, modalities: Sequence[Modality]) -> None:
    """Refuse targets, patterns and rates that do not exist."""
    asked = missing.eval
    for target in asked.targets:
        if target != "any" and target not in modalities:
            hint = did_you_mean(target, ["any", *modalities])
            raise InputError(f"'{target}' is no target.{hint}")
    names = [pattern_name(p, modalities) for p in all_patterns(modalities)]
    for name in () if isinstance(asked.patterns, str) else asked.patterns:
        if name not in names:
            raise InputError(f"'{name}' is no pattern of what is present.{did_you_mean(name, names)}")
    for rate in asked.rates:
        _check_rate(rate, missing, protocol, modalities)


def _check_rate(
    rate: float, missing: MissingSpec, protocol: Protocol, modalities: Sequence[Modality]
) -> None:
    if not 0 <= rate <= 1:
        raise InputError(f"rate {rate:g} is no fraction between 0 and 1; 0.5 means that half is missing")
    if len(modalities) == 1:
        return
    name, highest = missing.protocol.name, protocol.highest_rate(modalities)
    if "any" in missing.eval.targets and rate > highest + 1e-9:
        raise InputError(
            f"rate {rate:g} does not exist under protocol '{name}' with {len(modalities)} modalities, the "
            f"highest is {highest:.3g}; choose other --rates"
        )
    for target in missing.eval.targets:
        protocol.weights(target_rate(target, rate), modalities)  # may have reasons of its own


def _found(
    spec: TrialSpec,
    protocol: Protocol,
    predictions: Predictions,
    scores: tuple[Score, ...],
    split: str,
    source: str,
) -> Found:
    targets = spec.missing.eval.targets
    curves = {t: curves_of(spec, protocol, predictions, scores, t, split) for t in targets}
    drawn = drawn_masks(spec, protocol, predictions, split) if "any" in targets else []
    shares = {rate: realised_rates(presence) for target, rate, presence in drawn if target == "any"}
    return Found(
        missing=spec.missing,
        split=split,
        source=source,
        samples=len(predictions.ids),
        scores=scores,
        curves=curves,
        patterns={s.name: _patterns(spec.missing, predictions, s) for s in scores},
        summaries={t: {s.name: _summary(t, curves[t], predictions, s) for s in scores} for t in targets},
        realised={m: {r: s[m] for r, s in shares.items()} for m in predictions.modalities if shares},
        masks=mask_digest([presence for _, _, presence in drawn]) if drawn else "",
    )


def _patterns(missing: MissingSpec, predictions: Predictions, score: Score) -> dict[str, float]:
    """Give the score of the patterns that are asked for."""
    order = predictions.modalities
    found = {pattern_name(p, order): value for p, value in patterns_of(predictions, score).items()}
    asked = missing.eval.patterns
    names = [pattern_name(p, order) for p in all_patterns(order)] if isinstance(asked, str) else asked
    return {name: found.get(name, float("nan")) for name in names}


def _summary(
    target: str, curves: Mapping[str, Curve], predictions: Predictions, score: Score
) -> dict[str, float]:
    """Sum a curve up; what it cannot tell is left out."""
    curve = curves[score.name]
    patterns = patterns_of(predictions, score) if target == "any" else {}
    summary = metrics.sum_up(curve, patterns, score.higher_is_better)
    return {figure: summary[figure] for figure in FIGURES if figure in summary}
