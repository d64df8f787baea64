"""Assembles encoders, projectors, strategy and fusion into one model.

Leakage is impossible by construction: an encoder is given only rows that have its modality, and a strategy
only tokens, with zeros where something is absent or hidden.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmx.config import ComponentSpec, TrialSpec
from mmx.contracts import (
    Adapter,
    Batch,
    Dataset,
    Encoder,
    EncoderFacts,
    Fusion,
    Logits,
    Modality,
    Output,
    Pattern,
    Presence,
    Strategy,
    TokenMap,
    Tokens,
)
from mmx.errors import InputError
from mmx.protocols import derive_seed
from mmx.registry import Registry
from mmx.registry.signature import construct

State = Mapping[str, Tensor]
FUSION = "fusion."
"""Where the fusion's adapter stands among those of the modalities, whose names have no dot."""

# The fused inference path of nn.TransformerEncoderLayer reads weights directly and skips every adapter.
torch.backends.mha.set_fastpath_enabled(False)


class MultimodalModel(nn.Module):
    """The whole line from raw inputs to logits, for any number of modalities."""

    def __init__(
        self,
        encoders: Mapping[Modality, Encoder],
        strategy: Strategy,
        fusion: Fusion,
        width: int,
        adapters: Mapping[str, Adapter] | None = None,
    ) -> None:
        super().__init__()
        self.modalities = tuple(encoders)
        self.adapters = dict(adapters or {})
        """What was applied to each encoder, and under FUSION to the fusion."""
        self.encoders = nn.ModuleDict(encoders)
        self.projectors = nn.ModuleDict(
            {m: nn.Identity() if e.width == width else nn.Linear(e.width, width) for m, e in encoders.items()}
        )
        self.width = width
        self.strategy = strategy
        self.fusion = fusion

    @property
    def encodes_by_pattern(self) -> bool:
        """Whether a row's encodings depend on who else is present there, not on the input alone."""
        own = any(a.by_pattern for name, a in self.adapters.items() if name != FUSION)
        return self.strategy.encodes_by_pattern or own

    def forward(self, batch: Batch) -> Output:
        """Run a batch; in training the strategy may hide more, and sees what it hid as targets."""
        visible = self.strategy.hide(batch.presence) if self.training else batch.presence
        wanted = batch.presence if self.training and self.strategy.uses_targets else visible
        tokens = self.encode(batch.inputs, wanted, visible)
        return self.decode(restrict(tokens, visible), visible, tokens if self.training else None)

    def encode(
        self, inputs: Mapping[Modality, Tensor], presence: Presence, pattern: Presence
    ) -> dict[Modality, Tokens]:
        """Encode what is present; by `pattern`, a presence too, prompts and adapters are chosen."""
        return {m: self._encode_modality(m, inputs[m], presence[m], pattern) for m in self.modalities}

    def _encode_modality(self, m: Modality, raw: Tensor, present: Tensor, pattern: Presence) -> Tokens:
        rows = None if bool(present.all()) else present.nonzero()[:, 0]
        if rows is not None and len(rows) == 0:
            width = torch.zeros(len(present), 0, self.width, device=raw.device)
            return Tokens(width, width.new_zeros(width.shape[:2], dtype=torch.bool))
        arguments = self._prompt_arguments(m, pattern, rows)
        self._select(m, pattern if rows is None else {n: there[rows] for n, there in pattern.items()})
        values, valid = self.encoders[m](raw if rows is None else raw[rows], **arguments)
        values = self.projectors[m](values)
        if rows is None:
            return Tokens(values, valid)
        size = (len(present), *values.shape[1:])
        return Tokens(
            values.new_zeros(size).index_copy(0, rows, values),
            valid.new_zeros(size[:2]).index_copy(0, rows, valid),
        )

    def _prompt_arguments(self, m: Modality, pattern: Presence, rows: Tensor | None) -> dict[str, Any]:
        prompts = self.strategy.prompts(m, pattern)
        if prompts is None:
            return {}
        if rows is None:
            return {"prompts": prompts}
        if isinstance(prompts, Tensor):
            return {"prompts": prompts[rows]}
        return {"prompts": type(prompts)(prompts.values[rows], prompts.level, prompts.read_only)}

    def _select(self, part: str, presence: Presence) -> None:
        if part in self.adapters and self.adapters[part].by_pattern:
            self.adapters[part].select(presence)

    def decode(self, tokens: TokenMap, presence: Presence, targets: TokenMap | None = None) -> Output:
        """Adapt, fill and fuse tokens of which only the present ones are valid."""
        filled = self.strategy.fill(self.strategy.adapt(tokens, presence), presence, targets)
        self._select(FUSION, presence)
        logits: Logits
        if filled.prompts is None:
            logits = self.fusion(filled.tokens)
        else:
            logits = self.fusion(filled.tokens, prompts=filled.prompts)
        return Output(logits, filled.losses, filled.tokens)

    def train(self, mode: bool = True) -> "MultimodalModel":
        """Switch mode; what is frozen stays in evaluation mode, running statistics included."""
        super().train(mode)
        for part in (*self.encoders.values(), self.fusion) if mode else ():
            trains = [p.requires_grad for p in part.parameters()]
            if trains and not any(trains):
                part.eval()
            for module in part.modules():
                if isinstance(module, _BatchNorm):
                    own = [p.requires_grad for p in module.parameters(recurse=False)] or [all(trains)]
                    module.train(any(own))
        return self

    def trained_state(self) -> dict[str, Tensor]:
        """Give what training can change: trainable parameters and buffers, by name."""
        trained = {n for n, p in self.named_parameters() if p.requires_grad} | {
            n for n, _ in self.named_buffers()
        }
        return {n: t for n, t in self.state_dict().items() if n in trained}

    def count_parameters(self) -> tuple[int, int]:
        """Count trainable and all parameters."""
        counts = [(p.numel(), p.requires_grad) for p in self.parameters()]
        return sum(n for n, trains in counts if trains), sum(n for n, _ in counts)


