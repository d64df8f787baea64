"""Missing-aware prompts: learned tokens that tell the network who is absent.

Source: Lee et al. (CVPR 2023), from its released code. There: one multimodal transformer (ViLT), frozen;
three sets of prompts (complete, one for each absent modality) of 16 tokens for each of the first 6 layers,
chosen per sample; at the input level put in front of the sequence before each of those layers, at the
attention level split into 8 extra keys and 8 extra values; an absent modality enters as a dummy input.

Our choices: one set for every availability pattern, for any number of modalities; prompts in the unimodal
encoders (`where="encoder"`), in the fusion transformer ("fusion"), or both; an absent modality has no tokens
at all instead of a dummy; N(0, 0.02²) at the start instead of zeros with one row of ones (`start="released"`:
at the input level tokens that start alike get the same gradient, and stay alike for ever).

The release's table of who is absent is protocol `missing_table`; sweeps/map.yaml has the whole method: a
fusion transformer, trained first, then frozen but for its head, and prompts.
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

    `start`: "noise", or "released": zeros, but for ones in one row of every layer's prompts, the i-th row in
    the set of the i-th pattern, the fullest first (complete, without the second, without the first); at the
    attention level the same row of keys and of values. With more patterns than rows it begins again [choice].
    `aware`: false gives every pattern the same set, the control of what telling them apart brings [choice].
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
        start: Literal["noise", "released"] = "noise",
        aware: bool = True,
    ) -> None:
        super().__init__()
        if length < 1 or depth < 1 or (level == "attention" and length % 2):
            raise InputError(
                f"strategy 'prompt': length {length} and depth {depth} must be at least 1, and "
                f"length even for level 'attention' (half keys, half values)"
            )
        self.modalities = tuple(modalities)
        self.level: Literal["input", "attention"] = level
        self.start = start
        self.aware = aware
        self.encodes_by_pattern = aware and where != "fusion"
        self.sets = nn.ParameterDict()
        self.fronts = dict.fromkeys(self.modalities, 0)
        self.plain = {m for m in self.modalities if encoders[m].prompt_layers == 0}
        for m in self.modalities if where != "fusion" else ():
            layers = self._layers(m, encoders[m], depth, level)
            codes = range(2 ** (len(self.modalities) - 1) if aware else 1)
            self.sets[m] = self._new(codes, layers, length, encoders[m].width)
            self.fronts[m] = layers * length if level == "input" else 0
        if where != "encoder":
            if not fusion_layers:
                raise InputError("strategy 'prompt': the fusion takes no prompts; choose fusion: transformer")
            codes = range(1, 2 ** len(self.modalities) if aware else 2)
            self.sets[FUSION] = self._new(codes, min(depth, fusion_layers), length, width)

    @staticmethod
    def _layers(m: Modality, facts: EncoderFacts, depth: int, level: str) -> int:
        if not facts.accepts_prompts:
            raise InputError(
                f"strategy 'prompt': the encoder of '{m}' takes no prompts; set strategy.where=fusion"
            )
        if level == "attention" and not facts.prompt_layers:
            raise InputError(f"strategy 'prompt': the encoder of '{m}' takes prompts at its input only")
        return min(depth, max(1, facts.prompt_layers))

    def _new(self, codes: Sequence[int], layers: int, length: int, width: int) -> nn.Parameter:
        """Make the sets of the patterns that are numbered by `codes`, in their order."""
        if self.start == "noise":
            return nn.Parameter(torch.randn(len(codes), layers, length, width) * 0.02)
        sets = torch.zeros(len(codes), layers, length, width)
        rows = length if self.level == "input" else length // 2
        fullest_first = sorted(codes, key=lambda code: (-code.bit_count(), code))
        for place, code in enumerate(fullest_first):
            sets[codes.index(code), :, place % rows :: rows] = 1.0
        return nn.Parameter(sets)

    def prompts(self, modality: Modality, presence: Presence) -> Prompts | Tensor | None:
        """Give each row the set of its pattern, among the patterns that have this modality."""
        if modality not in self.sets:
            return None
        others = [m for m in self.modalities if m != modality]
        chosen = self.sets[modality][self._set(others, presence, 0)]  # (batch, layers, length, width)
        return chosen[:, 0] if modality in self.plain else Prompts(chosen, self.level)

    def fill(self, tokens: TokenMap, presence: Presence, targets: TokenMap | None) -> Filled:
        """Take the prompts' outputs off, and give the fusion its own prompts."""
        del targets
        own = {
            m: Tokens(v[:, self.fronts[m] :], valid[:, self.fronts[m] :]) for m, (v, valid) in tokens.items()
        }
        if FUSION not in self.sets:
            return Filled(own)
        chosen = self.sets[FUSION][self._set(self.modalities, presence, 1)]
        return Filled(own, prompts=Prompts(chosen, self.level))

    def _set(self, modalities: Sequence[Modality], presence: Presence, first: int) -> Tensor:
        """Give each row's place among the sets; the first set is that of the pattern numbered `first`."""
        codes = _code(modalities, presence) - first
        return codes if self.aware else torch.zeros_like(codes)


def _code(modalities: Sequence[Modality], presence: Presence) -> Tensor:
    """Number each row's pattern: bit i says whether the i-th modality is there."""
    first = next(iter(presence.values()))
    bits = [presence[m].long() << i for i, m in enumerate(modalities)]
    return torch.stack([torch.zeros_like(first, dtype=torch.long), *bits]).sum(dim=0)
