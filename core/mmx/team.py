"""The processes that train one trial together, as the training loop sees them."""

from collections.abc import Callable, Iterator
from typing import TypeVar

from torch import Tensor, nn

from mmx.contracts import Batch, Presence
from mmx.data import Split
from mmx.model import MultimodalModel

__all__ = ["ALONE", "Team"]

T = TypeVar("T")


class Team:
    """The processes of a trial, as one of them sees them. This one is alone, and nothing is divided."""

    size = 1
    leads = True
    """Whether this is the process that decides, and alone validates, writes and tells others."""

    def share(self, model: MultimodalModel) -> MultimodalModel:
        """Give a view of a model (the same parameters, the same mode) whose encoders' work is divided."""
        return model

    def batches(
        self, split: Split, order: Tensor, size: int, presence: Presence, workers: int = 0
    ) -> Iterator[Batch]:
        """Give the global batches of an order of rows."""
        return split.batches(order, size, presence, workers)

    def decide(self, choose: Callable[[], T]) -> T:
        """Let the leader choose, and tell the others: plain values and tensors."""
        return choose()

    def pool_gradients(self, model: nn.Module) -> None:
        """Make what lies in `.grad` the gradients of the whole batch."""

    def spread(self, model: nn.Module) -> None:
        """Set all parameters and buffers to the leader's."""

    def settle(self, model: MultimodalModel) -> None:
        """Set what training changes to one state: buffers of floating point (statistics of batch norm) are
        averaged, all else is the leader's, so that differences in rounding cannot add up."""


ALONE = Team()
