"""Wander: a low-rank product of all modalities' tokens, on top of a trained and frozen model.

Source: Guo, Cheng, Wu, Jin, "A Wander Through the Multimodal Landscape: Efficient Transfer Learning via
Low-rank Sequence Multimodal Adapter" (AAAI 2025, arXiv 2412.08979), from its abstract and two public copies
of the released code. With X_m (T_m × D) the tokens of modality m as the base model gives them,

    H_m = GELU(X_m A_m + a_m),    U_m = H_m Σ_i F_m[i],    V_m = (Σ_j G_m[j])ᵀ U_m,
    Z = V_1 ⊙ … ⊙ V_M,    out = Z + (X_1; …; X_M)[: r],

A_m (D × r), i ≤ R_d (`drank`), j ≤ R_t (`trank`), F ~ N(0, 1), G = 0 at the start; the head reads out[0].
Facts: these; the base (for Food-101 two encoders and two transformer layers over the tokens of both) is
trained on the task first, then only the adapter and the head train; R_d = 8, R_t = 12, r = 16 for three
modalities, 64 for two.

Read this before calling a result Wander's:

- With all G = 0 every V_m is 0, and so is the gradient of every tensor of the adapter where a row has two
  modalities or more: it never moves, and only the head learns (`start: released`). Both copies have it.
- Factors are summed before the product, so that ranks add parameters but nothing that one sum of free
  matrices could not say (`fuse: released`). CP, which the paper's text promises, multiplies inside the sum:
  Z = Σ_{ij} V_1^{ij} ⊙ … ⊙ V_M^{ij} with V_m^{ij} = G_m[j]ᵀ H_m F_m[i] (`fuse: cp`, the default [choice]).
- Of the r tokens of `out` the released head reads the first. Only that one is computed and kept here: the
  same logits, Σ_m R_t T_m (r − 1) parameters fewer [choice].
- It has no rule for what is absent. Ours [choice]: the product is over the modalities that a row has, and the
  residual is the first token of the first of them.

Ours too [choice]: Z is scaled by a gain a feature that starts at 0, so that whoever is absent the start is
the base exactly; F and G start normal, with variances that make V_m about as large as H_m; tokens that are
not valid add nothing to V_m; the base gets an embedding a modality, as fusion `transformer` does; GELU in the
head, where the release has ReLU over a base with GELU.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mmx.contracts import Fusion, Logits, Modality, Task, TokenMap, Tokens, first_token
from mmx.errors import InputError
from mmx.transformer import LORA_TARGETS, Transformer

Fuse = Literal["cp", "released"]
Start = Literal["identity", "released"]


class Wander(Fusion):
    """A transformer over the tokens of all modalities, Wander on what comes out, and a head of two layers.

    Two phases: first base and head train (`fusion_adapter: {name: part, targets: '(base|head).*'}`), then
    encoders are frozen, and product and head train (`'(product|head).*'`); see sweeps/wander.yaml. A row
    without any modality gets the head's answer to zeros.

    `fuse`: "cp", "released", or as controls "mlp" (in place of Z a perceptron with `bottleneck` hidden units
    on the summary tokens, zeros where absent; it starts at zero) and "none" (the base alone). `bottleneck`,
    `drank`, `trank`: r, R_d, R_t. `length`: T, the same for all; of a longer modality the first T tokens are
    mixed, a shorter one counts as padded. `start`: see above. `depth` and `heads`: the base's transformer;
    without one (0) the base reads only the first modality that is there.
    """

    lora_targets = LORA_TARGETS

    def __init__(
        self,
        modalities: Sequence[Modality],
        width: int,
        task: Task,
        fuse: Literal["cp", "released", "mlp", "none"] = "cp",
        bottleneck: int = 16,
        drank: int = 8,
        trank: int = 12,
        length: int = 64,
        start: Start = "identity",
        depth: int = 2,
        heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if min(bottleneck, drank, trank, length) < 1:
            raise InputError(
                f"fusion 'wander': bottleneck {bottleneck}, drank {drank}, trank {trank} and length {length} "
                "must be at least 1"
            )
        self.modalities = tuple(modalities)
        self.base = Base(self.modalities, width, depth, heads) if depth else None
        self.head = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, task.out)
        )
        # Last, so that base and head start alike whatever is added to them.
        self.product: LowRankProduct | Perceptron | None = None
        if fuse in ("cp", "released"):
            released = fuse == "released"
            self.product = LowRankProduct(
                self.modalities,
                width,
                length,
                bottleneck,
                drank,
                trank,
                "released" if released else "cp",
                start,
            )
        elif fuse == "mlp":
            self.product = Perceptron(self.modalities, width, bottleneck)

    def forward(self, tokens: TokenMap) -> Logits:
        """Fuse."""
        mixed = tokens if self.base is None else self.base(tokens)
        out = first_present(mixed, self.modalities)
        if self.product is not None:
            out = out + self.product(mixed)[:, 0]
        return self.head(out)


class Base(nn.Module):
    """Tokens of all modalities, each plus its modality's embedding, through a transformer and apart again."""

    def __init__(self, modalities: Sequence[Modality], width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.embedding = nn.ParameterDict({m: torch.randn(width) * 0.02 for m in modalities})
        self.transformer = Transformer(width, depth, heads)

    def forward(self, tokens: TokenMap) -> dict[Modality, Tokens]:
        """Mix what is valid."""
        whole = torch.cat([tokens[m].values + self.embedding[m] for m in self.embedding], dim=1)
        valid = torch.cat([tokens[m].valid for m in self.embedding], dim=1)
        # A row without any token reads its own padding: softmax over nothing would be NaN.
        readable = valid | ~valid.any(dim=1, keepdim=True)
        mixed = self.transformer(whole, None if bool(readable.all()) else readable)
        counts = [tokens[m].values.shape[1] for m in self.embedding]
        parts = zip(self.embedding, mixed.split(counts, dim=1), valid.split(counts, dim=1), strict=True)
        return {m: Tokens(torch.where(own[:, :, None], v, 0.0), own) for m, v, own in parts}


class LowRankProduct(nn.Module):
    """Z of the module's equations: `outputs` tokens a row, of which the fusion asks for one."""

    def __init__(
        self,
        modalities: Sequence[Modality],
        width: int,
        length: int,
        bottleneck: int,
        drank: int,
        trank: int,
        fuse: Fuse = "cp",
        start: Start = "identity",
        outputs: int = 1,
    ) -> None:
        super().__init__()
        self.length, self.fuse = length, fuse
        self.down = nn.ModuleDict({m: nn.Linear(width, bottleneck) for m in modalities})
        feature = {m: torch.randn(drank, bottleneck, width) for m in modalities}
        time = {m: torch.zeros(trank, length, outputs) for m in modalities}
        self.gain: nn.Parameter | None = None
        if start == "identity":
            # Summed over the ranks, a product of `among` factors is about as large as each of them.
            among = len(modalities) if fuse == "cp" else 1
            feature = {m: f * bottleneck**-0.5 * drank ** (-0.5 / among) for m, f in feature.items()}
            spread = length**-0.5 * trank ** (-0.5 / among)
            time = {m: torch.randn_like(g) * spread for m, g in time.items()}
            self.gain = nn.Parameter(torch.zeros(width))
        self.feature, self.time = nn.ParameterDict(feature), nn.ParameterDict(time)

    def forward(self, tokens: TokenMap) -> Float[Tensor, "batch outputs width"]:
        """Multiply over the modalities that a row has; zeros where it has none."""
        there = torch.stack([first_token(tokens[m])[1] for m in self.down])
        parts = torch.stack([self._part(m, tokens[m]) for m in self.down])
        present = there[(...,) + (None,) * (parts.ndim - 2)]
        product = torch.where(present, parts, 1.0).prod(dim=0).flatten(1, -3).sum(dim=1)
        product = torch.where(there.any(dim=0)[:, None, None], product, 0.0)
        return product if self.gain is None else self.gain * product

    def _part(self, m: Modality, tokens: Tokens) -> Float[Tensor, "batch tranks dranks outputs width"]:
        """Give V_m^{ij}, or their sum V_m as the one of its kind."""
        values, valid = fitted(tokens, self.length)
        hidden = F.gelu(self.down[m](values)) * valid[:, :, None]
        time, feature = self.time[m], self.feature[m]
        if self.fuse == "released":
            time, feature = time.sum(dim=0, keepdim=True), feature.sum(dim=0, keepdim=True)
        mixed = torch.einsum("jto,btr->bjor", time, hidden)
        return torch.einsum("bjor,ird->bjiod", mixed, feature)


class Perceptron(nn.Module):
    """The control with no product: the summary tokens side by side, one hidden layer, one token."""

    def __init__(self, modalities: Sequence[Modality], width: int, hidden: int) -> None:
        super().__init__()
        self.modalities = tuple(modalities)
        self.up = nn.Linear(width * len(self.modalities), hidden)
        self.down = nn.Linear(hidden, width)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, tokens: TokenMap) -> Float[Tensor, "batch 1 width"]:
        """Apply it."""
        joined = torch.cat([first_token(tokens[m])[0] for m in self.modalities], dim=1)
        return self.down(F.gelu(self.up(joined)))[:, None]


def fitted(tokens: Tokens, length: int) -> Tokens:
    """Cut or pad to so many tokens."""
    lacking = max(0, length - tokens.values.shape[1])
    values = F.pad(tokens.values[:, :length], (0, 0, 0, lacking))
    return Tokens(values, F.pad(tokens.valid[:, :length], (0, lacking)))


def first_present(tokens: TokenMap, modalities: Sequence[Modality]) -> Float[Tensor, "batch width"]:
    """Give each row the summary token of the first modality that it has; zeros where there is none."""
    found, taken = first_token(tokens[modalities[0]])
    for m in modalities[1:]:
        values, valid = first_token(tokens[m])
        found = torch.where((valid & ~taken)[:, None], values, found)
        taken = taken | valid
    return found
