"""Assembles encoders, projectors, strategy and fusion into one model.

Leakage is impossible by construction: an encoder is given only rows that have its modality, and a strategy
only tokens, with zeros where something is absent or hidden.
"""

from collections.abc import Iterable, Mapping
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
    Presence,
    Strategy,
    TokenMap,
    Tokens,
)
from mmx.errors import InputError
from mmx.protocols import derive_seed
from mmx.registry import Registry
from mmx.registry.signature import construct

# The fused inference path of nn.TransformerEncoderLayer reads weights directly and skips every adapter.
torch.backends.mha.set_fastpath_enabled(False)


class MultimodalModel(nn.Module):
    """The whole line from raw inputs to logits, for any number of modalities."""

    def __init__(
        self, encoders: Mapping[Modality, Encoder], strategy: Strategy, fusion: Fusion, width: int
    ) -> None:
        super().__init__()
        self.modalities = tuple(encoders)
        self.encoders = nn.ModuleDict(encoders)
        self.projectors = nn.ModuleDict(
            {m: nn.Identity() if e.width == width else nn.Linear(e.width, width) for m, e in encoders.items()}
        )
        self.width = width
        self.strategy = strategy
        self.fusion = fusion

    def forward(self, batch: Batch) -> Output:
        """Run a batch; in training the strategy may hide more, and sees what it hid as targets."""
        visible = self.strategy.hide(batch.presence) if self.training else batch.presence
        wanted = batch.presence if self.training and self.strategy.uses_targets else visible
        tokens = self.encode(batch.inputs, wanted, visible)
        return self.decode(restrict(tokens, visible), visible, tokens if self.training else None)

    def encode(
        self, inputs: Mapping[Modality, Tensor], presence: Presence, pattern: Presence
    ) -> dict[Modality, Tokens]:
        """Encode what is present; `pattern` is the presence that the strategy chooses its prompts by."""
        return {m: self._encode_modality(m, inputs[m], presence[m], pattern) for m in self.modalities}

    def _encode_modality(self, m: Modality, raw: Tensor, present: Tensor, pattern: Presence) -> Tokens:
        rows = None if bool(present.all()) else present.nonzero()[:, 0]
        if rows is not None and len(rows) == 0:
            width = torch.zeros(len(present), 0, self.width, device=raw.device)
            return Tokens(width, width.new_zeros(width.shape[:2], dtype=torch.bool))
        arguments = self._prompt_arguments(m, pattern, rows)
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

    def decode(self, tokens: TokenMap, presence: Presence, targets: TokenMap | None = None) -> Output:
        """Adapt, fill and fuse tokens of which only the present ones are valid."""
        filled = self.strategy.fill(self.strategy.adapt(tokens, presence), presence, targets)
        logits: Logits
        if filled.prompts is None:
            logits = self.fusion(filled.tokens)
        else:
            logits = self.fusion(filled.tokens, prompts=filled.prompts)
        return Output(logits, filled.losses)

    def train(self, mode: bool = True) -> "MultimodalModel":
        """Switch mode; what is frozen in an encoder stays in evaluation mode, running statistics included."""
        super().train(mode)
        if mode:
            for encoder in self.encoders.values():
                if not any(p.requires_grad for p in encoder.parameters()):
                    encoder.eval()
                frozen = any(not p.requires_grad for p in encoder.parameters())
                for module in encoder.modules():
                    if isinstance(module, _BatchNorm):
                        own = [p.requires_grad for p in module.parameters()] or [not frozen]
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
    spec: TrialSpec, dataset: Dataset, examples: Mapping[Modality, Tensor], registry: Registry
) -> MultimodalModel:
    """Build a trial's model; each part draws its initial weights from (seed, part) alone.

    Raises InputError where the parts do not go together.
    """
    modalities = tuple(examples)
    known: dict[str, Any] = {"modalities": modalities, "task": dataset.task, "seed": spec.seed}
    encoders = {m: _build_encoder(m, spec, dataset, examples[m], known, registry) for m in modalities}
    known["width"] = max(e.width for e in encoders.values())
    known["encoders"] = {m: EncoderFacts.of(e) for m, e in encoders.items()}
    torch.manual_seed(derive_seed(spec.seed, "fusion"))
    fusion: Fusion = _construct(registry.load_class("fusion", spec.fusion.name), spec.fusion, "fusion", known)
    known["fusion_layers"] = fusion.prompt_layers if fusion.accepts_prompts else 0
    torch.manual_seed(derive_seed(spec.seed, "strategy"))
    chosen = registry.load_class("strategy", spec.strategy.name)
    strategy: Strategy = _construct(chosen, spec.strategy, "strategy", known)
    torch.manual_seed(derive_seed(spec.seed, "projectors"))
    model = MultimodalModel(encoders, strategy, fusion, known["width"])
    _try_out(model, examples, spec)
    return model


def _build_encoder(
    m: Modality,
    spec: TrialSpec,
    dataset: Dataset,
    example: Tensor,
    known: Mapping[str, Any],
    registry: Registry,
) -> Encoder:
    part, adapting = spec.encoders[m], spec.adapters[m]
    cls = registry.load_class("encoder", part.name)
    kind = dataset.modalities[m]
    if cls.kind != kind:  # type: ignore[attr-defined]
        raise InputError(f"encoders.{m}: '{part.name}' reads {cls.kind}, but '{m}' is {kind}")  # type: ignore[attr-defined]
    torch.manual_seed(derive_seed(spec.seed, "encoder", m))
    encoder: Encoder = _construct(cls, part, "encoder", {**known, "modality": m, "example": example})
    torch.manual_seed(derive_seed(spec.seed, "adapter", m))
    chosen = registry.load_class("adapter", adapting.name)
    adapter: Adapter = _construct(chosen, adapting, "adapter", {**known, "modality": m})
    adapter.apply(encoder)
    return encoder


def _construct(cls: type, part: ComponentSpec, kind: str, known: Mapping[str, Any]) -> Any:
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


def parts_of(model: MultimodalModel) -> Iterable[tuple[str, int, int]]:
    """List (part, trainable, total) parameters, for the table that is printed."""
    named = [*((f"encoder.{m}", e) for m, e in model.encoders.items())]
    named += [("projectors", model.projectors), ("strategy", model.strategy), ("fusion", model.fusion)]
    for name, part in named:
        counts = [(p.numel(), p.requires_grad) for p in part.parameters()]
        yield name, sum(n for n, trains in counts if trains), sum(n for n, _ in counts)
