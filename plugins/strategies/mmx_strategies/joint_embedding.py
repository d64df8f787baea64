"""Joint embedding prediction: read-only prompts predict the summary token of what is absent.

Source: Kim and Kim, "Missing Modality Prediction for Unpaired Multimodal Learning via Joint Embedding of
Unimodal Models" (ECCV 2024, arXiv 2407.12616). No code and no full text were found: this is written from its
abstract and first page, and from the released code of its building blocks, RPO (Lee et al., ICCV 2023) for
read-only prompts and VICReg (Bardes et al., ICLR 2022). With P_{m→n} K prompts in m's encoder, o_{m→n} the
mean of their outputs, and g_{m→n} a predictor,

    ẑ_n = g_{m→n}(o_{m→n}),    L = CE(C(z), y) + λ Σ_n L_vic(ẑ_n, z_n),
    L_vic(X, Y) = 25 mean (X − Y)² + 25 (v(X) + v(Y)) / 2 + c(X) + c(Y),
    v(X) = mean_j max(0, 1 − √(Var(X_j) + 10⁻⁴)),    c(X) = Σ_{i≠j} Cov(X)_{ij}² / d,

ẑ_n stands in the slot of an absent n. Facts: encoders that were pretrained apart, and adapted by BitFit
(`adapter: bitfit`); read-only prompts that drive a predictor of the other modality's embedding; VICReg
between prediction and truth on complete pairs; training on complete and on incomplete samples; late fusion.
From RPO: nothing attends to a prompt, not even a prompt; prompts start as the class token plus 0.1 times a
noise of unit norm. From VICReg: its three terms and their weights.

Our choices, since nothing of it was found: K = 4; prompts in front of the first layer; the mean of their
outputs; g = layer norm and a perceptron of two layers, as wide as the tokens; λ = 0.04, so that the loss is
about as large as CE at the start; no stopped gradient, and no wide expander, before VICReg; no VICReg in a
batch of fewer than 8 pairs; an encoder that takes no read-only prompts lets g read its summary token; of
more than two modalities each ordered pair has prompts and a predictor, ẑ_n is the mean over present m, and
the loss of n the mean over its m. The head meets predictions in training: a complete row hides one modality
with probability `exposure`. With M/(M + 1), the default, this is in expectation 1/(M + 1) of CE with all
plus CE with each one predicted.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mmx.contracts import (
    EncoderFacts,
    Filled,
    Modality,
    Presence,
    Prompts,
    Strategy,
    TokenMap,
    Tokens,
    first_token,
)
from mmx.errors import InputError
from mmx_strategies.hiding import hide_one_of_complete
from mmx_strategies.stand_in import mean_of_present, stand_in

FEWEST_PAIRS = 8
"""Variances and covariances of fewer rows say nothing."""

Guesses = Mapping[Modality, Mapping[Modality, Float[Tensor, "batch width"]]]
"""ẑ by source and target."""


class JointEmbedding(Strategy):
    """Predict an absent modality's summary token from read-only prompts in the encoders of what is there.

    One pass of an encoder gives its own tokens, as they would be without prompts, and what the predictions
    are made of. Switches, for ablation:

    - `weight`: λ; 0: no VICReg, and what is hidden is not encoded;
    - `exposure`: the chance that a complete training row has one modality hidden, evenly chosen; by default
      M/(M + 1); 0: the head meets predictions only in rows that really lack something;
    - `read_only`: false lets all other tokens attend to the prompts;
    - `source`: "auto", or "summary": predictors read summary tokens, and there are no prompts;
    - `stop_gradient`: true keeps VICReg from moving the truth;
    - `length`: K.
    """

    def __init__(
        self,
        modalities: Sequence[Modality],
        width: int,
        encoders: Mapping[Modality, EncoderFacts],
        length: int = 4,
        weight: float = 0.04,
        exposure: float | None = None,
        read_only: bool = True,
        source: Literal["auto", "summary"] = "auto",
        stop_gradient: bool = False,
    ) -> None:
        super().__init__()
        self.modalities = tuple(modalities)
        count = len(self.modalities)
        self.exposure = count / (count + 1) if exposure is None else exposure
        if length < 1 or weight < 0 or not 0 <= self.exposure <= 1:
            raise InputError(
                f"strategy 'joint_embedding': length {length} must be at least 1, weight {weight} at least "
                f"0, and exposure {self.exposure} from 0 to 1"
            )
        self.length, self.weight = length, weight
        self.uses_targets = weight != 0
        self.read_only, self.stop_gradient = read_only, stop_gradient
        self.others = {m: tuple(n for n in self.modalities if n != m) for m in self.modalities}
        self.sets = nn.ParameterDict()
        self.predictors = nn.ModuleDict()
        for m in self.modalities if count > 1 else ():
            if source == "auto" and encoders[m].accepts_prompts and encoders[m].prompt_layers:
                self.sets[m] = _start(encoders[m], (count - 1) * length)
            self.predictors[m] = nn.ModuleDict({n: _predictor(width) for n in self.others[m]})

    def hide(self, presence: Presence) -> Presence:
        """Hide one modality of some complete rows."""
        return hide_one_of_complete(presence, self.modalities, self.exposure)

    def prompts(self, modality: Modality, presence: Presence) -> Prompts | None:
        """Give the prompts of this modality's encoder, the same for every row."""
        if modality not in self.sets:
            return None
        rows = self.sets[modality][None, None].expand(len(presence[modality]), -1, -1, -1)
        return Prompts(rows, read_only=self.read_only)

    def fill(self, tokens: TokenMap, presence: Presence, targets: TokenMap | None) -> Filled:
        """Fill absent slots with predictions, and in training compare predictions with what is there."""
        seen = tokens if targets is None else targets  # rows that hide a source take nothing from it below
        guesses = {m: self._guess(m, t) for m, t in seen.items()}
        own = {m: self._own(m, t) for m, t in tokens.items()}
        if len(self.modalities) < 2:  # nothing to predict from, and nothing that can be absent
            return Filled(own)
        filled = {n: stand_in(own[n], presence[n], self._mean(n, guesses, presence)) for n in self.modalities}
        if targets is None or not self.weight:
            return Filled(filled)
        return Filled(filled, {"vicreg": self.weight * self._compare(guesses, targets)})

    def _own(self, m: Modality, tokens: Tokens) -> Tokens:
        """Take the prompts' outputs off the front."""
        front = len(self.sets[m]) if m in self.sets else 0
        return Tokens(tokens.values[:, front:], tokens.valid[:, front:])

    def _guess(self, m: Modality, tokens: Tokens) -> dict[Modality, Float[Tensor, "batch width"]]:
        """Give ẑ_n for every other n; where m is absent the value is not used."""
        others, values = self.others[m], tokens.values
        if values.shape[1] == 0:
            return {n: values.new_zeros(len(values), values.shape[2]) for n in others}
        if m not in self.sets:
            summary = first_token(tokens)[0]
            return {n: self.predictors[m][n](summary) for n in others}  # type: ignore[index]
        read = values[:, : len(self.sets[m])].unflatten(1, (len(others), self.length)).mean(dim=2)
        return {n: self.predictors[m][n](read[:, i]) for i, n in enumerate(others)}  # type: ignore[index]

    def _mean(self, n: Modality, guesses: Guesses, presence: Presence) -> Float[Tensor, "batch width"]:
        """Average the predictions of n from the modalities that are there."""
        return mean_of_present({m: guesses[m][n] for m in self.others[n]}, presence)

    def _compare(self, guesses: Guesses, targets: TokenMap) -> Float[Tensor, ""]:
        """Sum L_vic over targets, each the mean over its sources with enough pairs that are really there."""
        truth = {m: first_token(self._own(m, t)) for m, t in targets.items()}
        total = next(iter(targets.values())).values.new_zeros(())
        for n in self.modalities:
            losses = []
            for m in self.others[n]:
                pairs = truth[m][1] & truth[n][1]
                if int(pairs.sum()) >= FEWEST_PAIRS:
                    goal = truth[n][0][pairs]
                    losses.append(vicreg(guesses[m][n][pairs], goal.detach() if self.stop_gradient else goal))
            total = total + (torch.stack(losses).mean() if losses else 0.0)
        return total


