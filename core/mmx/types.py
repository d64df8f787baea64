"""The values that travel a trial's line, each named once with its shape."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

Modality = str
Pattern = frozenset[Modality]
"""An availability pattern: the modalities that are present."""

Presence = Mapping[Modality, Bool[Tensor, " batch"]]
"""For each modality, whether each row has it."""


class Tokens(NamedTuple):
    """What an encoder hands on: a sequence of vectors a row.

    The first token (after the outputs of any prompts) sums its modality up: the class token, or a pooled
    vector where the architecture has none. Fusions that need one vector a modality read that one.
    """

    values: Float[Tensor, "batch tokens width"]
    valid: Bool[Tensor, "batch tokens"]
    """False for padding, and for every token of a row whose modality is absent."""


TokenMap = Mapping[Modality, Tokens]
Logits = Float[Tensor, "batch out"]


@dataclass(frozen=True)
class Prompts:
    """Learned tokens for the layers of a transformer, one set a row.

    `level="input"`: layer l's prompts are put in front of the sequence before block l and stay there.
    `level="attention"`: the first half are extra keys, the second half extra values of layer l's attention.
    `read_only`: no other token, and no other prompt, attends to an input-level prompt.
    """

    values: Float[Tensor, "batch layers prompts width"]
    level: Literal["input", "attention"] = "input"
    read_only: bool = False


@dataclass(frozen=True)
class Begun:
    """Inputs that were encoded before, as far as nothing trains; rows are taken from it as from a tensor."""

    packed: Float[Tensor, "batch tokens width_and_valid"]
    """Tokens, with one more value behind each: 1 where it is valid, else 0."""
    stage: int | None
    """Before which stage of the encoder they stand (see `Encoder.advance`); None: they are its tokens."""

    @classmethod
    def of(cls, tokens: Tokens, stage: int | None) -> "Begun":
        """Pack tokens."""
        valid = tokens.valid[:, :, None].to(tokens.values)
        return cls(torch.cat([tokens.values, valid], dim=2), stage)

    @property
    def tokens(self) -> Tokens:
        """Unpack them."""
        return Tokens(self.packed[:, :, :-1].contiguous(), self.packed[:, :, -1] > 0)

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.packed.device

    def map(self, change: Callable[[Tensor], Tensor]) -> "Begun":
        """Change the tensor."""
        return replace(self, packed=change(self.packed))

    def to(self, device: torch.device, non_blocking: bool = False) -> "Begun":
        """Move them."""
        return self.map(lambda packed: packed.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Begun":
        """Give them in memory that a GPU reads by itself."""
        return self.map(Tensor.pin_memory)

    def __getitem__(self, rows: Tensor | slice) -> "Begun":
        """Take rows."""
        return self.map(lambda packed: packed[rows])


Input = Tensor | Begun


@dataclass(frozen=True)
class Batch:
    """Some samples of one split. Rows of an absent modality hold zeros that nobody reads."""

    inputs: Mapping[Modality, Input]
    presence: Presence
    target: Tensor
    ids: Sequence[str]

    def take(self, rows: Tensor) -> "Batch":
        """Take some rows, by their numbers or as a mask."""
        places = rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows
        return Batch(
            {m: raw[places] for m, raw in self.inputs.items()},
            {m: there[places] for m, there in self.presence.items()},
            self.target[places],
            [self.ids[place] for place in places.tolist()],
        )

    def pin_memory(self) -> "Batch":
        """Give the batch in memory that a GPU reads by itself; torch's loader asks for it, in a thread."""
        inputs = {m: values.pin_memory() for m, values in self.inputs.items()}
        presence = {m: there.pin_memory() for m, there in self.presence.items()}
        return Batch(inputs, presence, self.target.pin_memory(), self.ids)


def first_token(tokens: Tokens) -> tuple[Float[Tensor, "batch width"], Bool[Tensor, " batch"]]:
    """Give each row's summary token and whether it is valid; zeros where the modality is absent."""
    values, valid = tokens
    if values.shape[1] == 0:
        return values.sum(dim=1), valid.any(dim=1)
    return torch.where(valid[:, :1], values[:, 0], 0.0), valid[:, 0]


def restrict(tokens: TokenMap, presence: Presence) -> dict[Modality, Tokens]:
    """Take the tokens of absent modalities away: zeros, none valid."""
    result = {}
    for m, (values, valid) in tokens.items():
        kept = valid & presence[m][:, None]
        result[m] = Tokens(torch.where(kept[:, :, None], values, 0.0), kept)
    return result


def head_logits(head: nn.Module, tokens: Tokens, out: int) -> Logits:
    """Give a head's logits (batch, out) of the summary tokens; zeros where there is no valid one.

    Where no row has the modality the head is not touched: it gets no gradient, and no optimiser moves it.
    """
    values, valid = first_token(tokens)
    if tokens.values.shape[1] == 0:
        return values.new_zeros(len(values), out)
    return torch.where(valid[:, None], head(values), 0.0)
