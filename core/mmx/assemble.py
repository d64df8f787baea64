"""Builds models from specs: parts from the registry, initial weights from the seed, adapters on top.

Between two phases of a trial stands nothing but a state, which `hand_over` gives and `build_model` takes.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmx.config import ComponentSpec, TrialSpec
from mmx.contracts import (
    Adapter,
    Dataset,
    Encoder,
    EncoderFacts,
    Fusion,
    Modality,
    Pattern,
    Strategy,
)
from mmx.errors import InputError
from mmx.model import FUSION, MultimodalModel
from mmx.protocols import derive_seed
from mmx.registry import Registry
from mmx.registry.signature import construct

State = Mapping[str, Tensor]


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
    for m in modalities:
        adapters[m].meet({n: adapter for n, adapter in adapters.items() if n != m})
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
        if kept := _part(start, "strategy"):  # none where the phase before had another strategy
            model.strategy.load_state_dict(kept)
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
    phase has another in its place. A strategy goes on where the next phase has the same one, else it starts
    anew there.
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
    state = model.state_dict()
    if now.strategy != then.strategy:
        state = {n: t for n, t in state.items() if not n.startswith("strategy.")}
    return state


def take_trained(model: MultimodalModel, state: State) -> None:
    """Give a model that was built anew what training changed in one like it.

    InputError where the state does not fit it, or lacks something that would have been trained.
    """
    known = model.state_dict()
    # Of what is calibrated, only training tells which part of it trains.
    open_ends = tuple(
        name if name == FUSION else f"encoders.{name}."
        for name, adapter in model.adapters.items()
        if adapter.calibration_batches
    )
    wrong = [n for n, t in state.items() if n not in known or known[n].shape != t.shape]
    lacking = [n for n in model.trained_state() if n not in state and not n.startswith(open_ends)]
    if wrong or lacking:
        told = ", ".join((wrong + lacking)[:3])
        raise InputError(
            f"trained weights do not fit the model that the spec builds now ({told}, …); `mmx repro` says "
            f"what changed since"
        )
    model.load_state_dict(state, strict=False)


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
