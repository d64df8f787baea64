"""MMIN: a cascade of autoencoders imagines what is absent, and its bottlenecks are what is classified.

Source: Zhao, Li and Jin, "Missing Modality Imagination Network for Emotion Recognition with Uncertain Missing
Modalities" (MMIN, ACL 2021), from its released code (branch master). With h_m the summary vector of m's
encoder, zero where m is absent, x_1 = [h_1; …; h_M], and five blocks of widths 256, 128, 64 and back:

    c_i = E_i(x_i),    x_{i+1} = x_i + D_i(c_i),    x̂ = T(x_6)                                             (1)
    z = C([c_1; …; c_5])                                                                              (2)
    L = CE(z, y) + 4 · MSE(x̂, t) + 2 · MSE(B(x̂), sg(x_1))                                               (3)

where t has the features of the modalities that are absent from x_1, and of no others, as the frozen encoders
of a model see them that was trained on complete rows before (stage one); B is a second cascade like (1). In
stage two, from the same encoders, every row shows one of the incomplete patterns, evenly drawn. Tests are on
these patterns too, and complete rows in neither.

Ours [choice, each]: an absent modality has zeros for features, and t has zeros for those present, where the
release encodes zeros; since mmx evaluates complete rows too, `whole` may show some in training; a layer norm
and a linear map make of the bottlenecks of (2) a token for each modality, so that every fusion can be C
(`concat`: a linear one; the release's has two layers of 128); a row that lacks something shows one of the
patterns that it can, and what nobody knows of it is left out of (3).

As two stages it is two phases of a sweep, with procedure `mmin` in the second (see sweeps/mmin.yaml):

    strategy: mmin
    fusion: concat
    training:
      phases:
        - {strategy: skip}
        - {procedure: mmin}

Without phases and that procedure t is what the encoders themselves make of what was hidden, without gradient.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise, product
from typing import Literal, NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from mmx.contracts import (
    Batch,
    Filled,
    Modality,
    Model,
    Presence,
    Procedure,
    Step,
    Strategy,
    Task,
    TokenMap,
    Tokens,
    first_token,
)
from mmx.errors import InputError
from mmx_strategies.stand_in import stand_in
from mmx_strategies.watched import watched


class Mmin(Strategy):
    """Imagine the absent summary vectors, and give each modality a token made of the bottlenecks: (1) to (3).

    Switches, for ablation:

    - `imagination`, `cycle`: the weights 4 and 2 of (3); 0: without that loss;
    - `reads`: "bottlenecks", or "imagined": the fusion reads what is there, and x̂ in place of what is not;
    - `whole`: the chance that a complete row is shown whole in training; 0 as published, 1: all are;
    - `blocks`, `layers`: how many autoencoders, and their widths down to the bottleneck.
    """

    def __init__(
        self,
        modalities: Sequence[Modality],
        width: int,
        imagination: float = 4.0,
        cycle: float = 2.0,
        whole: float = 0.0,
        reads: Literal["bottlenecks", "imagined"] = "bottlenecks",
        blocks: int = 5,
        layers: Sequence[int] = (256, 128, 64),
    ) -> None:
        super().__init__()
        if imagination < 0 or cycle < 0 or not 0 <= whole <= 1:
            raise InputError(
                f"strategy 'mmin': imagination {imagination} and cycle {cycle} must not be negative, and "
                f"whole {whole} from 0 to 1"
            )
        if blocks < 1 or not layers or min(layers) < 1:
            raise InputError(f"strategy 'mmin': blocks {blocks} and layers {list(layers)} must be at least 1")
        self.modalities = tuple(modalities)
        several = len(self.modalities) > 1  # one alone is never absent
        self.imagination = imagination if several else 0.0
        self.cycle = cycle if several else 0.0
        self.whole, self.reads = whole, reads if several else "bottlenecks"
        self.uses_targets = self.imagination > 0
        inside = width * len(self.modalities)
        imagines = bool(self.imagination or self.cycle) or self.reads == "imagined"
        self.forth = Cascade(inside, layers, blocks, rebuilds=imagines)
        self.back = Cascade(inside, layers, blocks) if self.cycle else None
        found = blocks * layers[-1]
        answers = self.reads == "bottlenecks"
        self.token = nn.Sequential(nn.LayerNorm(found), nn.Linear(found, inside)) if answers else None
        self.told = nn.Identity()
        """Is given what was `Imagined`, for whoever watches."""

    def hide(self, presence: Presence) -> Presence:
        """Show one of the incomplete patterns, evenly drawn from those that a row can show."""
        if len(self.modalities) < 2 or self.whole == 1:
            return presence
        there = torch.stack([presence[m] for m in self.modalities])  # (modalities, batch)
        patterns = torch.tensor(list(product((False, True), repeat=len(there)))[1:-1], device=there.device)
        possible = (patterns[:, :, None] <= there).all(dim=1)  # (patterns, batch)
        draw = torch.rand(possible.shape, device=there.device).masked_fill(~possible, -1.0)
        shown = there & patterns[draw.argmax(dim=0)].T
        kept = there.all(dim=0) & (torch.rand(there.shape[1], device=there.device) < self.whole)
        return dict(zip(self.modalities, torch.where(kept, there, shown), strict=True))

    def fill(self, tokens: TokenMap, presence: Presence, targets: TokenMap | None) -> Filled:
        """Imagine, answer, and in training say how far off it was."""
        features = torch.cat([first_token(tokens[m])[0] for m in self.modalities], dim=1)
        visible = torch.stack([presence[m] for m in self.modalities], dim=1)
        imagined, bottlenecks = self.forth(features)
        self.told(Imagined(features, imagined, visible))
        filled = self._answer(tokens, presence, imagined, bottlenecks)
        losses: dict[str, Tensor] = {}
        if targets is not None and self.imagination:
            goal = [first_token(targets[m]) for m in self.modalities]
            truth = torch.cat([values for values, _ in goal], dim=1).detach()
            known = torch.stack([valid for _, valid in goal], dim=1)
            losses["imagination"] = self.imagination * error(imagined, truth, visible, known)
        if targets is not None and self.back is not None:
            losses["cycle"] = self.cycle * F.mse_loss(self.back(imagined)[0], features.detach())
        return Filled(filled, losses)

    def _answer(
        self, tokens: TokenMap, presence: Presence, imagined: Tensor, bottlenecks: Tensor
    ) -> dict[Modality, Tokens]:
        """Give what the fusion reads."""
        made = imagined if self.token is None else self.token(bottlenecks)
        parts = dict(zip(self.modalities, made.chunk(len(self.modalities), dim=1), strict=True))
        if self.token is None:
            return {m: stand_in(tokens[m], presence[m], part) for m, part in parts.items()}
        seen = torch.ones(len(made), 1, dtype=torch.bool, device=made.device)
        return {m: Tokens(part[:, None], seen) for m, part in parts.items()}


class Imagined(NamedTuple):
    """What the strategy saw and made of it."""

    features: Float[Tensor, "batch modalities_x_width"]
    imagined: Float[Tensor, "batch modalities_x_width"]
    visible: Bool[Tensor, "batch modalities"]


class Cascade(nn.Module):
    """Residual autoencoders, one after another: (1); `rebuilds=False` has not what x̂ alone needs."""

    def __init__(self, inside: int, layers: Sequence[int], blocks: int, rebuilds: bool = True) -> None:
        super().__init__()
        down, up = [inside, *layers], [*reversed(layers), inside]
        self.encoders = nn.ModuleList(_perceptron(down, nn.LeakyReLU()) for _ in range(blocks))
        self.decoders = nn.ModuleList(_perceptron(up, nn.ReLU()) for _ in range(blocks - (not rebuilds)))
        self.transition = _perceptron([inside] * 3, nn.ReLU()) if rebuilds else None

    def forward(
        self, x: Float[Tensor, "batch inside"]
    ) -> tuple[Float[Tensor, "batch inside"], Float[Tensor, "batch bottlenecks"]]:
        """Give x̂ (without T: what enters the last block) and the bottlenecks side by side."""
        found = []
        for place, encoder in enumerate(self.encoders):
            found.append(encoder(x))
            if place < len(self.decoders):
                x = x + self.decoders[place](found[-1])
        return x if self.transition is None else self.transition(x), torch.cat(found, dim=1)


def error(
    imagined: Float[Tensor, "batch modalities_x_width"],
    truth: Float[Tensor, "batch modalities_x_width"],
    visible: Bool[Tensor, "batch modalities"],
    known: Bool[Tensor, "batch modalities"],
) -> Float[Tensor, ""]:
    """Give MSE(x̂, t): t is the truth where a modality is known and not visible, zero where it is visible."""
    width = imagined.shape[1] // visible.shape[1]
    wanted, counted = ((part & known).repeat_interleave(width, dim=1) for part in (~visible, known))
    goal = torch.where(wanted, truth, 0.0).float()
    apart = torch.where(counted, imagined.float() - goal, 0.0)
    return apart.square().sum() / counted.sum().clamp(min=1)


def _perceptron(sizes: Sequence[int], between: nn.Module) -> nn.Sequential:
    parts: list[nn.Module] = []
    for inside, outside in pairwise(sizes):
        parts += [nn.Linear(inside, outside), between]
    return nn.Sequential(*parts[:-1])


class Imagination(Procedure):
    """One step a batch, by (3), where t is what the frozen model that the phase before left makes of a row.

    It needs strategy `mmin`. The teacher may have any strategy: it sees all that a row has.
    """

    def __init__(self, modalities: Sequence[Modality], task: Task, teacher: Model | None = None) -> None:
        if teacher is None:
            raise InputError(
                "procedure 'mmin' imagines what the phase before saw, and there is none: put a phase in "
                "front of it (training.phases; see sweeps/mmin.yaml), or take procedure 'joint'"
            )
        if isinstance(teacher, nn.Module):
            teacher.eval()
        self.modalities = tuple(modalities)
        self.task, self.teacher = task, teacher

    def check(self, model: Model) -> None:
        """Refuse strategies that imagine nothing."""
        if not isinstance(model.strategy, Mmin) or not model.strategy.imagination:
            raise InputError(
                f"procedure 'mmin': strategy {type(model.strategy).__name__} imagines nothing; take 'mmin' "
                "with an imagination above 0, and more than one modality"
            )

    def steps(self, model: Model, batch: Batch) -> Iterator[Step]:
        """Yield the one step."""
        strategy = cast(Mmin, model.strategy)
        with watched(strategy.told) as told:
            output = model(batch)
        _, imagined, visible = cast(Imagined, told[-1])
        known = torch.stack([batch.presence[m] for m in self.modalities], dim=1)
        missed = error(imagined, self._truth(batch), visible, known)
        losses = {"task": self.task.loss(output.logits, batch.target), **output.losses}
        losses["imagination"] = strategy.imagination * missed
        yield Step(sum(losses.values(), start=losses["task"].new_zeros(())), losses)

    @torch.no_grad()
    def _truth(self, batch: Batch) -> Float[Tensor, "batch modalities_x_width"]:
        """Give the teacher's summary vectors; a teacher of the same strategy is asked what entered it."""
        own = self.teacher.strategy
        with watched(own.told if isinstance(own, Mmin) else None) as told:
            tokens: Mapping[Modality, Tokens] = self.teacher(batch).tokens
        if told:
            return cast(Imagined, told[-1]).features
        return torch.cat([first_token(tokens[m])[0] for m in self.modalities], dim=1)