def restrict(tokens: TokenMap, presence: Presence) -> dict[Modality, Tokens]:
    """Take the tokens of absent modalities away: zeros, none valid."""
    result = {}
    for m, (values, valid) in tokens.items():
        kept = valid & presence[m][:, None]
        result[m] = Tokens(torch.where(kept[:, :, None], values, 0.0), kept)
    return result


def build_model(
    spec: TrialSpec,
    dataset: Dataset,
    examples: Mapping[Modality, Tensor],
    registry: Registry,
    pattern: Pattern | None = None,
    start: State | None = None,
) -> MultimodalModel:
    """Build the model of a trial, or of one of its phases.

    Each part draws its initial weights from (seed, part) alone. `pattern`: the modalities that every training
    row has. `start` is the state of another model (see `hand_over`) to go on from: weights are set before an
    adapter is applied, or after it where `start` has that adapter's parameters. Raises InputError where the
    parts do not go together.
    """
    modalities = tuple(examples)
    start = start or {}
    known: dict[str, Any] = {"modalities": modalities, "task": dataset.task, "seed": spec.seed}
    known["pattern"] = pattern
    adapters: dict[str, Adapter] = {}
    encoders = {}
    for m in modalities:
        encoders[m] = _build_encoder(m, spec, dataset, examples[m], known, registry)
        told = {**known, "modality": m}
        adapters[m] = _adapt(encoders[m], m, spec.adapters[m], told, registry, _part(start, f"encoders.{m}"))
    known["width"] = max(e.width for e in encoders.values())
    known["encoders"] = {m: EncoderFacts.of(e) for m, e in encoders.items()}
    torch.manual_seed(derive_seed(spec.seed, "fusion"))
    fusion: Fusion = construct_part(
        registry.load_class("fusion", spec.fusion.name), spec.fusion, "fusion", known
    )
    own = list(fusion.parameters())
    adapters[FUSION] = _adapt(fusion, FUSION, spec.fusion_adapter, known, registry, _part(start, "fusion"))
    known["fusion_layers"] = fusion.prompt_layers if fusion.accepts_prompts else 0
    torch.manual_seed(derive_seed(spec.seed, "strategy"))
    chosen = registry.load_class("strategy", spec.strategy.name)
    strategy: Strategy = construct_part(chosen, spec.strategy, "strategy", known)
    torch.manual_seed(derive_seed(spec.seed, "projectors"))
    model = MultimodalModel(encoders, strategy, fusion, known["width"], adapters)
    # A projector is the fusion's first layer: where nothing of the fusion's own trains, neither does it.
    model.projectors.requires_grad_(not own or any(p.requires_grad for p in own))
    if start:
        model.projectors.load_state_dict(_part(start, "projectors"))
        model.strategy.load_state_dict(_part(start, "strategy"))
    _check_patterns(model, spec)
    _try_out(model, examples, spec)
    return model


