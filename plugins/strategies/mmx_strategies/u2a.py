"""U2A / cross-modal proxy tokens: a token predicted from what is there.

Source: Reza et al., arXiv 2501.17823 (v1: U2A, mask tokens; v2-v4: cross-modal proxy tokens), from its
abstract, figures and review pages; the method section could not be read. Facts: the token attends to an
available modality and approximates the absent one's class token; an alignment loss with weight 0.20;
modality dropout in training; LoRA of rank 1 on frozen encoders; no generation network. Our choices, each
marked [choice] below: where the token enters, the form of the alignment loss and its stopped gradient, the
dropout recipe, the mean over several sources.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mmx.contracts import (
    EncoderFacts,
    Filled,
    Modality,
    Presence,
    Prompts,
    Strategy,
    TokenMap,
    Tokens,
    first_token,
)
from mmx.errors import InputError
from mmx_strategies.hiding import hide_one_of_complete
from mmx_strategies.stand_in import mean_of_present, stand_in


class MaskToken(Strategy):
    """For each ordered pair m → n a learned token goes through m's encoder (or attends to its output) and
    comes out as P_{m→n}, a prediction of n's summary token C_n.

    Slot n: C_n and n's other tokens where n is there; else the mean of P_{m→n} over present m ([choice] for
    more than two modalities). Loss: λ · mean over pairs with both really there of MSE(P_{m→n}, C_n), over
    those that dropout hides too ([choice] MSE).

    Dropout [choice of recipe]: of a complete training sample one of {all stay, m_1 goes, ..., m_M goes} is
    drawn, each with probability 1/(M+1). What goes is still encoded, as the target of the loss, and is gone
    only where slots are filled. A sample that really lacks something loses nothing more.

    Switches for ablation, of the strategy:

    - `alignment`: λ, 0.2 as in the paper; 0: no loss, and what is hidden is not encoded;
    - `stop_gradient`: C_n in the loss is without gradient [choice]; false lets it move towards the proxies;
    - `read_only`: false is mask A, where class token and patches attend to the proxies too; true is mask B,
      where nothing attends to a proxy, so that the class token is what it would be without them [choice];
    - `dropout`: the probability that a complete sample has one modality hidden, evenly chosen; by default
      M/(M+1), the draw above; 0: none;
    - `source`: "auto" puts the token in front of the encoder's input where the encoder takes prompts
      [choice], else lets it cross-attend to the output; "output" always the latter; "constant" is a learned
      token that sees no input (the control without proxies);
    - `start`: tokens in the encoder start as noisy copies of its class token, so that what they read is of
      use from the first step, or as "noise" N(0, 0.02²) [choice].

    Switches of the sweep: `fusion: sum` (layer norm of the sum of the slots, then a linear head) or `concat`
    [choice: the paper's is not known]; `adapter: {name: lora, rank: 1}`, rank 1 as in the paper, 1 to 16 as
    an axis `adapter.rank`; without proxies: strategies `zero_fill`, `modality_dropout`.
    """

    def __init__(
        self,
        modalities: Sequence[Modality],
        width: int,
        encoders: Mapping[Modality, EncoderFacts],
        alignment: float = 0.2,
        stop_gradient: bool = True,
        dropout: float | None = None,
        source: Literal["auto", "output", "constant"] = "auto",
        start: Literal["class_token", "noise"] = "class_token",
        read_only: bool = False,
    ) -> None:
        super().__init__()
        self.modalities = tuple(modalities)
        count = len(self.modalities)
        self.alignment = alignment
        self.uses_targets = alignment != 0
        self.stop_gradient = stop_gradient
        self.read_only = read_only
        self.dropout = count / (count + 1) if dropout is None else dropout
        self.others = {m: tuple(n for n in self.modalities if n != m) for m in self.modalities}
        self.inside = [m for m in self.modalities if source == "auto" and encoders[m].accepts_prompts]
        for m in self.inside if read_only else ():
            if not encoders[m].prompt_layers:
                raise InputError(f"strategy 'mask_token': the encoder of '{m}' takes no read-only prompts")
        self.constant = source == "constant"
        self.proxies = nn.ParameterDict()
        self.readers = nn.ModuleDict()
        for m in self.modalities if count > 1 else ():
            facts = encoders[m]
            noise = torch.randn(count - 1, facts.width if m in self.inside else width) * 0.02
            copied = facts.class_embedding if m in self.inside and start == "class_token" else None
            self.proxies[m] = nn.Parameter(noise if copied is None else noise + copied.cpu())
            if m not in self.inside and not self.constant:
                self.readers[m] = _Reader(width)

    def hide(self, presence: Presence) -> Presence:
        """Hide one modality of some complete rows."""
        return hide_one_of_complete(presence, self.modalities, self.dropout)

    def prompts(self, modality: Modality, presence: Presence) -> Prompts | Tensor | None:
        """Give the proxies that go through this modality's encoder, the same for every row."""
        if modality not in self.inside or modality not in self.proxies:
            return None
        proxies = self.proxies[modality][None].expand(len(presence[modality]), -1, -1)
        return Prompts(proxies[:, None], read_only=True) if self.read_only else proxies

    def fill(self, tokens: TokenMap, presence: Presence, targets: TokenMap | None) -> Filled:
        """Fill each slot, and in training align the proxies with what they stand for."""
        proxies = {m: self._read(m, t) for m, t in tokens.items()}
        own = {m: self._own(m, t) for m, t in tokens.items()}
        if len(self.modalities) < 2:  # nothing to predict from, and nothing that can be absent
            return Filled(own)
        filled = {
            n: stand_in(own[n], presence[n], self._proxy(n, proxies, presence)) for n in self.modalities
        }
        if targets is None or not self.alignment:
            return Filled(filled)
        return Filled(filled, {"alignment": self.alignment * self._align(targets)})

    def _own(self, m: Modality, tokens: Tokens) -> Tokens:
        """Take the proxies' outputs off the front."""
        front = len(self.others[m]) if m in self.inside else 0
        return Tokens(tokens.values[:, front:], tokens.valid[:, front:])

    def _read(self, m: Modality, tokens: Tokens) -> dict[Modality, Float[Tensor, "batch width"]]:
        """Give P_{m→n} for every other n; where m is absent the value is not used."""
        others, (values, valid) = self.others[m], tokens
        if not others:
            return {}
        if self.constant:
            found = self.proxies[m][None].expand(len(values), -1, -1)
        elif values.shape[1] == 0:
            found = values.new_zeros(len(values), len(others), values.shape[2])
        elif m in self.inside:
            found = values[:, : len(others)]
        else:
            found = self.readers[m](self.proxies[m], values, valid)
        return {n: found[:, i] for i, n in enumerate(others)}

    def _proxy(
        self, n: Modality, proxies: Mapping[Modality, Mapping[Modality, Tensor]], presence: Presence
    ) -> Float[Tensor, "batch width"]:
        """Average P_{m→n} over the modalities m that are there."""
        return mean_of_present({m: proxies[m][n] for m in self.others[n]}, presence)

    def _align(self, targets: TokenMap) -> Float[Tensor, ""]:
        """Give the mean squared error between proxies and what they stand for, over pairs really there."""
        summaries = {m: first_token(self._own(m, t)) for m, t in targets.items()}
        losses = []
        for m in self.modalities:
            for n, proxy in self._read(m, targets[m]).items():
                both = summaries[m][1] & summaries[n][1]
                if bool(both.any()):
                    truth = summaries[n][0][both]
                    losses.append(F.mse_loss(proxy[both], truth.detach() if self.stop_gradient else truth))
        if not losses:
            return next(iter(targets.values())).values.new_zeros(())
        return torch.stack(losses).mean()


class _Reader(nn.Module):
    """Single-head cross-attention from the proxies to an encoder's output, with a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)

    def forward(
        self,
        proxies: Float[Tensor, "others width"],
        values: Float[Tensor, "batch tokens width"],
        valid: Tensor,
    ) -> Float[Tensor, "batch others width"]:
        """Attend to valid tokens; a row without any reads zeros."""
        scores = self.query(proxies) @ self.key(values).transpose(1, 2) / values.shape[2] ** 0.5
        attention = scores.masked_fill(~valid[:, None], -1e9).softmax(dim=2) * valid[:, None]
        return proxies + self.output(attention @ self.value(values))
