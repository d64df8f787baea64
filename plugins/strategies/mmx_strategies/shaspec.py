"""ShaSpec: features that all modalities share stand in for what is absent; specific ones are added.

Source: Wang et al., "Multi-modal Learning with Missing Modality via Shared-Specific Feature Modelling"
(ShaSpec, CVPR 2023), from notes on its text and from its released code, which is for BraTS alone. With x_m
the tokens of m's encoder, R shared by all modalities, S_m each modality's own, and P what a row has:

    r_m = R(x_m),    s_m = S_m(x_m)                                                                  (1)
    f_m = r_m + W [r_m; s_m] + b where m is present,  f_n = mean of r_m over m ∈ P where n is absent  (2)
    L = L_task + 0.1 · L_dao + 0.02 · L_dco                                                          (3)
    L_dao = Σ over pairs of present m, n of mean |r_m − r_n|                                         (4)
    L_dco = CE of a linear classifier that tells from s_m which modality it is of                    (5)

Facts: (1) to (3); one W for all modalities; L1 in (4), better than squared error, KL and CE to the uniform;
losses of absent modalities are skipped; a head on all f. One public note has the weights in (3) the other
way round; the released code has them as here. Elsewhere the release differs from the text: what stands in is
r of the first present modality, (4) has neighbouring pairs alone, absent modalities have the losses of zeros,
and it is an option to hide modalities in training: then k ~ U{1, …, M} of them are kept.

Ours [choice, each]: R and S_m are a layer norm and a perceptron of two layers on the tokens of the sweep's
encoders, where the paper has whole encoders; f of all tokens, so that a fusion transformer reads them, but
losses and f_n of the summary tokens; (4) is over all pairs; modalities are hidden in training as in the
release's option (`drop`). Fusion `concat` is the nearest to the paper's head.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mmx.contracts import Filled, Modality, Presence, Strategy, TokenMap, Tokens, first_token
from mmx.errors import InputError
from mmx_strategies.hiding import keep_some
from mmx_strategies.stand_in import stand_in

SHARED = "all"
"""Name of the map of all modalities."""

Summaries = Mapping[Modality, tuple[Tensor, Tensor]]
"""Summary tokens (batch, width) and where they are valid (batch)."""


class ShaSpec(Strategy):
    """Split tokens into shared and specific features, compose them, and let the shared stand in: (1) to (5).

    Switches, for ablation:

    - `dao`, `dco`: the weights in (3); 0: without that loss;
    - `shared: false`: each modality has an R of its own;
    - `specific: false`: f_m = r_m, and there is no L_dco;
    - `substitute`: "shared", or "zero": zeros stand in for what is absent;
    - `drop: false`: no modality is hidden in training;
    - `hidden`: width of the perceptrons' inner layer, by default that of the tokens.
    """

    def __init__(
        self,
        modalities: Sequence[Modality],
        width: int,
        dao: float = 0.1,
        dco: float = 0.02,
        shared: bool = True,
        specific: bool = True,
        substitute: Literal["shared", "zero"] = "shared",
        drop: bool = True,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        if dao < 0 or dco < 0 or (hidden is not None and hidden < 1):
            raise InputError(
                f"strategy 'shaspec': dao {dao} and dco {dco} must not be negative, and hidden {hidden} must "
                "be at least 1"
            )
        self.modalities = tuple(modalities)
        several = len(self.modalities) > 1  # one alone has nobody to be like, nor to be told apart from
        self.dao = dao if several else 0.0
        self.dco = dco if several and specific else 0.0
        self.substitute, self.drop = substitute, drop
        inner = hidden or width
        self.shared = nn.ModuleDict(
            {n: _perceptron(width, inner) for n in ((SHARED,) if shared else self.modalities)}
        )
        self.specific = nn.ModuleDict({m: _perceptron(width, inner) for m in modalities if specific})
        self.compose = nn.Linear(2 * width, width) if specific else None
        self.classifier = nn.Linear(width, len(self.modalities)) if self.dco else None

    def hide(self, presence: Presence) -> Presence:
        """Drop modalities at random."""
        return keep_some(presence, self.modalities) if self.drop else presence

    def fill(self, tokens: TokenMap, presence: Presence, targets: TokenMap | None) -> Filled:
        """Compose what is there, put the shared features of others where something is not."""
        shared = {m: self._features(self.shared, m, t) for m, t in tokens.items()}
        specific = {m: self._features(self.specific, m, t) for m, t in tokens.items()}
        common = {m: first_token(t) for m, t in shared.items()}
        token = _mean(common)
        token = torch.zeros_like(token) if self.substitute == "zero" else token
        composed = {m: self._compose(shared[m], specific[m]) for m in tokens}
        filled = {m: stand_in(t, presence[m], token) for m, t in composed.items()}
        if targets is None:
            return Filled(filled)
        return Filled(filled, self._losses(common, {m: first_token(t) for m, t in specific.items()}))

    def _features(self, maps: nn.ModuleDict, m: Modality, tokens: Tokens) -> Tokens:
        """Give r or s; a map that no row reaches is not touched, so that no optimiser moves it."""
        values, valid = tokens
        name = SHARED if SHARED in maps else m
        if name in maps and values.shape[1]:
            values = torch.where(valid[:, :, None], maps[name](values), 0.0)
        return Tokens(values, valid)

    def _compose(self, shared: Tokens, specific: Tokens) -> Tokens:
        """Give f of what is there."""
        values, valid = shared
        if self.compose is None or not values.shape[1]:
            return shared
        values = values + self.compose(torch.cat([values, specific.values], dim=2))
        return Tokens(torch.where(valid[:, :, None], values, 0.0), valid)

    def _losses(self, shared: Summaries, specific: Summaries) -> dict[str, Tensor]:
        """Give (4) and (5), weighted."""
        losses: dict[str, Tensor] = {}
        if self.dao:
            losses["dao"] = self.dao * distance(shared)
        if self.classifier is not None:
            losses["dco"] = self.dco * self._tell_apart(self.classifier, specific)
        return losses

    def _tell_apart(self, classifier: nn.Module, specific: Summaries) -> Float[Tensor, ""]:
        found = torch.cat([specific[m][0][specific[m][1]] for m in self.modalities])
        counts = torch.stack([specific[m][1].sum() for m in self.modalities])
        names = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        return F.cross_entropy(classifier(found).float(), names) if len(names) else found.sum()


def distance(shared: Summaries) -> Float[Tensor, ""]:
    """Give (4); a pair that no row has costs nothing."""
    total = next(iter(shared.values()))[0].new_zeros(())
    for (first, there), (second, too) in combinations(shared.values(), 2):
        rows = there & too
        if bool(rows.any()):
            total = total + F.l1_loss(first[rows], second[rows])
    return total


def _mean(found: Summaries) -> Float[Tensor, "batch width"]:
    """Average over what is present; zeros where nothing is."""
    total = torch.stack([values for values, _ in found.values()]).sum(dim=0)
    count = torch.stack([valid for _, valid in found.values()]).sum(dim=0)
    return total / count.clamp(min=1)[:, None]


def _perceptron(width: int, inner: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))
