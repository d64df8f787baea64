"""MoRA: a low-rank change of the encoders' maps, by factors that encoders share and by factors of their own.

Source: MoRA (ICLR 2026, arXiv 2511.06225), from notes on its released code; tables second-hand. In each
adapted layer every modality m has factors S_m, and for two modalities m, n

    ΔW_m = S_m (S_nᵀ S_n) S_mᵀ,    S ~ N(0, 1/r)                                                        (1)
    W_m' = a_s · dir(W_m + α ΔW_m) + a_p · dir(W_m + α B A)                                             (2)

where dir divides each column by its norm, B = 0 at the start, and the magnitudes a_s, a_p (one a column)
start at the norms of W's columns. Facts: (1), (2); both encoders frozen; ranks 4 and 8, α of 0.001, 0.01 and
0.1; attention maps of the last two layers, other ones for each dataset; both inputs are encoded, an absent
one as a white image or an empty text. Released as it is, W' starts near 2 W.

Ours [choice, each]: it starts at W: magnitudes at half the norms, and in (2) the change of ΔW_m since its
start; α = 0.1; the Gram matrix of several others is their mean, without any other it is the identity; maps
are paired from the last one back; no dropout of its own; what is absent is not encoded; all maps that the
encoder names for LoRA, unless `targets` says otherwise. Maps must be square, as those of attention are.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mmx.contracts import Adapter, Modality
from mmx.errors import InputError
from mmx.targets import targeted


class Mora(Adapter):
    """Freeze an encoder and write (2) for the weights of the chosen maps.

    `rank`: r; `alpha`: α; `targets`: a regex over module names, by default the encoder author's for LoRA.
    `shared: false` leaves (1) out, so that W' = a_p · dir(W + α B A): the control that shares nothing.
    """

    def __init__(
        self,
        modality: Modality | None = None,
        rank: int = 4,
        alpha: float = 0.1,
        targets: str = "default",
        shared: bool = True,
    ) -> None:
        if modality is None:
            raise InputError("adapter 'mora' is for encoders, which share factors; give the fusion another")
        if rank < 1:
            raise InputError(f"adapter 'mora': rank {rank} is below 1; for none write adapter: frozen")
        self.rank, self.alpha, self.targets, self.shared = rank, alpha, targets, shared
        self.layers: list[Changed] = []
        """One of each adapted map, in the encoder's order."""

    def apply(self, module: nn.Module) -> None:
        """Put the factors in (InputError where nothing, or a map that is not square, is targeted)."""
        module.requires_grad_(False)
        self.layers = []
        for name, layer in targeted("mora", module, self.targets).items():
            if not isinstance(layer, nn.Linear) or layer.in_features != layer.out_features:
                raise InputError(
                    f"adapter 'mora': '{name}' is no linear map from a width to the same width; name others, "
                    "those of attention, in 'targets'"
                )
            self.layers.append(Changed(layer.weight, self.rank, self.alpha, self.shared))
            parametrize.register_parametrization(layer, "weight", self.layers[-1])

    def meet(self, others: Mapping[Modality, Adapter]) -> None:
        """Pair the layers with those of the other encoders that have this adapter, from the last one back."""
        for name, other in others.items():
            if not isinstance(other, Mora) or not (self.shared and other.shared):
                continue
            if other.rank != self.rank:
                raise InputError(
                    f"adapter 'mora': rank {self.rank} here and {other.rank} for '{name}'; shared factors "
                    "need one rank"
                )
            for own, theirs in zip(reversed(self.layers), reversed(other.layers), strict=False):
                own.others.append(theirs)

    def fold(self, module: nn.Module) -> None:
        """Write W' into the weights."""
        for layer in list(module.modules()):
            if isinstance(layer, nn.Linear) and parametrize.is_parametrized(layer, "weight"):
                parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
                layer.weight.requires_grad_(False)
        self.layers = []


class Changed(nn.Module):
    """W' of one map, from W."""

    start: Tensor

    def __init__(self, weight: Float[Tensor, "width width"], rank: int, alpha: float, shared: bool) -> None:
        super().__init__()
        width, spread = len(weight), rank**-0.5
        norms = weight.detach().norm(dim=0)
        self.alpha = alpha
        self.others: list[Changed] = []
        """Those of the other encoders; in a list, so that their factors stay theirs alone."""
        self.down = nn.Parameter(torch.randn(rank, width).to(weight) * spread)
        self.up = nn.Parameter(weight.new_zeros(width, rank))
        self.magnitude = nn.Parameter(norms / 2 if shared else norms.clone())
        self.factors: nn.Parameter | None = None
        if shared:
            self.factors = nn.Parameter(torch.randn(width, rank).to(weight) * spread)
            self.magnitude_shared = nn.Parameter(norms / 2)
            self.register_buffer("start", self.factors.detach().clone())

    def forward(self, weight: Float[Tensor, "width width"]) -> Float[Tensor, "width width"]:
        """Give (2)."""
        with torch.autocast(weight.device.type, enabled=False):  # so that it starts at W
            changed = self.magnitude * direction(weight + self.alpha * self.up @ self.down)
            if self.factors is None:
                return changed
            now = self._product(self.factors, [other.factors for other in self.others])
            then = self._product(self.start, [other.start for other in self.others])
            return changed + self.magnitude_shared * direction(weight + self.alpha * (now - then))

    @staticmethod
    def _product(
        own: Float[Tensor, "width rank"], others: Sequence[Tensor | None]
    ) -> Float[Tensor, "width width"]:
        """Give (1)."""
        grams = [factors.T @ factors for factors in others if factors is not None]
        return own @ torch.stack(grams).mean(dim=0) @ own.T if grams else own @ own.T


def direction(weight: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """Divide each column by its norm; one of zeros stays."""
    return weight / weight.norm(dim=0).clamp(min=1e-12)
