"""What a finished trial tells: curves, patterns, summaries, contributions, masks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from mmx import evaluate, metrics
from mmx.config import TrialSpec
from mmx.contracts import Presence, Task
from mmx.evaluate import Predictions
from mmx.protocols import Protocol, draw_presence
from mmx.scores import Score
from mmx.train import Figures


@dataclass
class Outcome:
    """What a finished trial tells."""

    metrics: dict[str, dict[int, float]] = field(default_factory=dict)
    """Metric name to value by step."""
    predictions: Predictions | None = None
    state: Mapping[str, Tensor] = field(default_factory=dict)
    """What training changed: adapters, tokens, heads."""
    mask_digest: str = ""

    def set(self, name: str, value: float | int, step: int = 0) -> None:
        """Note a figure."""
        self.metrics.setdefault(name, {})[step] = float(value)

    def last(self) -> Figures:
        """Give the last value of each metric."""
        return {name: by_step[max(by_step)] for name, by_step in self.metrics.items()}


def curves_of(
    spec: TrialSpec,
    protocol: Protocol,
    predictions: Predictions,
    scores: Sequence[Score],
    target: str,
    split: str,
) -> dict[str, dict[float, float]]:
    """Give each score's curve over the spec's rates: rate to value."""
    curves: dict[str, dict[float, float]] = {score.name: {} for score in scores}
    for rate in spec.missing.eval.rates:
        asked = evaluate.target_rate(target, rate)
        found = evaluate.scores_at(predictions, scores, protocol, asked, spec.missing.seed, split)
        for name, value in found.items():
            curves[name][rate] = value
    return curves


def patterns_of(predictions: Predictions, score: Score) -> dict[frozenset[str], float]:
    """Give the score of every pattern that some sample can have."""
    return {p: predictions.score(p, score) for p in predictions.outputs if predictions.has(p).any()}


def summarise(
    task: Task,
    curves: Mapping[str, Mapping[float, float]],
    predictions: Predictions,
    prefix: str,
    outcome: Outcome,
) -> None:
    """Note the summary of the primary score, and of the others the robust mean."""
    for place, score in enumerate(task.scores):
        patterns = patterns_of(predictions, score)
        summary = metrics.summarise(curves[score.name], patterns, score.name, score.higher_is_better)
        for key, value in summary.items():
            if place == 0 or key.startswith("robust_"):
                outcome.set(f"{prefix}/{key}", value)


def tell(spec: TrialSpec, protocol: Protocol, predictions: Predictions, task: Task, outcome: Outcome) -> None:
    """Note the test split's figures: curves, patterns, summary, contributions, realised rates."""
    for target in dict.fromkeys(("any", *spec.missing.eval.targets)):
        curves = curves_of(spec, protocol, predictions, task.scores, target, "test")
        for name, curve in curves.items():
            for rate, value in curve.items():
                outcome.set(f"robustness/{name}_missing_{target}", value, percent(rate))
        if target == "any":
            summarise(task, curves, predictions, "summary", outcome)
    for score in task.scores:
        for pattern, value in patterns_of(predictions, score).items():
            name = evaluate.pattern_name(pattern, predictions.modalities)
            if spec.missing.eval.patterns == "all" or name in spec.missing.eval.patterns:
                outcome.set(f"pattern/{score.name}_has_{name}", value)
    _tell_contributions(task.scores[0], task, predictions, outcome)
    _tell_masks(spec, protocol, predictions, outcome)


def _tell_contributions(score: Score, task: Task, predictions: Predictions, outcome: Outcome) -> None:
    """Note each modality's Shapley value of the primary score, each pattern over the samples that have it."""
    patterns = patterns_of(predictions, score)
    if len(patterns) == 2 ** len(predictions.modalities) - 1:
        nothing = score(task.constant(predictions.targets), predictions.targets)
        values = {**patterns, frozenset[str](): nothing}
        for m, value in metrics.shapley(values, predictions.modalities).items():
            outcome.set(f"contribution/shapley_{m}", value)


def _tell_masks(spec: TrialSpec, protocol: Protocol, predictions: Predictions, outcome: Outcome) -> None:
    drawn = drawn_masks(spec, protocol, predictions)
    for target, rate, presence in drawn:
        if target == "any":
            for m, realised in evaluate.realised_rates(presence).items():
                outcome.set(f"missing/realised_rate_{m}", realised, percent(rate))
    outcome.mask_digest = evaluate.mask_digest([presence for _, _, presence in drawn])


def drawn_masks(
    spec: TrialSpec, protocol: Protocol, predictions: Predictions, split: str = "test"
) -> list[tuple[str, float, Presence]]:
    """Draw who is present at every target and rate of the evaluation."""
    ids, natural, seed = predictions.ids, predictions.natural, spec.missing.seed
    return [
        (target, rate, draw_presence(protocol, evaluate.target_rate(target, rate), ids, natural, seed, split))
        for target in dict.fromkeys(("any", *spec.missing.eval.targets))
        for rate in spec.missing.eval.rates
    ]


def percent(rate: float) -> int:
    """Give a rate as the whole percent that MLflow takes as a step."""
    return round(rate * 100)
