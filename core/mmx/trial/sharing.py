"""A model whose encoders' work several processes divide among themselves."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from mmx.contracts import Input, Modality, Presence, Tokens
from mmx.model import MultimodalModel

LEAST = 2
"""Rows for each process that make it worth sharing; batch norm has no variance over one."""


@runtime_checkable
class Group(Protocol):
    """What the processes can do together (`mmx.trial.together.Together`)."""

    rank: int
    size: int
    device: torch.device

    def part(self, rows: Tensor) -> Tensor: ...
    def join(self, part: Tensor, count: int) -> Tensor: ...
    def reduce(self, tensor: Tensor, how: str) -> Tensor: ...


class Draws:
    """Random numbers that a process draws by itself, between others that all processes draw alike."""

    def __init__(self, rank: int, device: torch.device) -> None:
        self.device = device
        self.before = self._states()
        if rank:  # where nothing is drawn, the leader's are those of one process
            self._seed(rank)
        self.start = self._states()

    def drew(self) -> bool:
        """Tell whether any was drawn."""
        return not all(map(torch.equal, self.start, self._states()))

    def end(self, drew: bool) -> None:
        """Go back to what all draw alike, a step on where any process `drew`."""
        if drew:
            self._seed("next")
            return
        torch.set_rng_state(self.before[0])
        if len(self.before) > 1:
            torch.cuda.set_rng_state(self.before[1], self.device)

    def _states(self) -> list[Tensor]:
        gpu = [torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else []
        return [torch.get_rng_state(), *gpu]

    def _seed(self, purpose: object) -> None:
        known = b"".join(state.numpy().tobytes() for state in self.before) + str(purpose).encode()
        torch.manual_seed(int.from_bytes(hashlib.blake2b(known, digest_size=7).digest(), "big"))


class Joined(torch.autograd.Function):
    """Puts rows together. Backward, every process has the gradient of all of them, and takes that of its own
    times the number of processes, because gradients are averaged in the end."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, count: int, team: Group) -> Tensor:
        ctx.team = team
        return team.join(part, count)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.team.part(gradients[0]) * ctx.team.size, None, None


class Shared(MultimodalModel):
    """A model that encodes each modality's rows in parts, one a process.

    Where there are too few, every process encodes them all.
    """

    team: ClassVar[Group]

    def encode(
        self, inputs: Mapping[Modality, Input], presence: Presence, pattern: Presence
    ) -> dict[Modality, Tokens]:
        """Encode what is present."""
        rows = {m: presence[m].nonzero()[:, 0] for m in self.modalities}
        shared = [m for m in self.modalities if len(rows[m]) >= LEAST * self.team.size]
        found = self._encode_parts(shared, rows, inputs, presence, pattern) if shared else {}
        for m in self.modalities:
            if m not in found:
                found[m] = self._encode_modality(m, inputs[m], presence[m], pattern)
        return {m: found[m] for m in self.modalities}

    def _encode_parts(
        self,
        shared: Sequence[Modality],
        rows: Mapping[Modality, Tensor],
        inputs: Mapping[Modality, Input],
        presence: Presence,
        pattern: Presence,
    ) -> dict[Modality, Tokens]:
        team, own = self.team, {}
        draws = Draws(team.rank, team.device)
        for m in shared:
            mine = team.part(rows[m])
            here = {n: there[mine] for n, there in pattern.items()}
            own[m] = self._encode_modality(m, inputs[m][mine], presence[m][mine], here)
        drew = draws.drew()
        facts = [[values.shape[1], values.requires_grad, drew] for values, _ in own.values()]
        agreed = team.reduce(torch.tensor(facts, dtype=torch.int32, device=team.device), "max").tolist()
        draws.end(bool(agreed[0][2]))
        return {
            m: self._put_together(own[m], rows[m], len(presence[m]), longest, bool(learns))
            for m, (longest, learns, _) in zip(shared, agreed, strict=True)
        }

    def _put_together(self, own: Tokens, rows: Tensor, count: int, longest: int, learns: bool) -> Tokens:
        """Put parts together whose numbers of tokens may differ, and of which some may need no gradient."""
        packed = torch.cat([own.values, own.valid[:, :, None].to(own.values.dtype)], dim=2)
        packed = F.pad(packed, (0, 0, 0, longest - packed.shape[1]))
        if learns and not packed.requires_grad:  # the graph behind must be the same in all processes
            packed.requires_grad_()
        whole = Joined.apply(packed, len(rows), self.team)
        if len(rows) < count:
            whole = whole.new_zeros(count, *whole.shape[1:]).index_copy(0, rows, whole)
        return Tokens(whole[:, :, :-1].contiguous(), whole[:, :, -1].detach() > 0)
