"""Joint training of all modalities."""

from collections.abc import Iterator

from mmx.contracts import Batch, Model, Procedure, Step, Task


class Joint(Procedure):
    """One step a batch on the task's loss plus the strategy's losses."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def steps(self, model: Model, batch: Batch) -> Iterator[Step]:
        """Yield the one step."""
        output = model(batch)
        losses = {"task": self.task.loss(output.logits, batch.target), **output.losses}
        yield Step(sum(losses.values(), start=losses["task"].new_zeros(())), losses)
