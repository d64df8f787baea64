"""torchaudio's speech networks, tiny and random."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mmx.builtin.adapters.lora import Lora
from mmx.errors import InputError
from mmx_encoders.torchaudio_speech import TorchaudioSpeech

TINY: dict[str, Any] = {
    "extractor_conv_layer_config": [[16, 10, 5], [16, 3, 4], [16, 2, 4], [16, 2, 4]],
    "encoder_embed_dim": 32,
    "encoder_pos_conv_kernel": 16,
    "encoder_pos_conv_groups": 2,
    "encoder_num_layers": 2,
    "encoder_num_heads": 2,
    "encoder_ff_interm_features": 64,
}
PIPELINES = ["WAV2VEC2_BASE", "HUBERT_BASE", "WAVLM_BASE", "WAV2VEC2_XLSR53", "WAV2VEC2_ASR_BASE_960H"]
SOUND = 0.1 * torch.randn(2, 16000, generator=torch.Generator().manual_seed(0))
EVERY = pytest.mark.parametrize("model", PIPELINES)


def build(model: str, weights: str = "none", **options: Any) -> TorchaudioSpeech:
    torch.manual_seed(0)
    return TorchaudioSpeech(model, weights=weights, config=TINY, **options).eval()


@EVERY
def test_tokens_are_a_mean_and_times_all_valid(model: str) -> None:
    values, valid = build(model)(SOUND)
    assert values.shape == (2, 51, 32) and bool(valid.all())
    torch.testing.assert_close(values[:, 0], values[:, 1:].mean(dim=1))


@EVERY
def test_a_clip_is_encoded_alike_whoever_is_in_the_batch(model: str) -> None:
    encoder = build(model)
    with torch.no_grad():
        together, alone = encoder(torch.cat([SOUND[:1], 9 * SOUND[1:]])), encoder(SOUND[:1])
    torch.testing.assert_close(together.values[:1], alone.values, atol=1e-5, rtol=1e-4)


@EVERY
def test_no_parameter_is_left_without_use(model: str) -> None:
    encoder = build(model)
    values = encoder(SOUND).values
    (values * torch.randn(values.shape)).sum().backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None] == []


@EVERY
def test_every_lora_target_gets_gradient(model: str) -> None:
    encoder = build(model)
    targets = [n for n, _ in encoder.named_modules() if re.fullmatch(encoder.lora_targets, n)]
    assert len(targets) == (4 if model.startswith("WAVLM") else 8)
    Lora(rank=2).apply(encoder)
    values = encoder(SOUND).values
    (values * torch.randn(values.shape)).sum().backward()
    grads = [p.grad for n, p in encoder.named_parameters() if "lora_B" in n]
    assert len(grads) == len(targets)
    assert all(g is not None and bool((g != 0).any()) for g in grads)


def test_only_pipelines_that_normalise_take_gain_away() -> None:
    for model, normalises in [("WAV2VEC2_XLSR53", True), ("WAVLM_BASE", False)]:
        encoder = build(model)
        assert encoder.normalises is normalises
    loud = build("WAV2VEC2_XLSR53")
    torch.testing.assert_close(loud(SOUND).values, loud(5 * SOUND).values, atol=1e-3, rtol=1e-2)


def test_sound_at_another_rate_is_resampled() -> None:
    assert build("HUBERT_BASE", sample_rate=8000)(SOUND[:, :8000]).values.shape == (2, 51, 32)


def test_older_names_of_weight_norm_fit_and_heads_are_left_out(tmp_path: Path) -> None:
    first = build("WAV2VEC2_BASE")
    state = {
        n.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): t.clone()
        for n, t in first.network.state_dict().items()
    }
    assert any(n.endswith("conv.weight_g") for n in state)
    save_file(state | {"aux.weight": torch.zeros(29, 32)}, tmp_path / "w.safetensors")
    torch.manual_seed(1)
    again = TorchaudioSpeech("WAV2VEC2_BASE", str(tmp_path / "w.safetensors"), config=TINY).eval()
    assert torch.equal(first(SOUND).values, again(SOUND).values)


def test_a_pipeline_that_is_not_there_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"no pipeline 'HUBERT_BAES'\. Did you mean 'HUBERT_BASE'"):
        build("HUBERT_BAES")


def test_a_changed_network_cannot_have_the_weights_of_the_hub() -> None:
    with pytest.raises(InputError, match="do not fit"):
        build("HUBERT_BASE", weights="hub")


def test_offline_both_ways_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(InputError, match=r"torchaudio's HUBERT_BASE cannot be had.*weights: PATH"):
        TorchaudioSpeech("HUBERT_BASE")


def test_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="no prompts"):
        build("HUBERT_BASE")(SOUND, torch.randn(2, 1, 32))
