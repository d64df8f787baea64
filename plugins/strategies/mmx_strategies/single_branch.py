"""SRMM, SBNet: one branch for all modalities, which enter it by turns; the mean over what is present.

Source: Saeed et al., "Modality Invariant Multimodal Learning to Handle Missing Modalities: A Single-Branch
Approach" (SRMM, arXiv 2408.07445), of which only the first page could be read, and its ancestor SBNet (Saeed
et al., "Single-Branch Network for Multimodal Training", ICASSP 2023) from its released code. Facts of SRMM:
embeddings from frozen extractors; one branch, whose weights all modalities share; modality switching decides
what enters it at each step, so that it needs no fusion module. Facts of SBNet, with x the embedding of any
modality:

    e = l2norm(block(block(x))),    block = linear map, batch norm, ReLU, dropout of 0.5,  512 → 128 → 128
    z = W e + b                                                                                          (1)
    L = CE(z, y) + α · OPL(e, y),    α = 1                                                               (2)
    OPL = 1 − mean cos(e_i, e_j) over i ≠ j of one class + 0.7 · mean |cos(e_i, e_j)| of different ones  (3)

A sample is one training item for each of its modalities; orders of the items are random, by turns, or one
modality in each half of an epoch. The task there is verification, so that nothing says how to fuse.

Ours, since SRMM's recipe was not found [choice, each]: logits are the mean of z over what is present, and
nothing stands in; a batch shows one modality alone or all of them, with equal probabilities; a batch norm for
each modality before the branch, without weights; maps before a batch norm have no bias, which the norm would
take away; dropout of 0.1, and e as it comes, since a class needs no unit length as verification does: with
SBNet's own (`dropout: 0.5`, `normalise: true`) eight epochs on a few thousand rows are far too few, as the
validation split says; the cosines of (3) are over the rows of all modalities together, and a kind of pair
that a batch has not costs nothing; extractors, adapters and optimiser are the sweep's.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from mmx.contracts import (
    Batch,
    Fusion,
    Logits,
    Modality,
    Model,
    Presence,
    Procedure,
    Step,
    Task,
    TokenMap,
    first_token,
)
from mmx.errors import InputError
from mmx.tasks import SingleLabel
from mmx_strategies.watched import watched

SHARED = "all"
"""Name of the branch of all modalities."""


class SingleBranch(Fusion):
    """Give every summary token the same branch and head, and average the logits of what is present: z of (1).

    Batch norms have the statistics of all rows and modalities of the batch together. In training a batch of
    one vector is normalised by the running ones [choice: it has no variance]. A row without any modality gets
    zeros.

    `hidden`: width of each of the `blocks`. `shared: false` gives each modality a branch of its own, the
    control; the head stays shared. `normalise: true`: e is scaled to length 1.
    """

    def __init__(
        self,
        modalities: Sequence[Modality],
        width: int,
        task: Task,
        hidden: int = 128,
        blocks: int = 2,
        dropout: float = 0.1,
        shared: bool = True,
        normalise: bool = False,
    ) -> None:
        super().__init__()
        if hidden < 1 or blocks < 1 or not 0 <= dropout < 1:
            raise InputError(
                f"fusion 'single_branch': hidden {hidden} and blocks {blocks} must be at least 1, and "
                f"dropout {dropout} at least 0 and below 1"
            )
        self.modalities = tuple(modalities)
        self.out = task.out
        self.shared, self.normalise = shared, normalise
        self.tells_modalities_apart = True
        self.inputs = nn.ModuleDict({m: _RowNorm(width, affine=False) for m in modalities})
        names = (SHARED,) if shared else self.modalities
        self.branches = nn.ModuleDict({n: _branch(width, hidden, blocks, dropout) for n in names})
        self.head = nn.Linear(hidden, task.out)

    def forward(self, tokens: TokenMap) -> Logits:
        """Fuse."""
        count = torch.stack([first_token(tokens[m])[1] for m in self.modalities]).sum(dim=0)
        total = torch.stack(list(self.modality_logits(tokens).values())).sum(dim=0)
        return total / count.clamp(min=1)[:, None]

    def modality_logits(self, tokens: TokenMap) -> Mapping[Modality, Logits]:
        """Give z of each modality; the head sees all of them at once, modality after modality."""
        found = {m: first_token(tokens[m]) for m in self.modalities}
        rows = {m: valid.nonzero()[:, 0] for m, (_, valid) in found.items()}
        items = {m: self.inputs[m](found[m][0][i]) for m, i in rows.items() if len(i)}
        blank = next(iter(found.values()))[0].new_zeros(len(next(iter(tokens.values())).values), self.out)
        if not items:
            return dict.fromkeys(self.modalities, blank)
        logits = self.head(self._embed(items)).split([len(i) for i in rows.values()])
        return {
            m: blank.to(z.dtype).index_copy(0, i, z) for (m, i), z in zip(rows.items(), logits, strict=True)
        }

    def _embed(self, items: Mapping[Modality, Tensor]) -> Float[Tensor, "items hidden"]:
        """Give e of all modalities' rows."""
        if self.shared:
            e = self.branches[SHARED](torch.cat(list(items.values())))
        else:
            e = torch.cat([self.branches[m](x) for m, x in items.items()])
        return F.normalize(e) if self.normalise else e


