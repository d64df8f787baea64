"""Text backbones of Hugging Face transformers as encoders, by id, folder or configuration."""

import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from mmx.contracts import Encoder, Tokens
from mmx.errors import InputError
from mmx_encoders.prompting import prompts_first
from mmx_encoders.transformers_backbone import (
    FIRST_SUMS_UP,
    LORA_TARGETS,
    Summary,
    adapt_targets,
    build_network,
    summary_rule,
    tokens_of,
    width_of,
)


class TransformersText(Encoder):
    """Token ids (batch, tokens), padded with `pad_id` to one length, to tokens that are valid where text is.

    `model`: an id on the hub or a folder; or `config` with `model_type` and what differs from that type's
    defaults. `weights`: "hub" (those of `model`), the path of a file, or "none". `summary`: "first" token,
    "mean" of the valid ones (sentence-transformers), or "auto": what the model pools by itself (CLIP), the
    first token where it was trained for it (BERT and its kin), else the mean. BERT and its kin take prompts
    at their input, where words are embedded as wide as tokens are.
    """

    kind: ClassVar[str] = "text"
    lora_targets: ClassVar[str] = LORA_TARGETS

    def __init__(
        self,
        model: str = "",
        weights: str = "hub",
        config: Mapping[str, Any] | None = None,
        summary: Summary = "auto",
        pad_id: int | None = None,
        revision: str | None = None,
    ) -> None:
        super().__init__()
        self.network = build_network("text", model, weights, config, revision)
        self.width = width_of(self.network)
        settings = self.network.config
        own = getattr(settings, "pad_token_id", None)
        self.pad_id = pad_id if pad_id is not None else own or 0
        self.pads_with_end = self.pad_id == getattr(settings, "eos_token_id", None)
        self.rule = summary_rule(self.network, "text", summary)
        embedding = getattr(self.network.get_input_embeddings(), "embedding_dim", 0)
        # ALBERT and small ELECTRAs embed words in fewer numbers than their tokens have.
        takes = settings.model_type in FIRST_SUMS_UP and embedding == self.width
        self.accepts_prompts = takes  # type: ignore[misc]
        self.positions = _positions(self.network)
        adapt_targets(self, self.network)

    def forward(self, raw: Tensor, prompts: Any = None) -> Tokens:
        """Encode to [outputs of prompts; summary; tokens]."""
        ids = raw.long()
        length = ids.shape[1] + (0 if prompts is None else prompts.shape[1])
        if length > self.positions:
            raise InputError(
                f"encoder 'transformers_text': {length} tokens, prompts included, are more than the "
                f"{self.positions} positions of the network; lower the dataset's text_length"
            )
        valid = self.valid(ids)
        if prompts is None:
            return tokens_of(self.network(input_ids=ids, attention_mask=valid.long()), valid, self.rule)
        embedded = self.network.get_input_embeddings()(ids)
        longer = torch.cat([embedded, prompts.to(embedded)], dim=1)
        valid = torch.cat([valid, valid.new_ones(prompts.shape[:2])], dim=1)
        output = self.network(inputs_embeds=longer, attention_mask=valid.long())
        tokens = tokens_of(output, valid, self.rule)
        return prompts_first(tokens, prompts.shape[1], tokens.values.shape[1] - prompts.shape[1])

    def valid(self, ids: Tensor) -> Bool[Tensor, "batch tokens"]:
        """Tell text from padding; the first token counts as text, and so does an end that is also the pad."""
        padding = ids == self.pad_id
        if self.pads_with_end:
            padding &= padding.cumsum(dim=1) > 1
        return ~padding | (torch.arange(ids.shape[1], device=ids.device) == 0)


def _positions(network: nn.Module) -> int:
    """Count the tokens that a network with a table of positions can tell apart; no end where it has none."""
    ends = (".position_embeddings", ".position_embedding")
    tables = [m for n, m in network.named_modules() if n.endswith(ends) and isinstance(m, nn.Embedding)]
    # RoBERTa and its kin begin to count after the padding's place.
    counts = [t.num_embeddings - (0 if t.padding_idx is None else t.padding_idx + 1) for t in tables]
    return min(counts, default=sys.maxsize)
