"""Audio backbones of Hugging Face transformers as encoders, by id, folder or configuration."""

from collections.abc import Mapping
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from mmx.contracts import Encoder, Tokens
from mmx.errors import InputError
from mmx_encoders.prompting import prompts_first
from mmx_encoders.sound import exactly
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
from mmx_encoders.transformers_image import run_with_prompts

TAKES_PROMPTS = "audio-spectrogram-transformer"


class TransformersAudio(Encoder):
    """Waveforms (batch, samples) in [-1, 1] at `sample_rate` to a summary and tokens in time.

    `model`: an id on the hub or a folder; its own feature extractor prepares the sound. Or `config` with
    `model_type` and what differs from that type's defaults, and the type's own extractor. Sound at another
    rate than the model's is resampled. `weights`: "hub" (those of `model`), the path of a file, or "none". Of
    Whisper the encoder is taken, and tokens of the silence that fills its window are left out. `summary`:
    "first" token, "mean" of all, or "auto": AST's class token, else the mean. AST takes prompts at its input.
    """

    kind: ClassVar[str] = "audio"
    lora_targets: ClassVar[str] = LORA_TARGETS

    def __init__(
        self,
        model: str = "",
        weights: str = "hub",
        config: Mapping[str, Any] | None = None,
        sample_rate: int = 16000,
        summary: Summary = "auto",
        revision: str | None = None,
    ) -> None:
        super().__init__()
        self.network = build_network("audio", model, weights, config, revision)
        self.width = width_of(self.network)
        self.sample_rate = sample_rate
        self.extractor = _extractor(model, self.network.config, revision)
        self.rule = summary_rule(self.network, "audio", summary)
        self.accepts_prompts = self.network.config.model_type == TAKES_PROMPTS  # type: ignore[misc]
        adapt_targets(self, self.network)

    def forward(self, raw: Float[Tensor, "batch samples"], prompts: Any = None) -> Tokens:
        """Encode to [outputs of AST's prompts; summary; tokens in time]."""
        name = self.network.main_input_name
        inputs, filled = self.features(raw, name)
        if prompts is not None:
            output = run_with_prompts(self.network, prompts, **{name: inputs})
            tokens = tokens_of(output, None, self.rule)
            return prompts_first(tokens, prompts.shape[1], tokens.values.shape[1] - prompts.shape[1])
        output = self.network(**{name: inputs})
        if filled < 1:
            length = output.last_hidden_state.shape[1]
            output.last_hidden_state = output.last_hidden_state[:, : max(1, round(filled * length))]
        return tokens_of(output, None, self.rule)

    def features(self, raw: Float[Tensor, "batch samples"], name: str) -> tuple[Tensor, float]:
        """Give what the extractor makes of the sound, and which part of Whisper's window the sound fills."""
        rate = self.extractor.sampling_rate
        with exactly(raw.device):
            sound = raw.float()
            if rate != self.sample_rate:
                from torchaudio.functional import resample

                sound = resample(sound, self.sample_rate, rate)
            rows = list(sound.cpu().numpy())
            features = self.extractor(rows, sampling_rate=rate, return_tensors="pt")[name].to(raw.device)
        window = getattr(self.extractor, "n_samples", 0)
        return features, min(1.0, sound.shape[1] / window) if window else 1.0


def _extractor(model: str, settings: Any, revision: str | None) -> Any:
    """Give the model's own feature extractor, or its type's for a configuration."""
    from transformers import AutoFeatureExtractor
    from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING

    if model:
        return pretrained(f"the feature extractor of '{model}'", AutoFeatureExtractor, model, revision)
    if type(settings) not in FEATURE_EXTRACTOR_MAPPING:
        raise InputError(
            f"encoder 'transformers_audio': no feature extractor is known for the type "
            f"'{settings.model_type}'; give model: an id, or a folder that has one"
        )
    kind: Any = FEATURE_EXTRACTOR_MAPPING[type(settings)]
    if settings.model_type == TAKES_PROMPTS:
        return kind(num_mel_bins=settings.num_mel_bins, max_length=settings.max_length)
    if settings.model_type == "whisper":  # two frames of 10 ms a token
        return kind(feature_size=settings.num_mel_bins, chunk_length=settings.max_source_positions // 50)
    return kind()
