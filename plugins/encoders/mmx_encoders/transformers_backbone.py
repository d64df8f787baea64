"""What the encoders from Hugging Face transformers share: loading, towers, tokens, LoRA targets."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmx.contracts import Encoder, Tokens
from mmx.errors import InputError
from mmx_encoders.weights import from_hub, is_offline, read_state

Summary = Literal["auto", "first", "mean"]

ATTENTION = r"(.+\.)?(attention|attn|self_attn|SelfAttention)\.((self|attention|attn)\.)?"
MAPS = (
    r"(query|key|value|q|k|v|o|out)(_proj|_lin)?|dense|output\.dense|Wqkv|Wo|in_proj|query_key_value|qkv|proj"
    r"|projection|linear_(q|k|v|out)"
)
LORA_TARGETS = rf"network\.(.+\.)?\d+\.({ATTENTION}({MAPS})|pwconv[12])"
"""The attention maps of numbered layers, and ConvNeXt's linear maps. Attention outside of layers, such as the
pooling head of SigLIP, reads its weights past any adapter."""
LORA_BESIDES_ATTENTION = {
    "wavlm": r"network\.(.+\.)?\d+\.feed_forward\.(intermediate|output)_dense",
    "resnet": r"network\.encoder\.(.+\.)?\d+\.(layer\.\d+|shortcut)\.convolution",
}
"""What to adapt where there is no attention, or one that reads weights directly and past any adapter."""
TOWERS = {"image": "vision_model", "text": "text_model", "audio": "audio_model"}
UNUSED = ("pooler", "mask_token", "masked_spec_embed")
"""Parts of a network that never see a gradient here. Heads that pool (SigLIP) have other names."""
FIRST_SUMS_UP = frozenset(
    {
        *("albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert"),
        *("electra", "ernie", "modernbert", "roberta", "xlm-roberta"),
    }
)
"""Text models whose first token was trained to stand for the whole."""


def build_network(
    kind: str, model: str, weights: str, config: Mapping[str, Any] | None, revision: str | None
) -> Any:
    """Build the network that reads a kind of modality, with its weights, without what it has no use for.

    Raises InputError where the options say too little, or the weights cannot be had or do not fit.
    """
    from transformers import AutoConfig, AutoModel

    if not model and (config is None or weights == "hub"):
        raise InputError(
            f"encoder 'transformers_{kind}': give model (an id or a folder), or config with weights: PATH or "
            "weights: none"
        )
    model = _place(model, kind)
    with _quietly():
        if config is not None:
            settings = AutoConfig.for_model(**config)
        else:
            settings = pretrained(f"'{model}'", AutoConfig, model, revision)
        _calm(settings)
        if weights == "hub":
            exact = {"config": settings, "dtype": torch.float32}
            network = pretrained(f"'{model}'", AutoModel, model, revision, **exact)
        else:
            network = AutoModel.from_config(settings)
            if weights != "none":
                network = _with_state(network, weights)
    return _strip(_tower(network, kind))


def _place(model: str, kind: str) -> str:
    """Give the path of a folder, or an id as it is; what can be no id must be a folder (InputError)."""
    if not model.startswith(("/", "~", ".")):
        return model
    folder = Path(model).expanduser()
    if not (folder / "config.json").is_file():
        raise InputError(
            f"encoder 'transformers_{kind}': no 'config.json' in the folder '{model}'; give a folder that "
            "save_pretrained wrote, or an id on the hub"
        )
    return str(folder)


def pretrained(what: str, loader: Any, model: str, revision: str | None, **options: Any) -> Any:
    """Load a part of a published model by a class of the library (InputError where it cannot be had)."""
    known = {"local_files_only": is_offline(), "revision": revision, **options}
    return from_hub(what, lambda: loader.from_pretrained(model, **known))


def summary_rule(network: Any, kind: str, asked: Summary) -> Summary:
    """Say what sums the input up; "auto" remains where the network may pool by itself, else it means it."""
    if asked != "auto":
        return asked
    if kind == "text":
        return "first" if network.config.model_type in FIRST_SUMS_UP else "auto"
    marks = ("cls_token", "class_embedding")
    has_class = any(name.endswith(marks) for name, _ in network.named_parameters())
    return "first" if has_class and not hasattr(network, "post_layernorm") else "auto"


def tokens_of(output: Any, valid: Bool[Tensor, "batch tokens"] | None, rule: Summary) -> Tokens:
    """Make tokens of a network's output: by rule "first" as they are, else with a summary in front.

    "mean" is over valid tokens; "auto" is what the network pools by itself, and the mean where it does not.
    """
    values = output.last_hidden_state
    if values.ndim == 4:  # the map of a convolutional network
        values = values.flatten(2).transpose(1, 2)
    if valid is None:
        valid = values.new_ones(values.shape[:2], dtype=torch.bool)
    if rule == "first":
        return Tokens(values, valid)
    pooled = getattr(output, "pooler_output", None) if rule == "auto" else None
    summary = masked_mean(values, valid) if pooled is None else pooled.flatten(1)
    values = torch.cat([summary[:, None], values], dim=1)
    return Tokens(values, torch.cat([valid.new_ones(len(valid), 1), valid], dim=1))


def masked_mean(
    values: Float[Tensor, "batch tokens width"], valid: Bool[Tensor, "batch tokens"]
) -> Float[Tensor, "batch width"]:
    """Give the mean of the valid tokens."""
    weights = valid[:, :, None].to(values)
    return (values * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def width_of(network: Any) -> int:
    """Give the width of a network's tokens; where its settings do not tell, a blank image does."""
    settings = network.config
    told = getattr(settings, "hidden_size", 0) or (getattr(settings, "hidden_sizes", None) or [0])[-1]
    if told:
        return int(told)
    side = getattr(settings, "image_size", 224)
    with torch.no_grad():
        output = network.eval()(pixel_values=torch.zeros(1, 3, side, side))
    return int(output.last_hidden_state.shape[1])