def _check_patterns(model: MultimodalModel, spec: TrialSpec) -> None:
    """Refuse what would spoil an adapter's sets of other patterns, or train one on rows of another."""
    parts = {**spec.adapters, FUSION: spec.fusion_adapter}
    own = [part for name, part in parts.items() if model.adapters[name].by_pattern]
    if not own:
        return
    reason = ""
    if type(model.strategy).hide is not Strategy.hide:
        reason = "hides modalities in training, so that rows are not of the pattern that is adapted to"
    elif model.strategy.state_dict():
        reason = "has parameters or statistics of its own, which every pattern shares"
    if reason:
        told = f"adapter '{own[0].name}' keeps parameters for each availability pattern, but strategy"
        raise InputError(f"{told} '{spec.strategy.name}' {reason}; take skip or zero_fill")


def hand_over(model: MultimodalModel, now: TrialSpec, then: TrialSpec) -> dict[str, Tensor]:
    """Give a model's state for a next phase, on plain weights: what was adapted is folded in first.

    An adapter by pattern cannot be, since its sets differ; it goes on, and InputError says where the next
    phase has another in its place.
    """
    parts = [(m, encoder, now.adapters[m], then.adapters[m]) for m, encoder in model.encoders.items()]
    for name, module, own, next_own in [
        *parts,
        (FUSION, model.fusion, now.fusion_adapter, then.fusion_adapter),
    ]:
        if not model.adapters[name].by_pattern:
            model.adapters[name].fold(module)
        elif own != next_own:
            raise InputError(
                f"adapter '{own.name}' keeps parameters for each availability pattern; the next phase has "
                f"'{next_own.name}' in its place, or other options: write the same adapter again, or restart"
            )
    return model.state_dict()


def _part(state: State, name: str) -> dict[str, Tensor]:
    prefix = f"{name}."
    return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}


def _build_encoder(
    m: Modality,
    spec: TrialSpec,
    dataset: Dataset,
    example: Tensor,
    known: Mapping[str, Any],
    registry: Registry,
) -> Encoder:
    part = spec.encoders[m]
    cls = registry.load_class("encoder", part.name)
    kind = dataset.modalities[m]
    if cls.kind != kind:  # type: ignore[attr-defined]
        raise InputError(f"encoders.{m}: '{part.name}' reads {cls.kind}, but '{m}' is {kind}")  # type: ignore[attr-defined]
    torch.manual_seed(derive_seed(spec.seed, "encoder", m))
    encoder: Encoder = construct_part(cls, part, "encoder", {**known, "modality": m, "example": example})
    return encoder


def _adapt(
    module: nn.Module,
    name: str,
    part: ComponentSpec,
    known: Mapping[str, Any],
    registry: Registry,
    start: State,
) -> Adapter:
    """Apply an adapter to an encoder or to the fusion, on the weights of `start` where there are some."""
    torch.manual_seed(derive_seed(known["seed"], "adapter", name))
    adapter: Adapter = construct_part(registry.load_class("adapter", part.name), part, "adapter", known)
    _make_room(module, start)
    plain = start.keys() == module.state_dict().keys()
    if plain:
        module.load_state_dict(start)
    adapter.apply(module)
    if start and not plain:
        module.load_state_dict(start)
    return adapter


def _make_room(module: nn.Module, start: State) -> None:
    """Give layers that were built without them the biases that folding an adapter has given others."""
    for name in start.keys() - module.state_dict().keys():
        parent, _, own = name.rpartition(".")
        for holder in (m for n, m in module.named_modules() if n == parent):
            if own in holder._parameters:  # registered as None
                holder.register_parameter(own, nn.Parameter(start[name].detach().clone()))


def construct_part(cls: type, part: ComponentSpec, kind: str, known: Mapping[str, Any]) -> Any:
    """Build a component; values that its constructor cannot use are the user's mistake, told as one."""
    try:
        return construct(cls, part.options, known)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        told = ", ".join(f"{k}={v!r}" for k, v in part.options.items())
        raise InputError(f"{kind} '{part.name}' cannot be built with {told}: {error}") from error


def _try_out(model: MultimodalModel, examples: Mapping[Modality, Tensor], spec: TrialSpec) -> None:
    """Run one made-up row, so that parts that do not fit are told before any work."""
    inputs = {m: e[None] for m, e in examples.items()}
    presence = {m: torch.ones(1, dtype=torch.bool) for m in examples}
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng():
            model.decode(model.encode(inputs, presence, presence), presence)
    except (TypeError, ValueError, RuntimeError, KeyError, IndexError) as error:
        names = f"strategy '{spec.strategy.name}', fusion '{spec.fusion.name}'"
        encoders = ", ".join(f"{m} '{e.name}'" for m, e in spec.encoders.items())
        raise InputError(f"{names} and encoders {encoders} do not go together: {error}") from error
