"""Backbones of Hugging Face transformers, tiny and random: weights, tokens, prompts, LoRA targets."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmx.builtin.adapters.lora import Lora
from mmx.contracts import Encoder
from mmx.errors import InputError
from mmx.registry import Registry
from mmx.testing import CHECKS
from mmx.testing.laws import Check
from mmx_encoders.transformers_audio import TransformersAudio
from mmx_encoders.transformers_image import TransformersImage
from mmx_encoders.transformers_text import TransformersText

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
PATCHES = {"image_size": 32, "patch_size": 16}
SPEECH = {
    "conv_dim": [16, 16, 16],
    "conv_stride": [5, 2, 2],
    "conv_kernel": [10, 3, 3],
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
CLIP_TOWERS = {
    "vision_config": {**PATCHES, **TINY},
    "text_config": {"vocab_size": 60, **SPECIAL, **TINY},
}
IMAGE = [
    {"model_type": "vit", **PATCHES, **TINY},
    {
        "model_type": "dinov2",
        "image_size": 28,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    {"model_type": "clip", **CLIP_TOWERS},
    {"model_type": "siglip_vision_model", **PATCHES, **TINY},
    {"model_type": "convnext", "image_size": 32, "num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1]},
    {
        "model_type": "swin",
        "image_size": 32,
        "embed_dim": 16,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 4,
    },
    {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
]
TEXT = [
    {"model_type": "bert", "vocab_size": 60, **TINY},
    {"model_type": "roberta", "vocab_size": 60, **SPECIAL, **TINY},
    {"model_type": "distilbert", "vocab_size": 60, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    {"model_type": "clip", **CLIP_TOWERS},
]
AUDIO = [
    {"model_type": "audio-spectrogram-transformer", "max_length": 64, "num_mel_bins": 32, **TINY},
    {"model_type": "wav2vec2", **SPEECH, **TINY},
    {"model_type": "hubert", **SPEECH, **TINY},
    {"model_type": "wavlm", **SPEECH, **TINY},
    {
        "model_type": "whisper",
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "decoder_attention_heads": 2,
        "decoder_start_token_id": 1,
        "vocab_size": 60,
        "num_mel_bins": 16,
        "max_source_positions": 50,
        **SPECIAL,
    },
]
CLASSES: dict[str, Any] = {"image": TransformersImage, "text": TransformersText, "audio": TransformersAudio}
RAW = {
    "image": torch.rand(2, 3, 40, 50),
    "text": torch.tensor([[5, 6, 7, 8, 2], [5, 9, 2, 0, 0]]),
    "audio": 0.1 * torch.randn(2, 8000),
}
EVERY = pytest.mark.parametrize(
    ("kind", "config"),
    [
        pytest.param(kind, config, id=f"{kind}-{config['model_type']}")
        for kind, configs in {"image": IMAGE, "text": TEXT, "audio": AUDIO}.items()
        for config in configs
    ],
)


def build(kind: str, config: Mapping[str, Any], weights: str = "none", **options: Any) -> Any:
    torch.manual_seed(0)
    return CLASSES[kind](weights=weights, config=config, **options).eval()


@EVERY
def test_tokens_are_finite_of_the_width_and_the_first_is_valid(kind: str, config: dict[str, Any]) -> None:
    encoder = build(kind, config)
    values, valid = encoder(RAW[kind])
    assert values.shape[2] == encoder.width and values.shape[:2] == valid.shape
    assert bool(values.isfinite().all()) and bool(valid[:, 0].all())


@EVERY
def test_every_lora_target_gets_gradient(kind: str, config: dict[str, Any]) -> None:
    encoder = build(kind, config)
    Lora(rank=2).apply(encoder)
    values = encoder(RAW[kind]).values
    (values * torch.randn(values.shape)).sum().backward()
    grads = [p.grad for n, p in encoder.named_parameters() if "lora_B" in n]
    assert grads and all(g is not None and bool((g != 0).any()) for g in grads)


@EVERY
def test_lora_leaves_no_layer_out(kind: str, config: dict[str, Any]) -> None:
    encoder = build(kind, config)
    hit = [n for n, _ in encoder.named_modules() if re.fullmatch(encoder.lora_targets, n)]
    layers = {re.match(r"network\.(?:.*?\.)?\d+\.", n + ".").group() for n in hit}  # type: ignore[union-attr]
    unlike = {"wavlm": (2, 4), "convnext": (2, 4), "resnet": (2, 7)}
    assert (len(layers), len(hit)) == unlike.get(config["model_type"], (2, 8))


@EVERY
def test_what_takes_prompts_gives_them_back_in_front(kind: str, config: dict[str, Any]) -> None:
    encoder = build(kind, config)
    takes = {"vit", "dinov2", "siglip_vision_model", "bert", "roberta", "distilbert"}
    takes |= {"audio-spectrogram-transformer"} | ({"clip"} if kind == "image" else set())
    assert encoder.accepts_prompts == (config["model_type"] in takes)
    if encoder.accepts_prompts:
        prompts = torch.randn(2, 3, encoder.width, requires_grad=True)
        plain, (values, valid) = encoder(RAW[kind]), encoder(RAW[kind], prompts)
        assert torch.equal(valid[:, 3:], plain.valid) and bool(valid[:, :3].all())
        assert not torch.allclose(values[:, 3], plain.values[:, 0])  # the summary has seen them
        values[:, 3, 0].sum().backward()
        assert prompts.grad is not None and bool((prompts.grad != 0).any())


@EVERY
def test_no_parameter_is_left_without_use(kind: str, config: dict[str, Any]) -> None:
    encoder = build(kind, config).requires_grad_(True)
    values = encoder(RAW[kind]).values
    (values * torch.randn(values.shape)).sum().backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("law", CHECKS["encoder"], ids=lambda law: law.__name__)
@pytest.mark.parametrize("config", TEXT, ids=lambda config: config["model_type"])
def test_text_obeys_the_laws_of_encoders(config: dict[str, Any], law: Check) -> None:
    registry = Registry.load()
    offer = next(o for o in registry.offers if o.component.name == "transformers_text")
    example = {"weights": "none", "config": config}
    law(registry, replace(offer, component=replace(offer.component, example=example)))


def test_padding_is_not_valid_and_changes_nothing() -> None:
    encoder = build("text", TEXT[0])
    short, long = torch.tensor([[5, 6, 7]]), torch.tensor([[5, 6, 7, 0, 0]])
    values, valid = encoder(long)
    assert valid.tolist() == [[True, True, True, False, False]]
    torch.testing.assert_close(values[:, :3], encoder(short).values, atol=1e-5, rtol=1e-4)


def test_the_mean_is_over_valid_tokens() -> None:
    encoder = build("text", TEXT[0], summary="mean")
    values, valid = encoder(torch.tensor([[5, 6, 7, 0, 0]]))
    assert valid.tolist() == [[True, True, True, True, False, False]]
    torch.testing.assert_close(values[:, 0], values[:, 1:4].mean(dim=1))


def test_an_empty_text_has_one_valid_token() -> None:
    values, valid = build("text", TEXT[0])(torch.zeros(1, 4, dtype=torch.long))
    assert valid.tolist() == [[True, False, False, False]] and bool(values.isfinite().all())


def test_an_end_that_is_also_the_padding_is_valid_once() -> None:
    encoder = build("text", TEXT[0] | {"pad_token_id": 2, "eos_token_id": 2})
    assert encoder.valid(torch.tensor([[5, 6, 2, 2]])).tolist() == [[True, True, True, False]]


def test_of_two_towers_and_of_encoder_and_decoder_the_right_one_is_taken() -> None:
    names = [type(build(k, c).network).__name__ for k, c in [("image", IMAGE[2]), ("text", TEXT[3])]]
    assert ["Vision" in names[0], "Text" in names[1]] == [True, True]
    assert type(build("audio", AUDIO[4]).network).__name__ == "WhisperEncoder"


def test_what_clip_pools_is_the_summary() -> None:
    encoder = build("image", IMAGE[2])
    tokens = encoder(RAW["image"])
    assert tokens.values.shape[1] == 1 + 5  # the summary; CLIP's class token and four patches
    pooled = encoder.network.post_layernorm(tokens.values[:, 1])
    torch.testing.assert_close(tokens.values[:, 0], pooled)


def test_whisper_leaves_the_silence_that_fills_its_window_out() -> None:
    encoder = build("audio", AUDIO[4])  # a window of one second, 50 tokens
    assert encoder(torch.randn(1, 8000)).values.shape[1] == 1 + 25


def test_sound_at_another_rate_is_resampled() -> None:
    low = build("audio", AUDIO[1], sample_rate=8000)
    assert low(RAW["audio"]).values.shape == build("audio", AUDIO[1])(torch.randn(2, 16000)).values.shape


def test_training_draws_nothing_outside_of_torch() -> None:
    settings = build("audio", AUDIO[1]).network.config
    assert settings.apply_spec_augment is False and settings.layerdrop == 0.0


def saved(folder: Path, encoder: Encoder) -> str:
    encoder.network.save_pretrained(folder)  # type: ignore[operator, union-attr]
    return str(folder)


def test_a_folder_and_its_file_give_the_same_tokens(tmp_path: Path) -> None:
    first = build("text", TEXT[0])
    folder = saved(tmp_path, first)
    expected = first(RAW["text"]).values
    torch.manual_seed(1)
    again = TransformersText(model=folder).eval()
    file = TransformersText(config=TEXT[0], weights=f"{folder}/model.safetensors").eval()
    both = TransformersText(model=folder, weights=f"{folder}/model.safetensors").eval()
    assert all(torch.equal(expected, other(RAW["text"]).values) for other in (again, file, both))


def test_a_folder_prepares_images_by_its_own_processor(tmp_path: Path) -> None:
    from transformers import ViTImageProcessor

    folder = saved(tmp_path, build("image", IMAGE[0]))
    ViTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=[0.0] * 3, image_std=[1.0] * 3
    ).save_pretrained(folder)
    encoder = TransformersImage(model=folder)
    images = encoder.processor(images=RAW["image"], do_rescale=False, return_tensors="pt")["pixel_values"]
    assert images.shape == (2, 3, 32, 32) and float(images.min()) >= 0


def test_weights_of_a_model_with_a_head_fit_and_the_head_is_left_out(tmp_path: Path) -> None:
    first = build("text", TEXT[0])
    state: dict[str, Tensor] = {f"bert.{n}": t.clone() for n, t in first.network.state_dict().items()}
    save_file(state | {"cls.predictions.bias": torch.zeros(60)}, tmp_path / "w.safetensors")
    loaded = build("text", TEXT[0], str(tmp_path / "w.safetensors"))
    assert torch.equal(first(RAW["text"]).values, loaded(RAW["text"]).values)


def test_weights_that_lack_a_layer_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, build("text", TEXT[0]))
    state = load_file(f"{folder}/model.safetensors")
    save_file({n: t for n, t in state.items() if "layer.1" not in n}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"not of this bert: 16 tensors are lacking"):
        build("text", TEXT[0], str(tmp_path / "w.safetensors"))


def test_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, build("text", TEXT[0]))
    with pytest.raises(
        InputError, match=r"0 tensors are lacking, 1 have another shape \('embeddings.word_embeddings.weight'"
    ):
        build("text", TEXT[0] | {"vocab_size": 70}, f"{folder}/model.safetensors")


def test_without_a_hub_both_ways_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=r"'mmx-tests/nowhere' cannot be had.*offline.*weights: PATH"):
        TransformersText(model="mmx-tests/nowhere")


def test_a_folder_that_is_not_there_is_told_as_a_folder() -> None:
    with pytest.raises(InputError, match=r"no 'config.json' in the folder './nowhere'"):
        TransformersText(model="./nowhere")


def test_a_network_whose_settings_tell_no_width_is_asked_for_it() -> None:
    encoder = build("image", {"model_type": "mobilenet_v2", "image_size": 32, "depth_multiplier": 0.35})
    assert encoder(RAW["image"]).values.shape[2] == encoder.width == 1280


@pytest.mark.parametrize("kind", ["albert", "electra"])
def test_words_that_are_embedded_narrower_than_tokens_leave_no_room_for_prompts(kind: str) -> None:
    config = {"model_type": kind, "vocab_size": 60, "embedding_size": 16, **TINY}
    encoder = build("text", config)
    assert not encoder.accepts_prompts and encoder(RAW["text"]).values.shape[2] == 32


@pytest.mark.parametrize(("config", "room"), [(TEXT[0], 12), (TEXT[1], 11)], ids=["bert", "roberta"])
def test_a_text_that_is_longer_than_the_network_has_positions_is_refused(
    config: dict[str, Any], room: int
) -> None:
    encoder = build("text", config | {"max_position_embeddings": 12})
    assert encoder(torch.full((1, room), 5)).values.shape[1] == room
    with pytest.raises(InputError, match=rf"{room + 1} tokens.*the {room} positions"):
        encoder(torch.full((1, room), 5), torch.zeros(1, 1, 32))


@pytest.mark.parametrize("index", [0, 1, 2, 3, 4], ids=lambda i: IMAGE[i]["model_type"])
def test_a_configuration_normalises_as_the_library_does_for_its_type(index: int) -> None:
    import transformers

    usual = ["ViT", "Bit", "CLIP", "Siglip", "ConvNext"][index]
    own = getattr(transformers, f"{usual}ImageProcessor")()
    encoder, grey = build("image", IMAGE[index]), torch.full((1, 3, 40, 40), 0.25)
    expected = (0.25 - torch.tensor(own.image_mean)) / torch.tensor(own.image_std)
    seen = encoder.processor(images=grey, do_rescale=False, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(seen[0, :, 0, 0], expected, atol=1e-5, rtol=0)


def test_mean_and_std_can_be_given() -> None:
    options = {"mean": [0.0] * 3, "std": [0.5] * 3}
    given, seen = build("image", IMAGE[0], **options), []
    given.network.register_forward_pre_hook(lambda _, a, k: seen.append(k["pixel_values"]), with_kwargs=True)
    given(torch.full((1, 3, 40, 40), 0.25))
    torch.testing.assert_close(seen[0], torch.full((1, 3, 32, 32), 0.5))


def test_neither_model_nor_config_is_refused() -> None:
    with pytest.raises(InputError, match="give model"):
        TransformersText()
    with pytest.raises(InputError, match="give model"):
        TransformersText(config=TEXT[0])


def test_other_channels_than_one_or_three_are_refused() -> None:
    with pytest.raises(ValueError, match="not 2"):
        build("image", IMAGE[0])(torch.rand(1, 2, 32, 32))


def test_no_dead_pooling_head_is_a_lora_target() -> None:
    encoder = build("image", IMAGE[3])
    assert isinstance(encoder.network.head.attention, nn.MultiheadAttention)
    assert not re.fullmatch(encoder.lora_targets, "network.head.attention.out_proj")