def vicreg(x: Float[Tensor, "rows width"], y: Float[Tensor, "rows width"]) -> Float[Tensor, ""]:
    """Give L_vic with the weights of its released code: 25, 25 and 1."""
    with torch.autocast(x.device.type, enabled=False):  # variances are a matter of small differences
        x, y = x.float(), y.float()
        return 25 * F.mse_loss(x, y) + 25 * (_spread(x) + _spread(y)) / 2 + _covariance(x) + _covariance(y)


def _spread(x: Float[Tensor, "rows width"]) -> Float[Tensor, ""]:
    """Give v: how far standard deviations are below 1."""
    return F.relu(1 - (x.var(dim=0) + 1e-4).sqrt()).mean()


def _covariance(x: Float[Tensor, "rows width"]) -> Float[Tensor, ""]:
    """Give c: the squared covariances of different features."""
    centred = x - x.mean(dim=0)
    squares = (centred.T @ centred / (len(x) - 1)).square()
    return (squares.sum() - squares.diagonal().sum()) / x.shape[1]


def _start(facts: EncoderFacts, count: int) -> nn.Parameter:
    """Give prompts that start as the class token plus 0.1 times a noise of unit norm, as in RPO."""
    noise = 0.1 * F.normalize(torch.randn(count, facts.width), dim=1)
    return nn.Parameter(noise if facts.class_embedding is None else noise + facts.class_embedding.cpu())


def _predictor(width: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
