"""Co-distillation: the completed input teaches the observed one, in one network.

Of `all_stage`, whose file has the source, the equations and what is our choice.
"""

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mmx.contracts import Batch, Logits, Model, Procedure, Step, Strategy, Task, restrict
from mmx.errors import InputError
from mmx.tasks import SingleLabel
from mmx_strategies.watched import watched


class CoDistillation(Procedure):
    """One step a batch: the completed input teaches the observed one, by (5).

    The model's own pass is the teacher's. The student's is the same fusion over the tokens of what is there,
    once the strategy has hidden some. f is what enters the fusion's head, where there is one head that all
    goes through at once; for tasks without classes (3) has the squared error of the logits.

    It takes any strategy without prompts: what stands in is the teacher's alone. `weight`: of the
    second term of (3), `features` of the first; `temperature`: T.
    """

    def __init__(
        self, task: Task, weight: float = 1.0, features: float = 1.0, temperature: float = 2.0
    ) -> None:
        if weight < 0 or features < 0 or temperature <= 0:
            raise InputError(
                f"procedure 'co_distillation': weight {weight} and features {features} must not be negative, "
                f"and temperature {temperature} must be above 0"
            )
        self.task = task
        self.weight, self.features, self.temperature = weight, features, temperature

    def check(self, model: Model) -> None:
        """Refuse prompts, which stand in inside the encoders."""
        own = type(model.strategy)
        if own.prompts is not Strategy.prompts:
            raise InputError(
                f"procedure 'co_distillation': strategy {own.__name__} gives prompts, which what is there "
                "has met in the encoders; take 'all_stage', or another that only fills"
            )

    def steps(self, model: Model, batch: Batch) -> Iterator[Step]:
        """Yield the one step."""
        head = getattr(model.fusion, "head", None)
        with watched(head) as entered:
            output = model(batch)
            logits = model.fusion(restrict(output.tokens, output.presence))
        losses = {
            "task_completed": self.task.loss(output.logits, batch.target),
            "task_observed": self.task.loss(logits, batch.target),
            "distillation": self.weight * self._distance(logits, output.logits.detach()),
        }
        if self.features and len(entered) == 2:
            losses["features"] = self.features * F.mse_loss(entered[1], entered[0].detach())
        losses |= output.losses
        yield Step(sum(losses.values(), start=losses["task_completed"].new_zeros(())), losses)

    def _distance(self, student: Logits, teacher: Logits) -> Float[Tensor, ""]:
        if not isinstance(self.task, SingleLabel):
            return F.mse_loss(student, teacher)
        own, taught = ((z.float() / self.temperature).log_softmax(dim=1) for z in (student, teacher))
        return self.temperature**2 * F.kl_div(own, taught, reduction="batchmean", log_target=True)
