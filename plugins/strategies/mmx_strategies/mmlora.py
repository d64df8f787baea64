"""MMLoRA, UME and UMT: uni-modal encoders first, then a little adaptation to each other, none, or a teacher.

Source: Du et al., "MMLoRA" (arXiv 2310.05193), and for UME and UMT Du et al., "On Uni-Modal Feature Learning
in Supervised Multi-Modal Learning" (ICML 2023, arXiv 2305.01233). Only abstracts, public reviews and other
people's code could be read. Why: joint training of late fusion learns too little of what a modality says
alone, and can be worse than the better one of them. All three are phases of a sweep; UMT needs the procedure
below too. MMLoRA is no method for missing modalities as published.

Stage 1 of all three fine-tunes each encoder with a head of its own on its own modality, and keeps its best
validation epoch. A phase that sees one modality touches nothing of the others, so that their order is free:

    strategy: skip
    fusion: mean_logits                     # a head for each modality, mean over those that are there
    training:
      phases:
        - {modalities: [image], adapter: full, epochs: 20}
        - {modalities: [audio], adapter: full, epochs: 20}

UME, the mean of their logits with no joint training, is these two phases and nothing after them.

MMLoRA's stage 2 freezes what stage 1 left, adds low-rank matrices in one chosen or in all modalities, and
trains them with the heads on the loss of the mean of the logits. One of these comes third:

        - {adapter: lora, learning_rate: 1.0e-3}                               # in all modalities
        - {adapter: {image: lora, audio: frozen}, learning_rate: 1.0e-3}       # in a chosen one
        - {adapter: frozen}                                                    # the control: heads alone

Certain: the two stages, the freezing, one or all modalities; that where LoRA goes and its rank matter. Ours,
since no code and no settings were found: late fusion by the mean of logits, with stage 1's heads, which go on
training [choice]; an absent modality has no part in the mean [choice]; ranks 1 to 16 (an axis
`training.phases.2.adapter.rank`), α/r, the maps that LoRA adapts and the optimiser, all the sweep's [choice];
convolutions by peft, that is by a rank-r factor of the weight flattened to (out, in·k·k) [choice]; batch norm
of a frozen encoder keeps stage 1's statistics [choice]. Stage 2 starts as UME exactly, since weights are
handed over and B = 0; so what it gains over UME, and over the control, is the adaptation's.

UMT trains everything jointly, while the frozen uni-modal encoders of stage 1 guide the student's:

        - {adapter: full, procedure: {name: distillation, weight: 10.0}, restart: true}

With `restart` the student starts from the pretrained encoders, and stage 1 only teaches; without, it goes on
from its teacher, from which it then only must not stray [choice: either can be run]. Not found: how the
authors choose between UME and UMT, and all their numbers.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mmx.contracts import Batch, Modality, Model, Procedure, Step, Task, TokenMap, first_token
from mmx.errors import InputError


class Distillation(Procedure):
    """UMT: one joint step a batch, on the task's and the strategy's losses plus what keeps the student's
    summary tokens near those of the frozen model that the phase before left.

    loss = task + `weight` · Σ_m MSE(h_m of the student, h_m of the teacher), each mean over features and over
    the rows that have m. A row counts where m is there and its summary token valid in both models: what a
    strategy hides without putting anything in its place is left out, and what stands in for it is compared.
    The weight 10 is that of BalanceBenchmark's re-implementation; the paper's was not found.
    """

    def __init__(
        self, modalities: Sequence[Modality], task: Task, teacher: Model | None = None, weight: float = 10.0
    ) -> None:
        if teacher is None:
            raise InputError(
                "procedure 'distillation' learns from the phase before, and there is none: put uni-modal "
                "phases in front of it (training.phases; see sweeps/mmlora.yaml)"
            )
        if weight < 0:
            raise InputError(f"procedure 'distillation': weight {weight} is below 0")
        if isinstance(teacher, nn.Module):
            teacher.eval()
        self.modalities = tuple(modalities)
        self.task = task
        self.teacher = teacher
        self.weight = weight

    def steps(self, model: Model, batch: Batch) -> Iterator[Step]:
        """Yield the one step."""
        output = model(batch)
        with torch.no_grad():
            goal = self.teacher(batch).tokens
        losses = {
            "task": self.task.loss(output.logits, batch.target),
            "distillation": self.weight * self._distance(output.tokens, goal, batch),
            **output.losses,
        }
        yield Step(sum(losses.values(), start=losses["task"].new_zeros(())), losses)

    def _distance(self, tokens: TokenMap, goal: TokenMap, batch: Batch) -> Float[Tensor, ""]:
        """Sum the mean squared errors of the modalities; one that no row has adds nothing."""
        total = batch.target.new_zeros((), dtype=torch.float32)
        for m in self.modalities:
            (own, valid), (taught, known) = first_token(tokens[m]), first_token(goal[m])
            rows = batch.presence[m] & valid & known
            if bool(rows.any()):
                total = total + F.mse_loss(own[rows].float(), taught[rows].float())
        return total
