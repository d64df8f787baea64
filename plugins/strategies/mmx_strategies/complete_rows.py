"""Keeps the complete rows that came by last, for a procedure that has a batch of them at every step."""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from mmx.contracts import Batch, Begun, Input, Modality


class Pairs:
    """The complete rows that came by last, a certain number of them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.inputs: dict[Modality, Input] = {}
        self.target: Tensor | None = None

    def add(self, rows: Batch) -> None:
        """Take new ones in, and forget the oldest."""
        known, target = self.inputs, self.target
        if target is None:
            self.inputs, self.target = dict(rows.inputs), rows.target
        else:
            here = rows.target.device
            self.inputs = {m: _join(known[m].to(here), new) for m, new in rows.inputs.items()}
            self.target = torch.cat([target.to(here), rows.target])
        self.inputs = {m: kept[-self.size :] for m, kept in self.inputs.items()}
        self.target = self.target[-self.size :]

    def batch(self, like: Batch) -> Batch | None:
        """Give all of them, on the device of a batch; None where there are none."""
        if self.target is None:
            return None
        here, count = like.target.device, len(self.target)
        there = {m: torch.ones(count, dtype=torch.bool, device=here) for m in like.presence}
        inputs = {m: kept.to(here) for m, kept in self.inputs.items()}
        return Batch(inputs, there, self.target.to(here), [str(i) for i in range(count)])

    def state_dict(self) -> dict[str, Tensor]:
        """Give them as tensors; what was encoded before has its stage beside it, -1 for none."""
        state = {} if self.target is None else {"target": self.target}
        for m, kept in self.inputs.items():
            if isinstance(kept, Begun):
                stage = torch.tensor(-1 if kept.stage is None else kept.stage)
                state |= {f"begun.{m}": kept.packed, f"stage.{m}": stage}
            else:
                state[f"input.{m}"] = kept
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take them back."""
        self.target, self.inputs = state.get("target"), {}
        for name, tensor in state.items():
            kind, _, m = name.partition(".")
            if kind == "input":
                self.inputs[m] = tensor
            elif kind == "begun":
                stage = int(state[f"stage.{m}"])
                self.inputs[m] = Begun(tensor, None if stage < 0 else stage)


def _join(first: Input, second: Input) -> Input:
    """Put rows behind others."""
    if isinstance(first, Begun) and isinstance(second, Begun):
        return Begun(torch.cat([first.packed, second.packed]), first.stage)
    return torch.cat([cast(Tensor, first), cast(Tensor, second)])
