"""Image backbones of Hugging Face transformers as encoders, by id, folder or configuration."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmx.contracts import Encoder, Tokens
from mmx_encoders.prompting import prompts_behind, prompts_first
from mmx_encoders.transformers_backbone import (
    LORA_TARGETS,
    Summary,
    adapt_targets,
    build_network,
    pretrained,
    summary_rule,
    tokens_of,
    width_of,
)

TAKE_PROMPTS = frozenset(
    ["vit", "deit", "dinov2", "dinov2_with_registers", "clip_vision_model", "siglip_vision_model"]
)
"""Models whose blocks see a set of tokens: positions are added before the first."""


class TransformersImage(Encoder):
    """Images (batch, 1 or 3 channels, height, width), floats in [0, 1], to a summary and patch tokens.

    `model`: an id on the hub or a folder; its own image processor prepares the images. Or `config` with
    `model_type` and what differs from that type's defaults; images are then resized to `image_size` and
    normalised as is usual for the type. `mean` and `std` (three numbers each) normalise otherwise.
    `weights`: "hub" (those of `model`), the path of a file, or "none". Of CLIP and SigLIP the vision tower is
    taken. `summary`: "first" token, "mean" of all, or "auto": what the model pools by itself (CLIP, SigLIP),
    the class token where there is one, else the mean. ViT, DeiT, DINOv2, CLIP and SigLIP take prompts at
    their input.
    """

    kind: ClassVar[str] = "image"
    lora_targets: ClassVar[str] = LORA_TARGETS

    def __init__(
        self,
        model: str = "",
        weights: str = "hub",
        config: Mapping[str, Any] | None = None,
        summary: Summary = "auto",
        revision: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.network = build_network("image", model, weights, config, revision)
        self.width = width_of(self.network)
        self.processor = _processor(model, self.network.config, revision)
        given = {"image_mean": mean, "image_std": std}
        self.normalisation = {name: list(numbers) for name, numbers in given.items() if numbers}
        self.rule = summary_rule(self.network, "image", summary)
        self.accepts_prompts = self.network.config.model_type in TAKE_PROMPTS  # type: ignore[misc]
        adapt_targets(self, self.network)

    def forward(self, raw: Float[Tensor, "batch channels rows columns"], prompts: Any = None) -> Tokens:
        """Encode to [outputs of prompts; summary; patches]."""
        if raw.shape[1] not in (1, 3):
            raise ValueError(f"images have 1 or 3 channels, not {raw.shape[1]}")
        with torch.no_grad():
            images = self.processor(
                images=raw.float().expand(-1, 3, -1, -1),
                do_rescale=False,
                input_data_format="channels_first",
                return_tensors="pt",
                **self.normalisation,
            )["pixel_values"].to(raw.device)
        if prompts is None:
            return tokens_of(self.network(pixel_values=images), None, self.rule)
        tokens = tokens_of(run_with_prompts(self.network, prompts, pixel_values=images), None, self.rule)
        return prompts_first(tokens, prompts.shape[1], tokens.values.shape[1] - prompts.shape[1])


def run_with_prompts(network: nn.Module, prompts: Float[Tensor, "batch prompts width"], **inputs: Any) -> Any:
    """Run a network with prompts behind its own tokens, from its first block on."""
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    with prompts_behind(max(lists, key=len)[0], prompts):
        return network(**inputs)


def _processor(model: str, settings: Any, revision: str | None) -> Any:
    """Give the model's own image processor, or for a configuration one that normalises as its type does."""
    from transformers import AutoImageProcessor, ViTImageProcessor

    if model:
        return pretrained(f"the image processor of '{model}'", AutoImageProcessor, model, revision)
    size = getattr(settings, "image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    own = _usual_processor(settings.model_type.removesuffix("_vision_model"))
    known = {name: getattr(own, name, None) for name in ("image_mean", "image_std", "resample")}
    told = {name: value for name, value in known.items() if value is not None}
    return ViTImageProcessor(size={"height": height, "width": width}, **told)


def _usual_processor(model_type: str) -> Any:
    """Give the image processor that the library has for a type of model, as it is by default; None: none."""
    import transformers
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    names: Any = IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type) or {}
    kind = getattr(transformers, names.get("torchvision") or "", None)
    return kind() if kind else None
