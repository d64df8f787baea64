"""Parameter-efficient adaptation: the features of every layer scaled and shifted, one set a pattern.

Source: Reza, Prater-Bennette, Asif, Robust Multimodal Learning with Missing Modalities via
Parameter-Efficient Adaptation, IEEE TPAMI 47(2), 2025 (online 2024), arXiv 2310.03986, from its abstract,
its figure and reviews (the body of the paper could not be read); the technique is SSF (Lian et al., NeurIPS
2022). After layer i, for the availability pattern S,

    h_out = γ_i^S ⊙ h_in + β_i^S,    γ_i^S, β_i^S ∈ R^{channels of layer i},

with which min over {γ^S, β^S} of the task's loss is sought, all else frozen.

Facts: one network is trained on all modalities and then frozen; every available subset has a small set of
parameters of its own; they stand after each layer of the encoders and of the fusion block; they are fixed
vectors that do not depend on the input; they make up less than 1 % of the network. From second-hand readings
only: layers are convolutions, batch norms, linear maps and layer norms; the prediction head is untouched;
the loss is the task's; the running statistics of batch norms are frozen.

Our choices, each marked [choice] below or made elsewhere: γ = 1 and β = 0 at the start (SSF itself starts at
N(1, 0.02²) and N(0, 0.02²)); group norms count as layers, `nn.MultiheadAttention` does not (it reads the
weights of its maps directly); the encoder of an absent modality is not run at all (the paper's is fed zeros,
say its reviewers); learning rate and optimiser are the sweep's; batch norms without trainable weights of
their own keep their statistics, which is the engine's doing; the budget is no part of the paper.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from mmx.contracts import HEADS, Adapter, Modality, Pattern, Presence
from mmx.errors import InputError
from mmx.targets import regex_of

_LAST_AXIS = (nn.Linear, nn.LayerNorm)
"""Layers whose channels are the last axis of their output."""
_NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, *_NORMS)
_OWN = "scale_shift"
"""Name of the submodule that a layer is given."""
_EVERY = ".*"
_SHARED = "all"
"""Key of the one set where patterns have none of their own."""


class ScaleShift(Adapter):
    """Freeze everything; after every layer scale and shift the features by vectors of the row's pattern.

    Layers: convolutions, linear maps, batch, layer and group norms, but none within `head` or `heads`, nor
    within `nn.MultiheadAttention` [choice]. `<layer>.scale_shift.gamma.<pattern>` and `….beta.<pattern>` are
    the vectors, where a pattern is written as what is present, in the dataset's order: `image+audio`. An
    encoder has a set for each pattern that contains its modality, a fusion for all. Only those of the
    training's own pattern train; the rest stay as they are (a phase before may have trained them), and rows
    of a pattern that none has trained run as if there were no adapter. Until `select` is first called rows
    count as of the training's pattern. Every layer's first axis must be the rows, or rows times something
    (frames) with a row's next to each other.

    Options: `scale` and `shift`: whether there are γ, and β; `targets`: "all", or a regex over module names
    (full match); `per_pattern`: one set a pattern (the paper), which asks for training whose rows all have
    one pattern, or (False) one set for all rows, the control. `budget` below 1 lets at most that share of
    the pattern's γ and β train: whole layers (at least one), those whose gradients over `calibration_batches`
    batches are largest [choice]; the other layers stay at the start.
    """

    def __init__(
        self,
        modalities: Sequence[Modality],
        pattern: Pattern | None,
        modality: Modality | None = None,
        scale: bool = True,
        shift: bool = True,
        per_pattern: bool = True,
        targets: str = "all",
        budget: float = 1.0,
        calibration_batches: int = 8,
    ) -> None:
        if not (scale or shift):
            raise InputError(
                "adapter 'scale_shift': without scale and shift nothing is left; set one of them"
            )
        if not 0 < budget <= 1:
            raise InputError(f"adapter 'scale_shift': budget {budget} must be above 0 and at most 1")
        if budget < 1 and calibration_batches < 1:
            raise InputError("adapter 'scale_shift': a budget below 1 needs calibration_batches of 1 or more")
        if per_pattern and pattern is None:
            raise InputError(
                "adapter 'scale_shift': a set of scales belongs to one availability pattern, but this "
                "training's rows have different ones; give the phase that trains it 'modalities: [...]' (one "
                "phase a pattern) or 'rate: 0', or the adapter 'per_pattern: false' (one set for all rows)"
            )
        self.modalities = tuple(modalities)
        self.modality = modality
        self.scale, self.shift = scale, shift
        self.by_pattern = per_pattern
        self.targets = regex_of("scale_shift", _EVERY if targets == "all" else targets)
        self.budget = budget
        self.calibration_batches = calibration_batches if budget < 1 else 0
        self.key = _SHARED if pattern is None or not per_pattern else self._key(pattern)
        """Of the set that trains; that of an encoder whose modality is absent exists nowhere."""
        self.selection = _Selection((self.key,))
        self.layers: list[_Sets] = []

    def apply(self, module: nn.Module) -> None:
        """Put the vectors after the layers (InputError where an encoder has none; a fusion may be a head)."""
        chosen = {n: layer for n, layer in _candidates(module).items() if self.targets.fullmatch(n)}
        if not chosen and (self.modality is not None or self.targets.pattern != _EVERY):
            own = self.targets.pattern
            told = "there is" if own == _EVERY else f"targets '{own}' match"
            raise InputError(
                f"adapter 'scale_shift': {told} no layer of {type(module).__name__} that can be scaled "
                f"(convolutions, linear maps and norms, outside of heads and nn.MultiheadAttention)"
            )
        module.requires_grad_(False)
        self.layers = []
        for name, layer in chosen.items():
            sets = _Sets(name, layer, self._keys(), self.scale, self.shift, self.selection)
            sets.requires_grad_(False)
            for vector in sets.vectors(self.key):
                vector.requires_grad_(True)
            layer.add_module(_OWN, sets)
            sets.hook = layer.register_forward_hook(sets.follow)
            self.layers.append(sets)

    def select(self, presence: Presence) -> None:
        """Take note of each row's pattern."""
        if not self.by_pattern:
            return
        codes = torch.stack([presence[m].long() << i for i, m in enumerate(self.modalities)]).sum(dim=0)
        found, which = codes.unique(return_inverse=True)
        patterns = [
            {m for i, m in enumerate(self.modalities) if code >> i & 1} for code in found.tolist() or [0]
        ]
        self.selection.keys = tuple(self._key(p) for p in patterns)
        self.selection.which = which if len(patterns) > 1 else None

    def calibrate(self) -> None:
        """Keep the layers of largest sensitivity that fit into the budget; the others' vectors are frozen.

        A layer's sensitivity is the sum of the squared gradients of its vectors, by their number of values
        [choice]. Layers are taken in falling order, and one that is too wide for what is left is passed over;
        where none fits, the most sensitive alone is kept.
        """
        size = {sets: sum(v.numel() for v in sets.vectors(self.key)) for sets in self.layers}
        sensitivity = {sets: sets.squared_gradients(self.key) / max(1, size[sets]) for sets in self.layers}
        if self.budget == 1 or not any(sensitivity.values()):
            return
        order = sorted(self.layers, key=lambda sets: -sensitivity[sets])
        left = self.budget * sum(size.values())
        kept = set()
        for sets in order:
            if size[sets] <= left:
                kept.add(sets)
                left -= size[sets]
        for sets in set(order) - (kept or {order[0]}):
            for vector in sets.vectors(self.key):
                vector.requires_grad_(False)

    def fold(self, module: nn.Module) -> None:
        """Write the training's own set into the weights and take all sets out.

        A layer without a bias is given one, and a norm without weights is given weights, where they are
        needed: not where the layer's vectors are still those of the start.
        """
        for layer in list(module.modules()):
            sets = getattr(layer, _OWN, None)
            if not isinstance(sets, _Sets):
                continue
            _write(layer, sets.value("gamma", self.key), sets.value("beta", self.key))
            if sets.hook is not None:
                sets.hook.remove()
            delattr(layer, _OWN)
        self.layers = []

    def _keys(self) -> list[str]:
        """Name every set that a layer here has."""
        if not self.by_pattern:
            return [_SHARED]
        every = [
            p for count in range(1, len(self.modalities) + 1) for p in combinations(self.modalities, count)
        ]
        return [self._key(p) for p in every if self.modality is None or self.modality in p]

    def _key(self, pattern: Pattern | Sequence[Modality] | set[Modality]) -> str:
        return "+".join(m for m in self.modalities if m in pattern)


