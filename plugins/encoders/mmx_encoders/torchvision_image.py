"""torchvision's image networks as encoders: one class, the network by name."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmx.contracts import Encoder, Tokens
from mmx.errors import InputError
from mmx_encoders.weights import from_hub, load_state, read_state, torch_hub_state

Name = Literal[
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "convnext_tiny",
    "vit_b_16",
    "swin_t",
]
WIDTHS = {
    "resnet18": 512,
    "resnet50": 2048,
    "mobilenet_v2": 1280,
    "mobilenet_v3_small": 576,
    "mobilenet_v3_large": 960,
    "convnext_tiny": 768,
    "vit_b_16": 768,
    "swin_t": 768,
}
HEADS = ("fc.", "classifier.", "heads.", "head.")
PATCH = 16

LORA = {
    "resnet": r"layer\d\.\d+\.(conv\d|downsample\.0)",
    # Of an inverted residual the two 1x1 convolutions; the one between them is depthwise.
    "mobilenet_v2": r"features\.(1\.conv\.1|([2-9]|1[0-7])\.conv\.(0\.0|2)|18\.0)",
    "mobilenet_v3": r"features\.(1\.block\.[12]\.0|([2-9]|1\d)\.block\.[023]\.0|1[26]\.0)",
    # The maps after the depthwise convolution, and those that halve the resolution.
    "convnext": r"features\.\d\.\d+\.block\.[35]|features\.[246]\.1",
    # Swin's attention reads the weights of qkv and proj directly, past any adapter on them.
    "swin": r"features\.\d\.\d+\.mlp\.[03]|features\.[246]\.reduction",
    "vit": r"encoder\.layers\.encoder_layer_\d+\.(self_attention|mlp\.[03])",
}
"""What LoRA adapts in each family, as a regex over the network's own names; no name of one is another's."""


class TorchvisionImage(Encoder):
    """Images (batch, 1 or 3 channels, height, width), floats in [0, 1], to a summary and a map of tokens.

    The summary is the pooled map that the network's own head would read, then come the map's places row by
    row; a ViT gives its class token and patches, and takes prompts at its input. `weights`: "hub" (the
    library's best for ImageNet), the name of a set of weights of the library, the path of a file, or "none".
    `size` is the side of the square that images are resized and cut to; the weights' own by default.
    `mean` and `std` (three numbers each) normalise what comes from elsewhere.
    """

    kind: ClassVar[str] = "image"
    lora_targets: ClassVar[str] = rf"network\.({'|'.join(LORA.values())})"

    def __init__(
        self,
        model: Name,
        weights: str = "hub",
        size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        from torchvision import models

        if size is not None and (size < 32 or (model == "vit_b_16" and size % PATCH)):
            raise InputError(
                f"encoder 'torchvision': size {size} is below 32, or no multiple of {PATCH} (ViT)"
            )
        self.model, self.width = model, WIDTHS[model]
        self.accepts_prompts = model == "vit_b_16"  # type: ignore[misc]
        known = models.get_model_weights(model)
        chosen = known[weights] if weights in known.__members__ else known.DEFAULT
        self.prepare = _transforms(chosen, size, mean, std)
        sized = {"image_size": size} if size and model == "vit_b_16" else {}
        self.network = _without_head(models.get_model(model, weights=None, **sized), model)
        if weights in ("hub", *known.__members__):
            state = from_hub(f"torchvision's {model}", lambda: torch_hub_state(chosen.url))
            self._load(state, chosen.url, size)
        elif weights != "none":
            self._load(read_state(weights), weights, size)

    def class_embedding(self) -> Float[Tensor, " width"] | None:
        """Give a ViT's class token with its position."""
        if self.model != "vit_b_16":
            return None
        token: Tensor = self.network.class_token[0, 0] + self.network.encoder.pos_embedding[0, 0]
        return token

    def forward(self, raw: Float[Tensor, "batch channels rows columns"], prompts: Any = None) -> Tokens:
        """Encode to [outputs of a ViT's prompts; summary; map]."""
        if raw.shape[1] not in (1, 3):
            raise ValueError(f"images have 1 or 3 channels, not {raw.shape[1]}")
        if prompts is not None and not self.accepts_prompts:
            raise ValueError(f"{self.model} takes no prompts")
        images = self.prepare(raw.float().expand(-1, 3, -1, -1))
        values = self._patches(images, prompts) if self.model == "vit_b_16" else self._map(images)
        return Tokens(values, values.new_ones(values.shape[:2], dtype=torch.bool))

    def _load(self, state: dict[str, Tensor], source: str, size: int | None) -> None:
        if self.model == "vit_b_16" and size and "encoder.pos_embedding" in state:
            from torchvision.models.vision_transformer import interpolate_embeddings

            state = interpolate_embeddings(size, PATCH, dict(state))
        load_state(self.network, state, source, HEADS)

    def _map(self, images: Float[Tensor, "batch 3 rows columns"]) -> Float[Tensor, "batch tokens width"]:
        net = self.network
        if self.model.startswith("resnet"):
            x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
            x = net.layer4(net.layer3(net.layer2(net.layer1(x))))
        else:
            x = net.features(images)
        if self.model == "swin_t":
            x = net.permute(net.norm(x))
        places = x.flatten(2)
        tokens = torch.cat([places.mean(dim=2, keepdim=True), places], dim=2)
        if self.model == "convnext_tiny":
            tokens = net.classifier(tokens[:, :, None])[:, :, 0]  # the norm that its head begins with
        return tokens.transpose(1, 2)

    def _patches(
        self,
        images: Float[Tensor, "batch 3 rows columns"],
        prompts: Float[Tensor, "batch prompts width"] | None,
    ) -> Float[Tensor, "batch tokens width"]:
        net = self.network
        x = net._process_input(images)
        x = torch.cat([net.class_token.expand(len(x), -1, -1), x], dim=1) + net.encoder.pos_embedding
        if prompts is not None:
            x = torch.cat([prompts, x], dim=1)
        values: Tensor = net.encoder.ln(net.encoder.layers(net.encoder.dropout(x)))
        return values


def _without_head(network: Any, model: str) -> Any:
    """Take the classifier off; ConvNeXt's begins with a norm that belongs to the features."""
    if model == "convnext_tiny":
        network.classifier = network.classifier[:1]
        return network
    heads = {"resnet": "fc", "mobilenet": "classifier", "vit": "heads", "swin": "head"}
    name = next(name for family, name in heads.items() if model.startswith(family))
    setattr(network, name, nn.Identity())
    return network


def _transforms(
    weights: Any, size: int | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Any:
    """Give the preprocessing that belongs to the weights, at another size or normalisation if asked."""
    changed: dict[str, Any] = {"crop_size": size, "resize_size": size} if size else {}
    changed |= {"mean": tuple(mean)} if mean else {}
    changed |= {"std": tuple(std)} if std else {}
    return weights.transforms(**changed)
