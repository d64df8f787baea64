"""MLA: modalities take turns through one shared head, whose gradient is projected; entropy weighs the logits.

Source: Zhang et al., "Multimodal Representation Learning by Alternating Unimodal Adaptation" (MLA, CVPR
2024). The body of the paper was not available: this is reconstructed from the official code, public reviews
and the framework figure. Facts: one step a modality on its own loss, with the weights that the step before
left; private encoders, one linear head; the projection of the head's gradient is that of OWM (Zeng et al.,
2019); at test time logits are mixed by a softmax over minus the entropies.

Read this before calling a result MLA's:

- The released code's projection never runs. It acts on a parameter called `module.weight`, and that of the
  bare linear layer that it is given is called `weight`. What the released code gives is alternating training
  and the shared head alone: `projection: off`.
- The textbook projection, never reset, freezes the head within some epochs: the trace of P falls towards
  zero. Hence `reset: epoch` by default [choice]; `never` is what is reported of the paper.
- The released entropy is over the batch, one weight a modality and batch: `axis: batch`. A row's answer then
  depends on the rows beside it; ours is over the classes of each row.

Ours too: an absent modality has no forward pass, no loss, and no part in a mean or a weight, where the
release fills zeros in and goes on [choice]. Optimiser and schedule are the sweep's, not the paper's SGD
[choice]: AdamW scales each coordinate by itself, remembers earlier gradients and decays weights, so that its
updates of the head are projected only about.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

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
    Tokens,
    first_token,
    head_logits,
)
from mmx.errors import InputError
from mmx.tasks import SingleLabel


class GradientProjection:
    """P, which takes from a gradient of the head what would change its answers to inputs seen before.

    With h a mean input of the head and k = P h: P ← P − k kᵀ / (α + hᵀ k), from P = I; ∇W ← ∇W Pᵀ; α falls
    from 0.1 to 0.01 through each epoch. `update="after"`: a step is projected before its own mean enters P,
    which is what the purpose asks for [choice]. "before" is the released order of calls: the mean enters
    first, so that a step loses its own mean direction too; the first step of all does neither.
    """

    def __init__(self, update: Literal["after", "before"] = "after") -> None:
        self.update = update
        self.reset()

    def reset(self) -> None:
        """Forget all inputs: P = I, and the next step is the first one [choice]."""
        self.matrix: Float[Tensor, "width width"] | None = None
        self.steps = 0

    def apply(self, weight: Tensor, mean: Float[Tensor, " width"], progress: float) -> None:
        """Do what one step of the head asks for, with its gradient in `weight.grad`."""
        with torch.autocast(weight.device.type, enabled=False):  # P is a matter of small differences
            if self.update == "after":
                self.project(weight)
                self.learn(mean, progress)
            elif self.steps:
                self.learn(mean, progress)
                self.project(weight)
        self.steps += 1

    @torch.no_grad()
    def learn(self, mean: Float[Tensor, " width"], progress: float) -> None:
        """Let a mean input of the head enter P; `progress` through the epoch is from 0 to 1."""
        h = mean.float()
        matrix = self._matrix(h)
        k = matrix @ h
        self.matrix = matrix - torch.outer(k, k) / (0.1 ** (1 + progress) + h @ k)

    @torch.no_grad()
    def project(self, weight: Tensor) -> None:
        """Project the gradient of the head's weight, in place."""
        if weight.grad is not None:
            weight.grad.copy_(weight.grad.float() @ self._matrix(weight).T)

    def _matrix(self, like: Tensor) -> Float[Tensor, "width width"]:
        """Give P, made where it is first needed."""
        if self.matrix is None:
            self.matrix = torch.eye(like.shape[-1], device=like.device, dtype=torch.float32)
        self.matrix = self.matrix.to(like.device)  # one from a checkpoint lies on the CPU
        return self.matrix


