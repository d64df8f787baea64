"""OGM-GE: the encoder of the modality that leads learns more slowly, and all encoders with noise.

Source: Peng et al., "Balanced Multimodal Learning via On-the-fly Gradient Modulation" (CVPR 2022), from its
official code. Facts: s_m sums, over the batch, the probability that modality m's own logits (its columns of
the head and an even share of the bias) give the target; ρ of two modalities is the ratio of their s; k_m =
1 − tanh(α ρ_m) where ρ_m > 1, else 1; k_m scales the gradients of m's convolution weights, and generalisation
enhancement (GE) adds N(0, std²) noise to those of every encoder; α 0.1 in one published command and 0.3 in
another; epochs 0 to 50 of 100.

Of the noise's std there are two official versions. Ours is the later, marked there as a bug fix: that of the
gradient before it is scaled, so that an encoder that is slowed down gets relatively more noise.

Ours: for more than two modalities the ratio is to the mean of the others (the port in MLA's code has their
sum, by which three equal modalities have ρ = 1/2) [choice]; s is a mean over the rows that have the modality
instead of a sum, which is the same where all have it [choice]; every encoder parameter with two axes or more
counts, since transformers hardly have convolutions: LoRA's factors too, and class and position embeddings
[choice]. Optimiser and schedule are the sweep's, not the paper's SGD [choice]; mind that AdamW undoes a
constant k_m, since it scales each coordinate by itself: what it leaves is how k_m changes over time, and the
noise.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch

from mmx.contracts import Batch, Modality, Model, Procedure, Step, Task, TokenMap, first_token
from mmx.errors import InputError
from mmx.tasks import SingleLabel


class OgmGe(Procedure):
    """One joint step a batch, on the task's loss plus the strategy's, with gradients modulated.

    A modality that no row has, or whose encoder got no gradient, is left alone; so is everything in a batch
    where fewer than two modalities are there. A row has a modality if the batch says so and its summary token
    is valid; what a strategy puts in the place of a modality that it has hidden itself counts as there.

    `alpha`: how strongly the leader is slowed down (0: not at all). `noise`: whether GE is on. `until`: the
    epoch, counted from 0, from which on nothing is modulated and no noise added (None: never; the paper's is
    51).
    """

    def __init__(
        self,
        modalities: Sequence[Modality],
        task: Task,
        alpha: float = 0.3,
        noise: bool = True,
        until: int | None = None,
    ) -> None:
        if not isinstance(task, SingleLabel):
            raise InputError(
                "procedure 'ogm_ge': it compares probabilities of the target class, which a task "
                f"{type(task).__name__} does not have; take another procedure, such as 'joint'"
            )
        if alpha < 0:
            raise InputError(f"procedure 'ogm_ge': alpha {alpha} must not be negative")
        self.modalities = tuple(modalities)
        self.task = task
        self.alpha = alpha
        self.noise = noise
        self.until = until
        self.epoch = 0

    def check(self, model: Model) -> None:
        """Refuse a fusion that cannot say what each modality alone would."""
        if not model.fusion.tells_modalities_apart:
            raise InputError(
                f"procedure 'ogm_ge': fusion {type(model.fusion).__name__} has no logits of single "
                "modalities; take 'concat' without hidden layer, 'mean_logits' or 'entropy'"
            )

    def epoch_started(self, epoch: int, batches: int) -> None:
        """Note the epoch."""
        del batches
        self.epoch = epoch

    def steps(self, model: Model, batch: Batch) -> Iterator[Step]:
        """Yield the one step."""
        output = model(batch)
        losses = {"task": self.task.loss(output.logits, batch.target), **output.losses}
        total = sum(losses.values(), start=losses["task"].new_zeros(()))
        over = self.until is not None and self.epoch >= self.until
        yield Step(total, losses, None if over else lambda: self._modulate(model, output.tokens, batch))

    @torch.no_grad()
    def scores(self, model: Model, tokens: TokenMap, batch: Batch) -> dict[Modality, float]:
        """Give s_m of the modalities that any row has and that the fusion reads."""
        logits = model.fusion.modality_logits(tokens)
        found = {}
        for m in (m for m in self.modalities if m in logits):
            there = batch.presence[m] & first_token(tokens[m])[1]
            if bool(there.any()):
                chances = logits[m][there].float().softmax(dim=1)
                found[m] = float(chances.gather(1, batch.target[there][:, None]).mean())
        return found

    @torch.no_grad()
    def _modulate(self, model: Model, tokens: TokenMap, batch: Batch) -> None:
        """Scale the encoders' gradients, and add noise to them."""
        for m, k in coefficients(self.scores(model, tokens, batch), self.alpha).items():
            for parameter in model.encoders[m].parameters():
                gradient = parameter.grad
                if gradient is None or gradient.ndim < 2:
                    continue
                spread = gradient.std() if self.noise and gradient.numel() > 1 else None
                gradient.mul_(k)
                if spread is not None:
                    gradient.add_(torch.randn_like(gradient) * spread)


def coefficients(scores: Mapping[Modality, float], alpha: float) -> dict[Modality, float]:
    """Give k_m of each modality that has a score; none where there is nothing to compare with."""
    found = {}
    for m, own in scores.items():
        others = [s for n, s in scores.items() if n != m]
        if others:
            ratio = own / max(sum(others) / len(others), 1e-12)
            found[m] = 1 - math.tanh(alpha * ratio) if ratio > 1 else 1.0
    return found
