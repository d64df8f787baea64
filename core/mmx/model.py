"""The model: encoders, projectors, strategy and fusion as one line.

Leakage is impossible by construction: an encoder is given only rows that have its modality, and a strategy
only tokens, with zeros where something is absent or hidden.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmx.contracts import (
    Adapter,
    Batch,
    Begun,
    Encoder,
    Fusion,
    Input,
    Logits,
    Modality,
    Output,
    Presence,
    Strategy,
    TokenMap,
    Tokens,
    restrict,
)

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
        self, inputs: Mapping[Modality, Input], presence: Presence, pattern: Presence
    ) -> dict[Modality, Tokens]:
        """Encode what is present; by `pattern`, a presence too, prompts and adapters are chosen."""
        return {m: self._encode_modality(m, inputs[m], presence[m], pattern) for m in self.modalities}

    def _encode_modality(self, m: Modality, raw: Input, present: Tensor, pattern: Presence) -> Tokens:
        rows = None if bool(present.all()) else present.nonzero()[:, 0]
        if rows is not None and len(rows) == 0:
            width = torch.zeros(len(present), 0, self.width, device=raw.device)
            return Tokens(width, width.new_zeros(width.shape[:2], dtype=torch.bool))
        arguments = self._prompt_arguments(m, pattern, rows)
        self._select(m, pattern if rows is None else {n: there[rows] for n, there in pattern.items()})
        values, valid = self._run_encoder(m, raw if rows is None else raw[rows], arguments)
        values = self.projectors[m](values)
        if rows is None:
            return Tokens(values, valid)
        size = (len(present), *values.shape[1:])
        return Tokens(
            values.new_zeros(size).index_copy(0, rows, values),
            valid.new_zeros(size[:2]).index_copy(0, rows, valid),
        )

    def _run_encoder(self, m: Modality, raw: Input, arguments: Mapping[str, Any]) -> Tokens:
        """Run an encoder, or what is left of it to do."""
        if not isinstance(raw, Begun):
            return self.encoders[m](raw, **arguments)
        encoder = cast(Encoder, self.encoders[m])
        return raw.tokens if raw.stage is None else encoder.advance(raw.tokens, raw.stage, encoder.depth)

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
        return Output(logits, filled.losses, filled.tokens, presence)

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


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Hash names and values, so that two states can be compared without keeping either."""
    sha = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()[:16]