class Alternating(Procedure):
    """One step a modality, on the rows of the batch that have it, as if it were the only one.

    The loss is the task's plus the strategy's, which meets each modality alone only: nothing is left to hide
    or to compare, and prompts by pattern train for these patterns only. A modality that no row of the batch
    has takes no step.

    `order`: whose turn it is (default: the dataset's order; released: audio, visual, text). `projection`:
    "textbook" needs a fusion with one shared head; "off" (or False, as YAML reads off) is what the released
    code does. P is one for all modalities; its means are of the batch's rows, as released. `reset`: when P
    starts anew, "epoch" [choice] or "never". `update`: see `GradientProjection`.
    """

    def __init__(
        self,
        modalities: Sequence[Modality],
        task: Task,
        order: Sequence[str] | None = None,
        projection: Literal["off", "textbook", False] = "textbook",
        reset: Literal["epoch", "never"] = "epoch",
        update: Literal["after", "before"] = "after",
    ) -> None:
        self.task = task
        self.order = tuple(modalities if order is None else order)
        if sorted(map(str, self.order)) != sorted(modalities):
            raise InputError(
                f"procedure 'alternating': order {list(self.order)} must name each of {list(modalities)} "
                "exactly once; leave it out for the dataset's order"
            )
        self.projection = GradientProjection(update) if projection == "textbook" else None
        self.reset = reset
        self.batch, self.batches = 0, 1

    def check(self, model: Model) -> None:
        """Refuse adapters by pattern, and to project where there is no shared head to project for."""
        if any(adapter.by_pattern for adapter in model.adapters.values()) and len(self.order) > 1:
            raise InputError(
                "procedure 'alternating' shows each modality alone, so rows are not of the one pattern that "
                "an adapter by pattern trains for; take procedure 'joint'"
            )
        if self.projection is not None:
            _head(model)

    def epoch_started(self, epoch: int, batches: int) -> None:
        """Count batches from zero, and forget what P has seen if so asked."""
        del epoch
        self.batch, self.batches = 0, batches
        if self.projection is not None and self.reset == "epoch":
            self.projection.reset()

    def state_dict(self) -> dict[str, Tensor]:
        """Give P and its count of steps, where they outlive an epoch."""
        known = self.projection
        if known is None or self.reset == "epoch":
            return {}
        return {"steps": torch.tensor(known.steps)} | (
            {} if known.matrix is None else {"matrix": known.matrix}
        )

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take them back."""
        if self.projection is not None and state:
            self.projection.matrix, self.projection.steps = state.get("matrix"), int(state["steps"])

    def steps(self, model: Model, batch: Batch) -> Iterator[Step]:
        """Yield a step for each modality in turn; the next forward pass sees what the last step changed."""
        progress = min(1.0, self.batch / self.batches)
        self.batch += 1
        for m in self.order:
            if not bool(batch.presence[m].any()):
                continue
            alone = _alone(batch, m)
            output = model(alone)
            losses = {f"task_{m}": self.task.loss(output.logits, alone.target), **output.losses}
            total = sum(losses.values(), start=losses[f"task_{m}"].new_zeros(()))
            yield Step(total, losses, self._after_backward(model, output.tokens[m], progress))

    def _after_backward(self, model: Model, tokens: Tokens, progress: float) -> Callable[[], None] | None:
        projection = self.projection
        if projection is None:
            return None
        values, valid = first_token(tokens)
        mean = values.detach().float().sum(dim=0) / valid.sum().clamp(min=1)
        return lambda: projection.apply(_head(model).weight, mean, progress)


class EntropyFusion(Fusion):
    """One linear head for every modality's summary token; logits mixed by how sure each is.

    z_m = head(h_m), e_m the entropy of softmax(z_m), λ the softmax of −e_m over the modalities whose summary
    token is valid: Σ λ_m z_m. It is logits that are mixed, not probabilities, as released. A row that has no
    valid modality gets zeros. In training other than `alternating`, where λ = 1, gradient passes λ [choice].

    `axis="batch"` is only for comparing with the release: softmax over the rows of the batch that have the
    modality, entropy summed over rows and classes, so that a row's answer depends on the others; λ is
    normalised over the modalities that the row has [choice].
    """

    def __init__(
        self, modalities: Sequence[str], width: int, task: Task, axis: Literal["sample", "batch"] = "sample"
    ) -> None:
        super().__init__()
        if not isinstance(task, SingleLabel):
            told = f"which a task {type(task).__name__} does not have; take fusion 'mean_logits' instead"
            raise InputError(f"fusion 'entropy': entropy is of class probabilities, {told}")
        self.modalities = tuple(modalities)
        self.head = nn.Linear(width, task.out)
        self.out = task.out
        self.axis = axis
        self.tells_modalities_apart = True

    def shared_head(self) -> nn.Linear | None:
        """Give the head; None where an adapter has put something else in its place."""
        return self.head if isinstance(self.head, nn.Linear) else None

    def modality_logits(self, tokens: TokenMap) -> Mapping[Modality, Logits]:
        """Give z_m."""
        return {m: head_logits(self.head, tokens[m], self.out) for m in self.modalities}

    def weights(self, tokens: TokenMap) -> dict[Modality, Float[Tensor, " batch"]]:
        """Give λ_m of each row; zero where the modality is absent."""
        return dict(zip(self.modalities, self._weigh(self.modality_logits(tokens), tokens), strict=True))

    def forward(self, tokens: TokenMap) -> Logits:
        """Fuse."""
        logits = self.modality_logits(tokens)
        return (self._weigh(logits, tokens)[:, :, None] * torch.stack(list(logits.values()))).sum(dim=0)

    def _weigh(self, z: Mapping[Modality, Logits], tokens: TokenMap) -> Float[Tensor, "modalities batch"]:
        there = torch.stack([first_token(tokens[m])[1] for m in z])
        entropy = torch.stack([self._entropy(own, t) for own, t in zip(z.values(), there, strict=True)])
        # A large number instead of infinity: a row without any modality stays finite, gradients included.
        return torch.where(there, -entropy, -1e9).softmax(dim=0) * there

    def _entropy(self, logits: Logits, there: Bool[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        if self.axis == "batch":
            share = logits[there].log_softmax(dim=0)
            return -(share.exp() * share).sum().expand(len(logits))
        share = logits.log_softmax(dim=1)
        return -(share.exp() * share).sum(dim=1)


def _head(model: Model) -> nn.Linear:
    """Give the model's shared head (InputError where there is none that trains)."""
    head = model.fusion.shared_head()
    if head is None or not head.weight.requires_grad:
        raise InputError(
            "procedure 'alternating': the gradient projection needs a fusion with one shared head that "
            f"trains, such as 'entropy', or projection: 'off'; {type(model.fusion).__name__} has none"
        )
    return head


def _alone(batch: Batch, m: Modality) -> Batch:
    """Take the rows that have a modality, as if they had nothing else."""
    there = batch.presence[m]
    presence = {n: there if n == m else torch.zeros_like(there) for n in batch.presence}
    return replace(batch, presence=presence).take(there)
