"""QMF: logits weighed by their energy, and confidence that is to follow the history of losses.

Source: Zhang et al., "Provable Dynamic Fusion for Low-Quality Multimodal Data" (QMF, ICML 2023), from its
official code. Facts: a classifier a modality; confidence c_m = logsumexp(z_m) / 10, a negative energy; fused
z = Σ c_m z_m, no gradient through c_m in the text-image code; loss Σ CE(z_m, y) + CE(z, y) + w Σ R_m; R_m
compares each row of the batch with the next, the last with the first, by the loss that each sample has
accumulated in training, scaled to [0, 1] over all samples: the lower it is, the higher c_m must be. w is 0.1
in the RGB-D code (and in MLA's port for CREMA-D), 1 in the text-image code.

Read this before calling a result QMF's: in the released R_m the margin |H_i − H_j| has the sign of a
tolerance, relu(t (c_j − c_i) − |H_i − H_j|), so that a pair in the wrong order costs nothing as long as it is
not further apart than the histories are. Ours is the hinge of the correctness ranking loss (Moon et al., ICML
2020) on which it builds, where the margin is what confidences must differ by [choice].

Ours too [choice]: a pair with a sample that has no history yet costs nothing, so that there is no R_m in the
first epoch, where the release takes a loss of 0 for it; R_m is a mean over the pairs that are ordered, where
the release divides by all; histories grow after the step, as in the RGB-D code (in the text-image code
before); a modality's terms are over the rows that have it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from mmx.contracts import (
    Batch,
    Fusion,
    Logits,
    Modality,
    Model,
    Procedure,
    Step,
    Task,
    TokenMap,
    first_token,
    head_logits,
)
from mmx.errors import InputError
from mmx.tasks import SingleLabel


class ConfidenceFusion(Fusion):
    """Give each modality its own linear head and add the logits up, each times its confidence.

    z = Σ c_m z_m over the modalities with a valid summary token, without gradient through c_m. Confidences
    are not normalised, and negative where logits are very negative, as in the paper. A row without any
    modality gets zeros.
    """

    def __init__(self, modalities: Sequence[Modality], width: int, task: Task) -> None:
        super().__init__()
        _require_classes("fusion 'confidence'", task, "'mean_logits'")
        self.heads = nn.ModuleDict({m: nn.Linear(width, task.out) for m in modalities})
        self.out = task.out
        self.tells_modalities_apart = True

    def modality_logits(self, tokens: TokenMap) -> Mapping[Modality, Logits]:
        """Give each head's logits."""
        return {m: head_logits(head, tokens[m], self.out) for m, head in self.heads.items()}

    def forward(self, tokens: TokenMap) -> Logits:
        """Fuse; where a modality is absent its logits are zero, and so is what it adds."""
        weighed = [confidence(z).detach()[:, None] * z for z in self.modality_logits(tokens).values()]
        return torch.stack(weighed).sum(dim=0)


