"""The one evaluation: every availability pattern from one encoding pass, curves over rates by weighting.

A rate never runs the model again: a curve is the patterns' stored outputs, weighted with the protocol's
probabilities (exact, for scores that are means over samples) or picked by seeded draws (for the others).
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmx.contracts import Batch, Modality, Pattern, Presence, TokenMap, Tokens, restrict
from mmx.data import Split, rows_that_have_any, to_device
from mmx.model import MultimodalModel
from mmx.protocols import (
    Protocol,
    Rate,
    all_patterns,
    derive_seed,
    draw_presence,
    natural_groups,
    pattern_weights,
)
from mmx.scores import Array, Score

DRAWS = 5
"""How many seeded draws a score that is no mean over samples is averaged over."""


@dataclass(frozen=True)
class Predictions:
    """Outputs of every pattern on one split.

    `outputs[pattern]` is (samples, out), NaN for rows that by nature lack a modality of the pattern.
    """

    ids: Sequence[str]
    targets: Array
    natural: Presence
    outputs: Mapping[Pattern, Array]
    modalities: tuple[Modality, ...]

    def has(self, pattern: Pattern) -> Array:
        """Tell which rows have every modality of a pattern."""
        return torch.stack([self.natural[m] for m in self.modalities if m in pattern]).all(dim=0).numpy()

    def score(self, pattern: Pattern, score: Score) -> float:
        """Score one pattern over the rows that have its modalities."""
        rows = self.has(pattern)
        return score(self.outputs[pattern][rows], self.targets[rows])


@torch.no_grad()
def predict_patterns(
    model: MultimodalModel, split: Split, device: torch.device, batch_size: int = 256, workers: int = 0
) -> Predictions:
    """Predict every availability pattern of every sample; each row is encoded once."""
    model.eval()
    patterns = all_patterns(model.modalities)
    blank = np.full((len(split), split.task.out), np.nan)
    outputs = {pattern: blank.copy() for pattern in patterns}
    start = 0
    for batch in split.batches(torch.arange(len(split)), batch_size, split.natural, workers):
        here = to_device(batch, device)
        once = None if model.encodes_by_pattern else model.encode(here.inputs, here.presence, here.presence)
        for pattern in patterns:
            rows = torch.stack([here.presence[m] for m in model.modalities if m in pattern]).all(dim=0)
            if bool(rows.any()):
                logits = _logits(model, here, pattern, rows, once)
                place = start + rows.cpu().numpy().nonzero()[0]
                outputs[pattern][place] = split.task.outputs(logits.float()).cpu().numpy()
        start += len(batch.ids)
    return Predictions(split.ids, split.targets.numpy(), split.natural, outputs, model.modalities)


def _logits(
    model: MultimodalModel, batch: Batch, pattern: Pattern, rows: Tensor, once: TokenMap | None
) -> Tensor:
    """Run what follows the encoders on some rows, as if only a pattern's modalities were there."""
    presence = {m: rows[rows] if m in pattern else ~rows[rows] for m in model.modalities}
    if once is None:
        tokens = model.encode({m: t[rows] for m, t in batch.inputs.items()}, presence, presence)
    elif bool(rows.all()):
        tokens = restrict(once, presence)
    else:
        tokens = restrict({m: Tokens(v[rows], valid[rows]) for m, (v, valid) in once.items()}, presence)
    return model.decode(tokens, presence).logits


@torch.no_grad()
def validate(
    model: MultimodalModel,
    split: Split,
    presence: Presence,
    device: torch.device,
    batch_size: int,
    workers: int = 0,
) -> dict[str, float]:
    """Give the loss and all scores of a split under one fixed presence, as `val/...`.

    Rows that have no modality under it are left out.
    """
    model.eval()
    losses, outputs, targets = [], [], []
    for batch in split.batches(rows_that_have_any(presence), batch_size, presence, workers):
        logits = model(to_device(batch, device)).logits.float()
        losses.append(split.task.losses(logits, batch.target.to(device)).cpu())
        outputs.append(split.task.outputs(logits).cpu())
        targets.append(batch.target)
    scored, truth = torch.cat(outputs).numpy(), torch.cat(targets).numpy()
    figures = {"val/loss": float(torch.cat(losses).mean())}
    return figures | {f"val/{score.name}": score(scored, truth) for score in split.task.scores}


def target_rate(target: str, rate: float) -> Rate:
    """Turn an evaluation target and a rate into a protocol's rate: `any`, or only one modality."""
    return rate if target == "any" else {target: rate}


