"""torchaudio's speech networks as encoders: wav2vec 2.0, HuBERT and WavLM, by the name of a pipeline."""

from collections.abc import Mapping
from typing import Any, ClassVar
from urllib.parse import urljoin

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mmx.contracts import Encoder, Tokens
from mmx.errors import InputError, did_you_mean
from mmx_encoders.sound import RATE, at_rate
from mmx_encoders.weights import from_hub, load_state, read_state, torch_hub_state

HUB = "https://download.pytorch.org/torchaudio/models/"
LAYER = r"network\.encoder\.transformer\.layers\.\d+\."
WEIGHT_NORM = {
    "weight_g": "parametrizations.weight.original0",
    "weight_v": "parametrizations.weight.original1",
}
"""How weight normalisation names its two parts in older files, and now."""


class TorchaudioSpeech(Encoder):
    """Waveforms (batch, samples) in [-1, 1] at `sample_rate` to their mean and tokens, one each 20 ms.

    `model` is the name of a pipeline (WAV2VEC2_BASE, HUBERT_BASE, WAVLM_BASE, …; a head for letters is left
    out). `weights`: "hub", the path of a file by the names of torchaudio, or "none". `config` changes single
    parameters of the network. Pipelines that normalise do so a clip, where torchaudio does it a batch.
    Dropping of layers is off. It takes no prompts: positions come from a convolution over all tokens.
    """

    kind: ClassVar[str] = "audio"
    lora_targets: ClassVar[str] = rf"{LAYER}attention\.(q|k|v|out)_proj"

    def __init__(
        self,
        model: str,
        weights: str = "hub",
        sample_rate: int = RATE,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        from torchaudio import models

        bundle = _bundle(model)
        if config and weights == "hub":
            raise InputError(
                "encoder 'torchaudio': with config the hub's weights do not fit; give a path or none"
            )
        settings = {**bundle._params, **(config or {}), "aux_num_out": None, "encoder_layer_drop": 0.0}
        self.sample_rate, self.normalises = sample_rate, bundle._normalize_waveform
        self.width = int(settings["encoder_embed_dim"])
        if bundle._model_type == "WavLM":
            # Its attention reads the weights of nn.MultiheadAttention directly, past any adapter.
            self.lora_targets = rf"{LAYER}feed_forward\.(intermediate|output)_dense"  # type: ignore[misc]
            self.network = models.wavlm_model(**settings)
        else:
            self.network = models.wav2vec2_model(**settings)
        if weights == "hub":
            address = urljoin(HUB, bundle._path)  # some pipelines give a whole address
            state = from_hub(f"torchaudio's {model}", lambda: torch_hub_state(address))
            load_state(self.network, _renamed(state), bundle._path, ("aux.",))
        elif weights != "none":
            load_state(self.network, _renamed(read_state(weights)), weights, ("aux.",))

    def forward(self, raw: Float[Tensor, "batch samples"], prompts: Any = None) -> Tokens:
        """Encode to [mean; tokens in time]."""
        if prompts is not None:
            raise ValueError("torchaudio's speech networks take no prompts")
        sound = at_rate(raw, self.sample_rate)
        if self.normalises:
            sound = F.layer_norm(sound, sound.shape[1:])
        values, _ = self.network(sound)
        values = torch.cat([values.mean(dim=1, keepdim=True), values], dim=1)
        return Tokens(values, values.new_ones(values.shape[:2], dtype=torch.bool))


def _bundle(name: str) -> Any:
    """Give a pipeline, or say which there are."""
    from torchaudio import pipelines

    known = {
        n: getattr(pipelines, n) for n in pipelines.__all__ if n.startswith(("WAV2VEC2", "HUBERT", "WAVLM"))
    }
    if name not in known:
        raise InputError(f"encoder 'torchaudio': there is no pipeline '{name}'.{did_you_mean(name, known)}")
    return known[name]


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    def name(key: str) -> str:
        parent, _, own = key.rpartition(".")
        return f"{parent}.{WEIGHT_NORM.get(own, own)}" if parent else key

    return {name(key): tensor for key, tensor in state.items()}