@dataclass
class _Selection:
    """Who the rows that come next are; an adapter and its layers share one."""

    keys: tuple[str, ...]
    """The sets that occur. A key of which a layer has no set leaves its rows as they are."""
    which: Int[Tensor, " rows"] | None = None
    """Each row's place in `keys`; None where all have the first."""


class _Sets(nn.Module):
    """One layer's γ and β of every pattern."""

    def __init__(
        self,
        name: str,
        layer: nn.Module,
        keys: Sequence[str],
        scale: bool,
        shift: bool,
        selection: _Selection,
    ) -> None:
        super().__init__()
        self.name = name
        self.last = isinstance(layer, _LAST_AXIS)
        self.selection = selection
        self.hook: RemovableHandle | None = None
        like = next(layer.parameters(recurse=False), torch.zeros(()))
        start = like.new_zeros(_channels(layer))
        self.gamma = nn.ParameterDict({k: nn.Parameter(start + 1) for k in keys} if scale else {})
        self.beta = nn.ParameterDict({k: nn.Parameter(start.clone()) for k in keys} if shift else {})

    def vectors(self, key: str) -> list[nn.Parameter]:
        """Give what there is of a set."""
        return [sets[key] for sets in (self.gamma, self.beta) if key in sets]

    def value(self, name: str, key: str) -> Float[Tensor, " channels"] | None:
        """Give a set's γ ("gamma") or β ("beta"), None where there is none."""
        sets = cast(nn.ParameterDict, self.get_submodule(name))
        return sets[key].detach() if key in sets else None

    def squared_gradients(self, key: str) -> float:
        """Sum the squares of what lies in a set's `.grad`."""
        found = [v.grad for v in self.vectors(key) if v.grad is not None]
        return sum((float(g.double().square().sum()) for g in found), start=0.0)

    def follow(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Hook that changes the layer's output.

        A bound method, so that a copied layer calls its own copy of this module.
        """
        del layer, inputs
        return self(output)

    def forward(self, h: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Scale and shift; the dtype stays, so that lower precision around is as it is without an adapter."""
        gamma, beta = self._for(self.gamma, 1.0, h), self._for(self.beta, 0.0, h)
        out = h if gamma is None else gamma * h
        out = out if beta is None else out + beta
        return out.to(h.dtype)

    def _for(self, sets: nn.ParameterDict, neutral: float, h: Tensor) -> Float[Tensor, "..."] | None:
        """Give a factor or summand that broadcasts over h, None where no row has a set."""
        keys, which = self.selection.keys, self.selection.which
        known = [sets[k] for k in keys if k in sets]
        if not known:
            return None
        if which is None:
            return known[0] if self.last else known[0].reshape(-1, *[1] * (h.ndim - 2))
        if h.ndim < 2 or len(h) % len(which):
            raise InputError(
                f"adapter 'scale_shift': layer '{self.name}' gives {tuple(h.shape)} for {len(which)} rows of "
                f"different patterns, so no row's own part can be told; leave the layer out of 'targets'"
            )
        blank = torch.full_like(known[0], neutral)
        table = torch.stack([sets.get(k, blank) for k in keys])
        each = table[which.to(h.device)].repeat_interleave(len(h) // len(which), dim=0)
        between = [1] * (h.ndim - 2)
        return each.reshape(len(h), *between, -1) if self.last else each.reshape(len(h), -1, *between)


def _candidates(module: nn.Module) -> dict[str, nn.Module]:
    """Give the layers that can be scaled, by name."""
    closed = tuple(
        f"{n}." if n else "" for n, m in module.named_modules() if isinstance(m, nn.MultiheadAttention)
    )
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, _LAYERS) and not name.startswith(closed) and HEADS.isdisjoint(name.split("."))
    }


