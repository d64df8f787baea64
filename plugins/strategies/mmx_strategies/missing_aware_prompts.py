"""Missing-aware prompts: learned tokens that tell the network who is absent.

Source: Lee et al. (CVPR 2023), from its released code. There: one multimodal transformer (ViLT), frozen;
three sets of prompts (complete, one for each absent modality) of 16 tokens for each of the first 6 layers,
chosen per sample; at the input level put in front of the sequence before each of those layers, at the
attention level split into 8 extra keys and 8 extra values; an absent modality enters as a dummy input.

Our choices: one set for every availability pattern, for any number of modalities; prompts in the unimodal
encoders (`where="encoder"`), in the fusion transformer ("fusion"), or both; an absent modality has no tokens
at all instead of a dummy; N(0, 0.02²) at the start instead of zeros with one row of ones (zeros give every
token of a set the same gradient).
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mmx.contracts import EncoderFacts, Filled, Modality, Presence, Prompts, Strategy, TokenMap, Tokens
from mmx.errors import InputError

FUSION = "fusion"


class Prompt(Strategy):
    """Choose one learned set of prompts a row by its availability pattern.

    `length` tokens for each of the first `depth` layers (as many as there are); `level` "input" or
    "attention"; `where` "encoder", "fusion" or "both". An encoder that takes plain prompts only gets the
    first layer's, at the input level.
    """

    def __init__(
        self,
        modalities: Sequence[Modality],
        width: int,
        encoders: Mapping[Modality, EncoderFacts],
        fusion_layers: int = 0,
        length: int = 16,
        depth: int = 6,
        level: Literal["input", "attention"] = "input",
        where: Literal["encoder", "fusion", "both"] = "encoder",
    ) -> None:
        super().__init__()
        if length < 1 or depth < 1 or (level == "attention" and length % 2):
            raise InputError(
                f"strategy 'prompt': length {length} and depth {depth} must be at least 1, and "
                f"length even for level 'attention' (half keys, half values)"
            )
        self.modalities = tuple(modalities)
        self.level: Literal["input", "attention"] = level
        self.encodes_by_pattern = where != "fusion"
        self.sets = nn.ParameterDict()
        self.fronts = dict.fromkeys(self.modalities, 0)
        self.plain = {m for m in self.modalities if encoders[m].prompt_layers == 0}
        for m in self.modalities if where != "fusion" else ():
            layers = self._layers(m, encoders[m], depth, level)
            self.sets[m] = self._new(2 ** (len(self.modalities) - 1), layers, length, encoders[m].width)
            self.fronts[m] = layers * length if level == "input" else 0
        if where != "encoder":
            if not fusion_layers:
                raise InputError("strategy 'prompt': the fusion takes no prompts; choose fusion: transformer")
            self.sets[FUSION] = self._new(
                2 ** len(self.modalities) - 1, min(depth, fusion_layers), length, width
            )

    @staticmethod
    def _layers(m: Modality, facts: EncoderFacts, depth: int, level: str) -> int:
        if not facts.accepts_prompts:
            raise InputError(
                f"strategy 'prompt': the encoder of '{m}' takes no prompts; set strategy.where=fusion"
            )
        if level == "attention" and not facts.prompt_layers:
            raise InputError(f"strategy 'prompt': the encoder of '{m}' takes prompts at its input only")
        return min(depth, max(1, facts.prompt_layers))

    @staticmethod
    def _new(sets: int, layers: int, length: int, width: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(sets, layers, length, width) * 0.02)

    def prompts(self, modality: Modality, presence: Presence) -> Prompts | Tensor | None:
        """Give each row the set of its pattern, among the patterns that have this modality."""
        if modality not in self.sets:
            return None
        others = [m for m in self.modalities if m != modality]
        chosen = self.sets[modality][_code(others, presence)]  # (batch, layers, length, width)
        return chosen[:, 0] if modality in self.plain else Prompts(chosen, self.level)

    def fill(self, tokens: TokenMap, presence: Presence, targets: TokenMap | None) -> Filled:
        """Take the prompts' outputs off, and give the fusion its own prompts."""
        del targets
        own = {
            m: Tokens(v[:, self.fronts[m] :], valid[:, self.fronts[m] :]) for m, (v, valid) in tokens.items()
        }
        if FUSION not in self.sets:
            return Filled(own)
        chosen = self.sets[FUSION][_code(self.modalities, presence) - 1]
        return Filled(own, prompts=Prompts(chosen, self.level))


def _code(modalities: Sequence[Modality], presence: Presence) -> Tensor:
    """Number each row's pattern: bit i says whether the i-th modality is there."""
    first = next(iter(presence.values()))
    bits = [presence[m].long() << i for i, m in enumerate(modalities)]
    return torch.stack([torch.zeros_like(first, dtype=torch.long), *bits]).sum(dim=0)