def adapt_targets(encoder: Encoder, network: Any) -> None:
    """Tell LoRA where to go in networks whose attention it cannot reach."""
    kind = network.config.model_type
    if kind in LORA_BESIDES_ATTENTION:
        encoder.lora_targets = LORA_BESIDES_ATTENTION[kind]  # type: ignore[misc]


def _with_state(network: Any, path: str) -> Any:
    """Load a file by the library's own rules, which know the names of older versions."""
    loaded, found = type(network).from_pretrained(
        None,
        config=network.config,
        state_dict=read_state(path),
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    lacking = sorted(n for n in found["missing_keys"] if not any(part in UNUSED for part in n.split(".")))
    wrong = sorted(str(key[0]) for key in found["mismatched_keys"])
    if lacking or wrong:
        raise InputError(
            f"weights '{path}' are not of this {network.config.model_type}: {len(lacking)} tensors are "
            f"lacking, {len(wrong)} have another shape ('{(wrong + lacking)[0]}', …); check model or config"
        )
    return loaded


def _calm(settings: Any) -> None:
    """Switch off what draws by chance in training outside of torch's generator, or skips whole layers."""
    for name, value in {"apply_spec_augment": False, "layerdrop": 0.0, "encoder_layerdrop": 0.0}.items():
        if hasattr(settings, name):
            setattr(settings, name, value)


def _tower(network: Any, kind: str) -> Any:
    """Take the part that reads the kind: of two towers its own, of an encoder and a decoder the encoder."""
    if isinstance(getattr(network, TOWERS[kind], None), nn.Module):
        return getattr(network, TOWERS[kind])
    return network.get_encoder() if network.config.is_encoder_decoder else network


def _strip(network: Any) -> Any:
    for module in network.modules():
        for name in UNUSED:
            part = module._modules.get(name)
            pools = part is not None and not any(True for _ in part.parameters())  # ResNet's mean
            if name in module._parameters or (part is not None and not pools):
                setattr(module, name, None)
    return network


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep the library's bars and reports of loading off the screen; what matters is raised."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
