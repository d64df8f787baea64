"""The Keyword Transformer: short commands, one second of sound."""

import re
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from mmx.transformer import Block, Transformer
from mmx_encoders.sound import RATE, at_rate, cosines, exactly, magnitudes, mel_filters, padded
from mmx_encoders.transformer_encoder import TransformerEncoder
from mmx_encoders.weights import load_state, read_state

WIDTHS = {"kwt1": 64, "kwt2": 128, "kwt3": 192}
HEAD_WIDTH = 64
DEPTH = 12
COEFFICIENTS = 40
FRAMES = 98
"""Frames of 30 ms, one each 10 ms, in one second."""
PUBLISHED = {
    "q": "attention.query",
    "k": "attention.key",
    "v": "attention.value",
    "o": "attention.output",
    "fc1": "up",
    "fc2": "down",
    "ln1": "norm1",
    "ln2": "norm2",
}
"""Names within a block in files of weights, and here."""


class Kwt(TransformerEncoder):
    """Waveforms (batch, samples) in [-1, 1] to a class token and 98 tokens, one each 10 ms.

    It hears one second: shorter clips are filled up with silence, longer ones cut. `weights` is the path of a
    file, or "none"; there is no hub. Names in the file: `proj`, `cls`, `pos`, `blocks.N.{q,k,v,o,fc1,fc2,
    ln1,ln2}`; a head and tables of the front end (`head`, `fe_…`) may be in it and are left out.

    Source: Berg, O'Connor, Cruz, Keyword Transformer, Interspeech 2021; front end of its released code.
    """

    kind: ClassVar[str] = "audio"

    def __init__(
        self,
        weights: str,
        size: Literal["kwt1", "kwt2", "kwt3"] = "kwt1",
        sample_rate: int = RATE,
    ) -> None:
        super().__init__(WIDTHS[size], DEPTH)
        self.sample_rate = sample_rate
        self.register_buffer("filters", mel_filters(257, 80, 20.0, 7600.0), persistent=False)
        self.register_buffer("cosines", cosines(80, COEFFICIENTS), persistent=False)
        self.project = nn.Linear(COEFFICIENTS, self.width)
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, self.width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, FRAMES + 1, self.width))
        self.transformer = Transformer(self.width, depth=0, heads=1)
        heads = self.width // HEAD_WIDTH
        self.transformer.blocks = nn.ModuleList(PostNormBlock(self.width, heads) for _ in range(DEPTH))
        self.transformer.norm = nn.Identity()  # type: ignore[assignment]
        if weights != "none":
            load_state(self, _renamed(read_state(weights)), weights, ("head.", "fe_"))

    def class_embedding(self) -> Float[Tensor, " width"]:
        """Give the class token with its position."""
        return (self.class_token + self.positions[:, :1])[0, 0]

    def embed(self, raw: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch tokens width"]:
        """Give class token and frames, with their positions."""
        frames = self.project(self.cepstra(raw))
        return torch.cat([self.class_token.expand(len(frames), -1, -1), frames], dim=1) + self.positions

    def cepstra(self, raw: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch frames coefficients"]:
        """Give 40 mel-frequency cepstral coefficients a frame."""
        sound = padded(at_rate(raw, self.sample_rate), RATE)
        with exactly(sound.device):
            energies = magnitudes(sound, frame=480, hop=160) @ self.get_buffer("filters")
            return energies.clamp(min=1e-12).log() @ self.get_buffer("cosines")


class PostNormBlock(Block):
    """A block whose norms come after the residual; queries, keys and values have no bias."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        for name in ("query", "key", "value"):
            setattr(self.attention, name, nn.Linear(width, width, bias=False))

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        mask: Bool[Tensor, "batch queries keys"] | None = None,
        extra: Float[Tensor, "batch prompts width"] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        """Apply the block."""
        x = self.norm1(x + self.attention(x, mask, extra))
        return self.norm2(x + self.down(F.gelu(self.up(x), approximate="tanh")))


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give a file's tensors the names that they have here."""
    top = {"cls": "class_token", "pos": "positions"}

    def name(key: str) -> str:
        key = top.get(key, re.sub(r"^proj\.", "project.", key))
        match = re.fullmatch(r"blocks\.(\d+)\.(\w+)\.(\w+)", key)
        if match is None or match[2] not in PUBLISHED:
            return key
        return f"transformer.blocks.{match[1]}.{PUBLISHED[match[2]]}.{match[3]}"

    return {name(key): tensor for key, tensor in state.items()}
