"""Scales and shifts tokens by vectors that a network makes of the pattern of what is present."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from mmx.contracts import Modality, Presence, TokenMap, Tokens
from mmx.errors import InputError
from mmx.protocols import derive_seed

WORDS = 64
"""Width of an embedding of a pattern, but for the user's own."""


class HyperNetwork(nn.Module):
    """Give each token x of modality m (1 + γ_m) x + β_m, both from a perceptron of the pattern's embedding.

    γ and β are zero at the start. `table` has a fixed embedding for each pattern, whose number has bit i
    where the i-th modality is there; None: they are learned.
    """

    table: Tensor

    def __init__(
        self,
        modalities: Sequence[Modality],
        width: int,
        table: Float[Tensor, "patterns words"] | None,
        hidden: int = 64,
    ) -> None:
        super().__init__()
        self.modalities = tuple(modalities)
        if table is None:
            self.table = nn.Parameter(torch.randn(2 ** len(modalities), WORDS))
        else:
            self.register_buffer("table", table)
        self.inner = nn.Linear(self.table.shape[1], hidden)
        self.outer = nn.Linear(hidden, 2 * width * len(modalities))
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, tokens: TokenMap, presence: Presence) -> dict[Modality, Tokens]:
        """Scale and shift every valid token."""
        code = torch.stack([presence[m].long() << i for i, m in enumerate(self.modalities)]).sum(dim=0)
        both = self.outer(F.gelu(self.inner(self.table[code]))).chunk(2 * len(self.modalities), dim=1)
        found = {}
        for i, m in enumerate(self.modalities):
            values, valid = tokens[m]
            moved = values * (1 + both[2 * i][:, None]) + both[2 * i + 1][:, None]
            found[m] = Tokens(torch.where(valid[:, :, None], moved, 0.0), valid)
        return found


def pattern_embeddings(modalities: Sequence[Modality], path: str | None) -> Float[Tensor, "patterns words"]:
    """Embed what would be said of each pattern, or read vectors from a safetensors file.

    There a pattern is named by what is present, in the dataset's order: `image+audio`.
    """
    codes = range(1, 2 ** len(modalities))
    present = [[m for i, m in enumerate(modalities) if code >> i & 1] for code in codes]
    if path is not None:
        rows = _read(path, ["+".join(there) for there in present])
    else:
        rows = [_embed(sentence(modalities, there)) for there in present]
    return torch.stack([torch.zeros_like(rows[0]), *rows])


def sentence(modalities: Sequence[Modality], present: Sequence[Modality]) -> str:
    """Say who is there."""
    return ", ".join(f"{m} {'present' if m in present else 'absent'}" for m in modalities)


def _embed(text: str) -> Float[Tensor, " words"]:
    """Sum fixed random vectors of the words and of pairs of neighbours; a coordinate is about 1 in size.

    Without pairs "a present, b absent" would be "a absent, b present".
    """
    words = text.replace(",", "").split()
    parts = [*words, *map(" ".join, pairwise(words))]
    known = [torch.Generator().manual_seed(derive_seed("all_stage", part)) for part in parts]
    total = torch.stack([torch.randn(WORDS, generator=own) for own in known]).sum(dim=0)
    return F.normalize(total, dim=0) * WORDS**0.5


def _read(path: str, names: Sequence[str]) -> list[Float[Tensor, " words"]]:
    """Read the user's embeddings."""
    try:
        found = load_file(Path(path).expanduser())
    except (OSError, SafetensorError) as error:
        raise InputError(f"strategy 'all_stage': embeddings '{path}' cannot be read: {error}") from error
    lacking = [name for name in names if name not in found]
    if lacking:
        raise InputError(
            f"strategy 'all_stage': embeddings '{path}' has no vector '{lacking[0]}'; it needs {list(names)}"
        )
    if any(found[name].shape != found[names[0]].shape or found[name].ndim != 1 for name in names):
        raise InputError(f"strategy 'all_stage': embeddings '{path}' must be vectors of one length")
    return [found[name].float() for name in names]
