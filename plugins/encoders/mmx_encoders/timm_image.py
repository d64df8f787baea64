"""timm's image networks as encoders: one class, the network by name."""

import difflib
import re
import sys
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmx.contracts import Encoder, Tokens
from mmx.errors import InputError
from mmx_encoders.prompting import prompts_behind, prompts_first
from mmx_encoders.weights import first_line, from_hub, is_offline, load_state, read_state

ENDS = re.compile(r"network\.(stem|patch_embed|pos_embed|conv_stem|conv1|head)\b.*")
"""Names of stems and heads, which LoRA leaves alone."""
GATES = frozenset(["SEModule", "SqueezeExcite", "SqueezeExciteCl", "EffectiveSEModule", "GatherExcite"])
"""Classes of squeeze and excitation, which it leaves alone too."""
FILES = ("model.safetensors", "pytorch_model.bin")
"""What timm's weights are called on the hub, the first choice first."""


class TimmImage(Encoder):
    """Images (batch, 1 or 3 channels, height, width), floats in [0, 1], to a summary and the other tokens.

    `model`: any name of `timm.list_models()`, with a tag of its weights where there are several. The summary
    is what the network's own head would read. Then come a transformer's other tokens, or the places of a
    network's map row by row, each as the head would read it alone. `weights`: "hub" (those that timm has
    trained under the name), the path of a file, or "none". `size` is the side of the square that images are
    resized and cut to; the model's own by default. `mean` and `std` (three numbers each) normalise what comes
    from elsewhere. Plain ViTs take prompts at their input.

    LoRA adapts every plain linear map and convolution without groups that the network calls, but for stem,
    head, and squeeze and excitation. So maps are left out whose weights are read past any adapter (attention
    of BEiT and Swin 2), and convolutions that pad or standardise in a way of their own.
    """

    kind: ClassVar[str] = "image"
    lora_targets: ClassVar[str] = r"network\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])"

    def __init__(
        self,
        model: str,
        weights: str = "hub",
        size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        from timm.data import create_transform, resolve_model_data_config
        from timm.models.vision_transformer import VisionTransformer

        self.network = _network(model, weights, size)
        told: dict[str, Any] = {"mean": mean, "std": std}
        if size:
            told |= {"input_size": (3, size, size), "crop_pct": 1.0}
        config = resolve_model_data_config(self.network, args={n: v for n, v in told.items() if v})
        self.prepare = create_transform(**config, is_training=False)
        self.accepts_prompts = type(self.network) is VisionTransformer  # type: ignore[misc]
        self._try(model, config["input_size"])

    def class_embedding(self) -> Float[Tensor, " width"] | None:
        """Give a plain ViT's class token, with its position where it has one."""
        token = getattr(self.network, "cls_token", None)
        if not self.accepts_prompts or token is None:
            return None
        has_position = self.network.pos_embed is not None and not self.network.no_embed_class
        return token[0, 0] + self.network.pos_embed[0, 0] if has_position else token[0, 0]

    def forward(self, raw: Float[Tensor, "batch channels rows columns"], prompts: Any = None) -> Tokens:
        """Encode to [outputs of a ViT's prompts; summary; the others]."""
        if raw.shape[1] not in (1, 3):
            raise ValueError(f"images have 1 or 3 channels, not {raw.shape[1]}")
        images = self.prepare(raw.float().expand(-1, 3, -1, -1))
        if prompts is None:
            return _all_valid(self._summed_up(self.network.forward_features(images)))
        if not self.accepts_prompts:
            raise ValueError(f"{type(self.network).__name__} takes no prompts")
        with prompts_behind(self.network.blocks[0], prompts):
            features = self.network.forward_features(images)
        own = self._summed_up(features[:, : -prompts.shape[1]])
        values = torch.cat([own, features[:, -prompts.shape[1] :]], dim=1)
        return prompts_first(_all_valid(values), prompts.shape[1], own.shape[1])

    def _summed_up(self, features: Tensor) -> Float[Tensor, "batch tokens width"]:
        """Put what the head would read in front of tokens; a map's places pass the head one by one."""
        summary = self.network.forward_head(features, pre_logits=True)[:, None]
        if features.ndim == 3:
            return features if self.first_sums_up else torch.cat([summary, features], dim=1)
        nhwc = getattr(self.network, "output_fmt", "NCHW") == "NHWC"
        places = features if nhwc else features.permute(0, 2, 3, 1)
        each = places.flatten(0, 2)[:, None, None]
        each = self.network.forward_head(each if nhwc else each.permute(0, 3, 1, 2), pre_logits=True)
        return torch.cat([summary, each.unflatten(0, (len(features), -1))], dim=1)

    def _try(self, model: str, shape: Sequence[int]) -> None:
        """Run once, to learn what the network gives, and which of its maps an adapter can reach."""
        called: list[nn.Module] = []
        hooks = [
            m.register_forward_hook(lambda module, *_: called.append(module))
            for m in self.network.modules()
            if type(m) in (nn.Linear, nn.Conv2d)
        ]
        image = torch.linspace(-1, 1, shape[1] * shape[2]).view(1, 1, *shape[1:]).expand(1, *shape)
        self.network.eval()
        try:
            with torch.no_grad():
                features = self.network.forward_features(image)
                summary = self.network.forward_head(features, pre_logits=True)
                self.first_sums_up = features.ndim == 3 and torch.equal(summary, features[:, 0])
                self.width = self._summed_up(features).shape[2]
        except (AttributeError, TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise InputError(
                f"encoder 'timm': '{model}' gives no tokens for images of {shape[1]}x{shape[2]} "
                f"({first_line(error)}); leave size out, or take another model"
            ) from error
        finally:
            for hook in hooks:
                hook.remove()
        self.network.train()
        self.lora_targets = _pattern(self, called[1:])  # type: ignore[misc]


def _network(model: str, weights: str, size: int | None) -> Any:
    """Build a network without its classifier, with its weights (InputError where one cannot be had)."""
    import timm

    if not timm.is_model(model.partition(".")[0]):
        near = difflib.get_close_matches(model, timm.list_models(), n=1)
        hint = f"Did you mean '{near[0]}'?" if near else "timm.list_models() tells all names"
        raise InputError(f"encoder 'timm': '{model}' is no model of timm {timm.__version__}. {hint}")
    if weights == "hub":
        return _sized(from_hub(f"timm's {model}", lambda: _pretrained(model)), size)
    try:
        network = timm.create_model(model, num_classes=0)
    except RuntimeError as error:  # a tag that there is not
        raise InputError(f"encoder 'timm': {first_line(error)}; leave the tag of '{model}' out") from error
    state = None if weights == "none" else read_state(weights)
    own = getattr(network, "pos_embed", None)
    if state is None or (own is not None and "pos_embed" in state and state["pos_embed"].shape != own.shape):
        network = _sized(network, size)  # the file is of images of that size
    if state is not None:
        _load(network, state, weights)
    return _sized(network, size)


def _pretrained(model: str) -> nn.Module:
    """Load a network of the hub; offline only from its cache (OSError, RuntimeError)."""
    import timm
    from huggingface_hub import try_to_load_from_cache

    if not is_offline():
        return timm.create_model(model, pretrained=True, num_classes=0)
    published = timm.get_pretrained_cfg(model)
    place = published.hf_hub_id if published else ""
    found = [try_to_load_from_cache(place, name) for name in FILES] if place else []
    cached = next((path for path in found if isinstance(path, str)), None)
    if cached is None:
        raise OSError(f"'{place or model}' is not in the hub's cache")
    # Read here, where code in a file is never run, whatever the version of timm.
    overlay = {"state_dict": read_state(cached), "custom_load": False}
    return timm.create_model(model, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay)


def _load(network: Any, state: dict[str, Tensor], source: str) -> None:
    """Load a file; names of older versions pass the filter that the model's own module has for them."""
    older = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if older is not None and not network.state_dict().keys() <= state.keys():
        state = older(state, network)
    heads = network.pretrained_cfg.get("classifier") or ()
    load_state(
        network, state, source, [f"{name}." for name in ([heads] if isinstance(heads, str) else heads)]
    )


def _sized(network: Any, size: int | None) -> Any:
    """Make it read squares of a size, where it must be told."""
    if size and hasattr(network, "set_input_size"):
        try:
            network.set_input_size(img_size=(size, size))
        except (AssertionError, ValueError, RuntimeError) as error:
            raise InputError(f"encoder 'timm': size {size}: {first_line(error)}; take another") from error
    return network


def _pattern(encoder: nn.Module, called: Sequence[nn.Module]) -> str:
    """Write the names of what LoRA adapts as a regex; a number that makes no difference may be any."""
    reached = {id(module) for module in called if getattr(module, "groups", 1) == 1}
    gates = tuple(f"{n}." for n, m in encoder.named_modules() if type(m).__name__ in GATES)
    names = {
        n: id(m) in reached and not n.startswith(gates) and not ENDS.fullmatch(n)
        for n, m in encoder.named_modules()
    }
    parts = []
    for name in (n for n, adapted in names.items() if adapted):
        wide = re.sub(r"\d+", r"\\d+", re.escape(name))
        exact = any(not adapted and re.fullmatch(wide, other) for other, adapted in names.items())
        parts.append(re.escape(name) if exact else wide)
    return "|".join(dict.fromkeys(parts))


def _all_valid(values: Tensor) -> Tokens:
    return Tokens(values, values.new_ones(values.shape[:2], dtype=torch.bool))