def _channels(layer: nn.Module) -> int:
    """Count the features that a layer gives."""
    if isinstance(layer, nn.Linear):
        return layer.out_features
    if isinstance(layer, nn.LayerNorm):
        return layer.normalized_shape[-1]
    if isinstance(layer, _BatchNorm):
        return layer.num_features
    if isinstance(layer, nn.GroupNorm):
        return layer.num_channels
    return cast(nn.Conv2d, layer).out_channels


@torch.no_grad()
def _write(
    layer: nn.Module, gamma: Float[Tensor, " channels"] | None, beta: Float[Tensor, " channels"] | None
) -> None:
    """Write γ and β into a layer's weight and bias."""
    scales = gamma is not None and bool((gamma != 1).any())
    shifts = beta is not None and bool((beta != 0).any())
    if not (scales or shifts):
        return
    if isinstance(layer, _NORMS) and layer.weight is None:
        _give_weights(layer, cast(Tensor, beta if gamma is None else gamma))
    weight, bias = cast(Tensor, layer.weight), cast(Tensor | None, layer.bias)
    if gamma is not None:
        along = gamma if isinstance(layer, nn.LayerNorm) else gamma.reshape(-1, *[1] * (weight.ndim - 1))
        layer.weight = nn.Parameter(weight * along, requires_grad=False)
        bias = None if bias is None else bias * gamma
    if beta is not None and (shifts or bias is not None):
        own = weight.new_zeros(weight.shape if isinstance(layer, _NORMS) else len(weight))
        bias = (own if bias is None else bias) + beta
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)


def _give_weights(norm: nn.Module, like: Tensor) -> None:
    """Give a norm that has no weights those that change nothing."""
    shape = norm.normalized_shape if isinstance(norm, nn.LayerNorm) else (_channels(norm),)
    norm.weight = nn.Parameter(like.new_ones(shape), requires_grad=False)
    norm.bias = nn.Parameter(like.new_zeros(shape), requires_grad=False)
    norm.affine = norm.elementwise_affine = True  # type: ignore[assignment]