class _RowNorm(nn.BatchNorm1d):
    """Batch norm that takes a batch of one row too, by the running statistics."""

    def forward(self, x: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
        """Normalise."""
        if self.training and len(x) < 2:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


def _branch(width: int, hidden: int, blocks: int, dropout: float) -> nn.Sequential:
    sizes = [width] + [hidden] * blocks
    layers: list[nn.Module] = []
    for inside, outside in pairwise(sizes):
        layers += [nn.Linear(inside, outside, bias=False), _RowNorm(outside), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


class ModalitySwitching(Procedure):
    """One step a batch on the modalities whose turn it is, by the loss (2) plus the strategy's.

    Rows that have nothing of what is shown sit out, and a batch without any other takes no step. `order`:

    - "random": the batch shows one modality, evenly drawn from those that some row has, or with probability
      `together` all that there is, by default 1/(M+1): for two modalities a third each [choice];
    - "items": each row shows one of the modalities that it has, evenly drawn (SBNet's random order);
    - "alternate": rows take turns within the batch (SBNet's vfvf);
    - "halves": each modality has its part of an epoch, in the dataset's order (SBNet's hefhev);
    - "none": everything that there is, the control.

    `alpha`: what the orthogonal projection loss counts; above 0 it needs fusion `single_branch` and classes.
    `spread`: what pairs of different classes count in it.
    """

    def __init__(
        self,
        modalities: Sequence[Modality],
        task: Task,
        order: Literal["random", "items", "alternate", "halves", "none"] = "random",
        together: float | None = None,
        alpha: float = 1.0,
        spread: float = 0.7,
    ) -> None:
        if alpha < 0 or spread < 0:
            raise InputError(
                f"procedure 'modality_switching': alpha {alpha} and spread {spread} must not be negative"
            )
        if together is not None and not 0 <= together <= 1:
            raise InputError(f"procedure 'modality_switching': together {together} must be from 0 to 1")
        if alpha and not isinstance(task, SingleLabel):
            raise InputError(
                "procedure 'modality_switching': the orthogonal projection loss compares classes, which a "
                f"task {type(task).__name__} does not have; set alpha: 0"
            )
        self.modalities = tuple(modalities)
        self.task = task
        self.order = order
        self.together = 1 / (len(self.modalities) + 1) if together is None else together
        self.alpha, self.spread = alpha, spread
        self.batch, self.batches = 0, 1

    def check(self, model: Model) -> None:
        """Refuse adapters by pattern, and the orthogonal projection loss without the branch's e."""
        if self.order != "none" and any(adapter.by_pattern for adapter in model.adapters.values()):
            raise InputError(
                "procedure 'modality_switching' hides modalities, so rows are not of the one pattern that an "
                "adapter by pattern trains for; take procedure 'joint'"
            )
        if self.alpha and not isinstance(model.fusion, SingleBranch):
            raise InputError(
                "procedure 'modality_switching': the orthogonal projection loss is of what fusion "
                f"'single_branch' learns, and {type(model.fusion).__name__} has nothing like it; set alpha: 0"
            )

    def epoch_started(self, epoch: int, batches: int) -> None:
        """Count batches from zero."""
        del epoch
        self.batch, self.batches = 0, batches

    def steps(self, model: Model, batch: Batch) -> Iterator[Step]:
        """Yield the one step."""
        shown = _take(batch, self._turn(batch.presence))
        self.batch += 1
        if not shown.ids:
            return
        with watched(cast(nn.Module, model.fusion.head) if self.alpha else None) as entered:
            output = model(shown)
        losses = {"task": self.task.loss(output.logits, shown.target)}
        if self.alpha:
            valid = [first_token(output.tokens[m])[1] for m in self.modalities]
            classes = torch.cat([shown.target[there] for there in valid])
            losses["orthogonal"] = self.alpha * orthogonal_projection(entered[0], classes, self.spread)
        losses |= output.losses
        yield Step(sum(losses.values(), start=losses["task"].new_zeros(())), losses)

    def _turn(self, presence: Presence) -> Presence:
        """Say what each row shows of what it has."""
        there = torch.stack([presence[m] for m in self.modalities])  # (modalities, batch)
        choose: dict[str, Callable[[Tensor], Tensor]] = {
            "random": self._draw_batch,
            "items": _draw_rows,
            "alternate": _alternate,
            "halves": self._part_of_epoch,
        }
        shown = there & choose[self.order](there) if self.order != "none" else there
        return dict(zip(self.modalities, shown, strict=True))

    def _draw_batch(self, there: Bool[Tensor, "modalities batch"]) -> Bool[Tensor, "modalities _"]:
        draw, which = torch.rand(2).tolist()
        held = there.any(dim=1).nonzero()[:, 0]
        if draw < self.together or len(held) == 0:
            return torch.ones_like(there)
        return _one_of(held[int(which * len(held))], len(there))

    def _part_of_epoch(self, there: Bool[Tensor, "modalities batch"]) -> Bool[Tensor, "modalities 1"]:
        part = min(self.batch * len(there) // max(1, self.batches), len(there) - 1)
        return _one_of(torch.tensor(part, device=there.device), len(there))


def _one_of(which: Int[Tensor, ""], count: int) -> Bool[Tensor, "modalities 1"]:
    return torch.arange(count, device=which.device)[:, None] == which


def _draw_rows(there: Bool[Tensor, "modalities batch"]) -> Bool[Tensor, "modalities batch"]:
    draw = torch.rand(there.shape, device=there.device).masked_fill(~there, -1.0)
    return torch.zeros_like(there).scatter(0, draw.argmax(dim=0, keepdim=True), True)


def _alternate(there: Bool[Tensor, "modalities batch"]) -> Bool[Tensor, "modalities batch"]:
    """Let row i show the (i mod k)-th of the k modalities that it has."""
    turn = torch.arange(there.shape[1], device=there.device) % there.sum(dim=0).clamp(min=1)
    return there & (there.cumsum(dim=0) - 1 == turn)


def _take(batch: Batch, presence: Presence) -> Batch:
    """Take the rows that show something."""
    rows = torch.stack(list(presence.values())).any(dim=0)
    return replace(batch, presence=presence).take(rows)


def orthogonal_projection(
    e: Float[Tensor, "rows width"], classes: Int[Tensor, " rows"], spread: float = 0.7
) -> Float[Tensor, ""]:
    """Give (3): rows of one class are to point the same way, those of different classes at right angles."""
    unit = F.normalize(e.float())
    cosines = unit @ unit.T
    same = classes[:, None] == classes
    pairs = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
    loss = cosines.new_zeros(())
    if bool(pairs.any()):
        loss = 1 - cosines[pairs].mean()
    return loss + spread * cosines[~same].abs().mean() if bool((~same).any()) else loss