def scores_at(
    predictions: Predictions, scores: Sequence[Score], protocol: Protocol, rate: Rate, seed: int, split: str
) -> dict[str, float]:
    """Give every score at one missing rate."""
    drawn = [s for s in scores if not s.per_sample]
    found = {s.name: _exact(predictions, s, protocol, rate) for s in scores if s.per_sample}
    return found | (_drawn(predictions, drawn, protocol, rate, seed, split) if drawn else {})


def values_at(predictions: Predictions, score: Score, protocol: Protocol, rate: Rate) -> Array:
    """Give what each sample is expected to score at a missing rate, for a score that is a mean over samples.

    Each pattern's value is weighted with its probability; the score at the rate is the mean over samples.
    """
    values = np.zeros(len(predictions.ids))
    for index, weight, own in _weighted(predictions, score, protocol, rate):
        values[index] += weight * own
    return values


def _weighted(
    predictions: Predictions, score: Score, protocol: Protocol, rate: Rate
) -> Iterator[tuple[Array, float, Array]]:
    """Give rows, a pattern's probability for them, and what they score with it."""
    for natural, rows in natural_groups(predictions.natural).items():
        index = rows.numpy()
        for pattern, weight in pattern_weights(protocol, rate, natural, predictions.modalities).items():
            if weight > 0:
                yield (
                    index,
                    weight,
                    score.compute(predictions.outputs[pattern][index], predictions.targets[index]),
                )


def _exact(predictions: Predictions, score: Score, protocol: Protocol, rate: Rate) -> float:
    """Weight each pattern's sum with its probability.

    Not the mean of `values_at`, which rounds otherwise: figures of earlier runs must come back to the last
    bit.
    """
    total = 0.0
    for _, weight, values in _weighted(predictions, score, protocol, rate):
        total += weight * float(np.sum(values))
    return total / len(predictions.ids)


def drawn_outputs(predictions: Predictions, protocol: Protocol, rate: Rate, seed: int, split: str) -> Array:
    """Pick each sample's outputs (samples, out) under one draw of who is present."""
    presence = draw_presence(protocol, rate, predictions.ids, predictions.natural, seed, split)
    outputs = np.full_like(next(iter(predictions.outputs.values())), np.nan)
    for pattern, rows in natural_groups(presence).items():
        outputs[rows.numpy()] = predictions.outputs[pattern][rows.numpy()]
    return outputs


def _drawn(
    predictions: Predictions, scores: Sequence[Score], protocol: Protocol, rate: Rate, seed: int, split: str
) -> dict[str, float]:
    """Average scores over seeded draws of who is present, the same draws for all of them."""
    found: dict[str, list[float]] = {s.name: [] for s in scores}
    for draw in range(DRAWS):
        own = seed if draw == 0 else derive_seed(seed, "draw", draw)
        outputs = drawn_outputs(predictions, protocol, rate, own, split)
        for s in scores:
            found[s.name].append(s(outputs, predictions.targets))
    return {name: float(np.mean(values)) for name, values in found.items()}


def realised_rates(presence: Presence) -> dict[Modality, float]:
    """Give the share of samples that lack each modality."""
    return {m: float((~present).double().mean()) for m, present in presence.items()}


def mask_digest(presences: Sequence[Presence]) -> str:
    """Hash masks, so that two runs can show that theirs are the same."""
    sha = hashlib.sha256()
    for presence in presences:
        for m, present in presence.items():
            sha.update(m.encode() + np.packbits(present.numpy()).tobytes())
    return sha.hexdigest()[:16]


def as_columns(predictions: Predictions) -> dict[str, Any]:
    """Lay predictions out as columns of a table: a row for each sample and pattern that it can have."""
    columns: dict[str, list[Any]] = {"id": [], "row": [], "pattern": [], "target": []}
    stacked = []
    for pattern, outputs in predictions.outputs.items():
        rows = predictions.has(pattern).nonzero()[0]
        columns["id"] += [predictions.ids[int(r)] for r in rows]
        columns["row"] += rows.tolist()
        columns["pattern"] += [pattern_name(pattern, predictions.modalities)] * len(rows)
        columns["target"] += predictions.targets[rows].tolist()
        stacked.append(outputs[rows])
    values = np.concatenate(stacked)
    return {**columns, **{f"output_{i}": values[:, i] for i in range(values.shape[1])}}


def pattern_name(pattern: Pattern, modalities: Sequence[Modality]) -> str:
    """Name a pattern by what is present, in the dataset's order."""
    return ".".join(m for m in modalities if m in pattern)
