"""The processes that train one trial together: what each does by itself, and what they put together.

Every process goes through the whole training on the same global batches and keeps the whole model. Only what
is expensive is divided: each reads its rows of a batch (where a dataset does not fit in memory) and runs each
encoder on its share of the rows that have the modality. The tokens are then put together, so that strategy,
fusion, losses and procedure see the whole batch in every process. So figures are those of one process but for
rounding, also for losses that are no means over rows (rankings within a batch, say), for procedures that take
several steps a batch, change gradients or remember samples, and for running means of strategies.

Two things within an encoder are not: batch norm takes its statistics from a process's share of the rows, and
random numbers (dropout, from torch's generators) are each process's own. What follows the encoders is not
divided, so a heavy fusion gains nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mmx.contracts import Batch, Begun, Input, Presence
from mmx.data import Split, to_device
from mmx.errors import TrialError
from mmx.model import MultimodalModel
from mmx.team import Team
from mmx.trial.sharing import Shared

BUCKET = 2**24
"""Values of gradients that are pooled at once."""
T = TypeVar("T")


class LostError(TrialError):
    """Another process of the trial is gone, or has given no sign of life for too long."""


class Together(Team):
    """Several processes between which accelerate has set up a group, each with the whole model on `device`.

    `pipes`: the leader's to all others; elsewhere the one to the leader. All processes must call the same
    methods in the same order. Each raises LostError where another process is gone.
    """

    def __init__(self, rank: int, size: int, device: torch.device, pipes: Sequence[Connection]) -> None:
        self.rank, self.size, self.device, self.pipes = rank, size, device, pipes
        self.leads = rank == 0

    def share(self, model: MultimodalModel) -> MultimodalModel:
        """Give a view; a deep copy of it is one of a copy of the model."""

        class View(Shared):
            team = self  # an attribute of the view would be one of the model too

        view = View.__new__(View)
        view.__dict__ = model.__dict__
        return view

    def batches(
        self, split: Split, order: Tensor, size: int, presence: Presence, workers: int = 0
    ) -> Iterator[Batch]:
        """Read this process's part of each batch and take the rest from the others."""
        chunks = order.split(size)
        divided = [self.part(rows) for rows in chunks if len(rows) >= self.size]
        if split._stack is not None or not divided:
            yield from split.batches(order, size, presence, workers)
            return
        parts = split.batches(torch.cat(divided), len(divided[0]), presence, workers)
        for rows in chunks:
            if len(rows) < self.size:
                yield split.batch(rows, presence)
            else:
                yield self._whole(to_device(next(parts), self.device), rows, split, presence)

    def _whole(self, part: Batch, rows: Tensor, split: Split, presence: Presence) -> Batch:
        inputs = {m: self._join_input(own, len(rows)) for m, own in part.inputs.items()}
        there = {m: presence[m][rows] for m in split.modalities}
        return Batch(inputs, there, self.join(part.target, len(rows)), [split.ids[r] for r in rows.tolist()])

    def _join_input(self, part: Input, count: int) -> Input:
        if isinstance(part, Begun):
            return part.map(lambda packed: self.join(packed, count))
        return self.join(part, count)

    def decide(self, choose: Callable[[], T]) -> T:
        """Wait for the leader for as long as it takes."""
        if not self.leads:
            with told_as_lost():
                return _unpacked(self.pipes[0].recv_bytes())
        chosen = choose()
        for pipe in self.pipes:
            with told_as_lost():
                pipe.send_bytes(_packed(chosen))
        return chosen

    def pool_gradients(self, model: nn.Module) -> None:
        """Average over the processes.

        Of what follows the encoders each has the whole gradient already; of what comes before it each has
        that of its own rows, as many times as there are processes (see `mmx.trial.sharing.Joined`).
        """
        bucket: list[nn.Parameter] = []
        filled = 0
        for parameter in (p for p in model.parameters() if p.requires_grad):
            if bucket and filled + parameter.numel() > BUCKET:
                self._pool(bucket)
                bucket, filled = [], 0
            bucket.append(parameter)
            filled += parameter.numel()
        if bucket:
            self._pool(bucket)

    def _pool(self, bucket: Sequence[nn.Parameter]) -> None:
        there = torch.tensor([float(p.grad is not None) for p in bucket], device=self.device)
        own = [p.new_zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in bucket]
        pooled = self.reduce(torch.cat([there, *own]), "mean")
        known = pooled[: len(bucket)].tolist()
        parts = pooled[len(bucket) :].split([len(gradient) for gradient in own])
        for p, found, part in zip(bucket, known, parts, strict=True):
            if found and p.grad is None:
                p.grad = torch.empty_like(p)
            if p.grad is not None:
                p.grad.copy_(part.view_as(p))

    def spread(self, model: nn.Module) -> None:
        """Send the leader's tensors out."""
        for tensor in model.state_dict().values():
            self._send(tensor)

    def settle(self, model: MultimodalModel) -> None:
        """Average some buffers, and send the rest out."""
        buffers = {name for name, _ in model.named_buffers()}
        for name, tensor in model.trained_state().items():
            if name in buffers and tensor.is_floating_point():
                tensor.copy_(self.reduce(tensor, "mean"))
            else:
                self._send(tensor)

    def _send(self, tensor: Tensor) -> None:
        whole = tensor.detach().contiguous().reshape(-1)
        with told_as_lost():
            torch.distributed.broadcast(whole.view(torch.uint8), 0)  # bytes: some types cannot be sent
        tensor.detach().copy_(whole.view_as(tensor))

    def reduce(self, tensor: Tensor, how: str) -> Tensor:
        """Give the sum, mean or max over the processes."""
        from accelerate.utils import reduce  # type: ignore[import-untyped]

        with told_as_lost():
            return reduce(tensor, how)

    def part(self, rows: Tensor) -> Tensor:
        """Give this process's share of some rows, as a view."""
        return rows.tensor_split(self.size)[self.rank]

    def join(self, part: Tensor, count: int) -> Tensor:
        """Put the shares of `count` rows together."""
        whole = part.new_zeros(count, *part.shape[1:])
        self.part(whole).copy_(part)
        return self.reduce(whole, "sum")


@contextmanager
def told_as_lost() -> Iterator[None]:
    """Tell what a lost connection raises as what it means."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, EOFError, OSError) as error:
        raise LostError(f"another process of the trial is gone ({error})") from error


def _packed(value: Any) -> bytes:
    buffer = BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _unpacked(told: bytes) -> Any:
    return torch.load(BytesIO(told), map_location="cpu", weights_only=True)