class Qmf(Procedure):
    """One step a batch: each modality's loss, the fused one, the strategy's, and the ranking of confidences.

    It takes every fusion that tells modalities apart; the paper's is `confidence`. A row has a modality if
    the batch says so and its summary token is valid; what a strategy puts in the place of a modality that it
    has hidden itself counts as there. A sample that is hidden more often than others accumulates less loss.

    `rank_weight`: what Σ R_m counts in the loss (0: histories do nothing).
    """

    def __init__(self, modalities: Sequence[Modality], task: Task, rank_weight: float = 0.1) -> None:
        _require_classes("procedure 'qmf'", task, "'joint'")
        if rank_weight < 0:
            raise InputError(f"procedure 'qmf': rank_weight {rank_weight} must not be negative")
        self.task = task
        self.rank_weight = rank_weight
        self.histories = {m: LossHistory() for m in modalities}

    def check(self, model: Model) -> None:
        """Refuse a fusion that cannot say what each modality alone would."""
        if not model.fusion.tells_modalities_apart:
            raise InputError(
                f"procedure 'qmf': fusion {type(model.fusion).__name__} has no logits of single modalities; "
                "take 'confidence', or 'mean_logits', 'entropy' or 'concat' without hidden layer"
            )

    def state_dict(self) -> dict[str, Tensor]:
        """Give all histories."""
        return {f"{m}.{n}": t for m, h in self.histories.items() for n, t in h.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take them back."""
        for m, history in self.histories.items():
            history.load_state_dict({n: state[f"{m}.{n}"] for n in history.state_dict()})

    def steps(self, model: Model, batch: Batch) -> Iterator[Step]:
        """Yield the one step; the histories take note of it once its gradients are there."""
        output = model(batch)
        losses = {"task": self.task.loss(output.logits, batch.target)}
        rank = losses["task"].new_zeros(())
        found: dict[Modality, tuple[list[str], Tensor]] = {}
        for m, logits in model.fusion.modality_logits(output.tokens).items():
            rows = (batch.presence[m] & first_token(output.tokens[m])[1]).nonzero()[:, 0]
            if len(rows) == 0:
                continue
            ids = [batch.ids[i] for i in rows.tolist()]
            each = self.task.losses(logits[rows], batch.target[rows])
            losses[f"task_{m}"] = each.mean()
            rank = rank + ranking_loss(confidence(logits[rows]), *self.histories[m].look_up(ids))
            found[m] = ids, each.detach()
        losses |= {"rank": self.rank_weight * rank, **output.losses}
        total = sum(losses.values(), start=losses["task"].new_zeros(()))
        yield Step(total, losses, lambda: self._remember(found))

    def _remember(self, found: Mapping[Modality, tuple[list[str], Tensor]]) -> None:
        for m, (ids, each) in found.items():
            self.histories[m].add(ids, each)


class LossHistory:
    """What each sample's loss has come to so far, by the sample's id."""

    def __init__(self) -> None:
        self.places: dict[str, int] = {}
        self.sums: Float[Tensor, " samples"] = torch.zeros(0, dtype=torch.float64)

    def add(self, ids: Sequence[str], losses: Float[Tensor, " rows"]) -> None:
        """Add a batch's losses."""
        for name in ids:
            self.places.setdefault(name, len(self.places))
        new = self.sums.new_zeros(len(self.places) - len(self.sums))
        places = torch.tensor([self.places[name] for name in ids], dtype=torch.long)
        self.sums = torch.cat([self.sums, new]).index_add(0, places, losses.detach().cpu().double())

    def look_up(self, ids: Sequence[str]) -> tuple[Float[Tensor, " rows"], Bool[Tensor, " rows"]]:
        """Give the sums scaled to [0, 1] over all samples seen so far, and which samples were seen at all."""
        places = torch.tensor([self.places.get(name, -1) for name in ids], dtype=torch.long)
        seen = places >= 0
        if not bool(seen.any()):
            return torch.zeros(len(ids)), seen
        low, high = self.sums.aminmax()
        scaled = (self.sums[places] - low) / (high - low).clamp(min=1e-12)
        return torch.where(seen, scaled, 0.0).float(), seen

    def state_dict(self) -> dict[str, Tensor]:
        """Give the sums, and the ids in their order as the bytes of a JSON list."""
        ids = json.dumps(list(self.places)).encode()
        return {"ids": torch.frombuffer(bytearray(ids), dtype=torch.uint8), "sums": self.sums}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take them back."""
        ids = json.loads(state["ids"].numpy().tobytes())
        self.places = {name: place for place, name in enumerate(ids)}
        self.sums = state["sums"].clone()


def confidence(logits: Logits) -> Float[Tensor, " batch"]:
    """Give c = logsumexp(z) / 10."""
    return logits.float().logsumexp(dim=1) / 10


def ranking_loss(
    confidences: Float[Tensor, " rows"], history: Float[Tensor, " rows"], seen: Bool[Tensor, " rows"]
) -> Float[Tensor, ""]:
    """Give R: the mean of relu(|H_i − H_j| − t (c_i − c_j)) over neighbours i, j (the last with the first).

    t = sign(H_j − H_i), so that it is 1 where i must be the more confident one. Pairs with t = 0, or with a
    sample that was not seen before, do not count; R of no pair is 0.
    """
    gap = history.roll(-1) - history
    ordered = (gap != 0) & seen & seen.roll(-1)
    if not bool(ordered.any()):
        return confidences.new_zeros(())
    lead = (confidences - confidences.roll(-1))[ordered.to(confidences.device)]
    gap = gap[ordered].to(confidences.device)
    return F.relu(gap.abs() - gap.sign() * lead).mean()


def _require_classes(name: str, task: Task, other: str) -> None:
    if not isinstance(task, SingleLabel):
        raise InputError(
            f"{name}: confidence is the energy of class logits, which a task {type(task).__name__} does not "
            f"have; take another, such as {other}"
        )
