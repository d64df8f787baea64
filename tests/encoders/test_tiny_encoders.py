"""The two encoders that ship with weights: shapes, prompts, sizes, and that no digit trained them."""

import re
import sys
from importlib.resources import as_file, files
from unittest.mock import patch

import numpy as np
import pytest
import torch

from mmx.contracts import Encoder, Prompts
from mmx.errors import PluginError
from mmx_encoders import pretrain_tiny_ast, pretrain_tiny_vit
from mmx_encoders.tiny_ast import TinyAst
from mmx_encoders.tiny_vit import TinyVit

RAW = {TinyVit: torch.rand(2, 1, 8, 8), TinyAst: 0.1 * torch.randn(2, 8000)}
TOKENS = {TinyVit: 17, TinyAst: 33}
NAMES = ["tiny_vit", "tiny_ast"]
BOTH = pytest.mark.parametrize("kind", [TinyVit, TinyAst])


@pytest.mark.parametrize("name", NAMES)
def test_weights_take_less_than_two_megabytes(name: str) -> None:
    with as_file(files("mmx_encoders") / "data" / f"{name}.safetensors") as path:
        assert path.stat().st_size < 2_000_000


@pytest.mark.parametrize("name", NAMES)
def test_weights_have_a_card_that_names_their_script(name: str) -> None:
    card = (files("mmx_encoders") / "data" / f"{name}.md").read_text()
    assert f"mmx_encoders.pretrain_{name}" in card


@BOTH
def test_pretrained_weights_load_the_same_each_time(kind: type[Encoder]) -> None:
    raw = RAW[kind]
    assert torch.equal(kind().eval()(raw).values, kind().eval()(raw).values)


@BOTH
def test_without_pretraining_weights_are_random(kind: type[Encoder]) -> None:
    raw = RAW[kind]
    assert not torch.equal(kind(pretrained=False)(raw).values, kind(pretrained=False)(raw).values)


@BOTH
def test_tokens_are_a_class_token_and_patches_all_valid(kind: type[Encoder]) -> None:
    encoder = kind()
    tokens = encoder(RAW[kind])
    assert tokens.values.shape == (2, TOKENS[kind], encoder.width)
    assert tokens.valid.all()


@BOTH
def test_outputs_of_plain_prompts_come_in_front(kind: type[Encoder]) -> None:
    encoder = kind()
    read_only = Prompts(torch.randn(2, 1, 3, encoder.width), read_only=True)
    with_prompts, without = encoder(RAW[kind], read_only), encoder(RAW[kind])
    torch.testing.assert_close(with_prompts.values[:, 3:], without.values, atol=1e-4, rtol=1e-4)
    assert encoder(RAW[kind], torch.randn(2, 3, encoder.width)).valid.shape == (2, 3 + TOKENS[kind])


@BOTH
def test_every_layer_takes_prompts_of_its_own(kind: type[Encoder]) -> None:
    encoder = kind()
    values = torch.randn(2, encoder.prompt_layers, 2, encoder.width, requires_grad=True)
    encoder(RAW[kind], Prompts(values)).values[:, -1].sum().backward()
    assert values.grad is not None and (values.grad.abs().sum(dim=(0, 2, 3)) > 0).all()


@BOTH
def test_attention_prompts_add_no_tokens(kind: type[Encoder]) -> None:
    encoder = kind()
    prompts = Prompts(torch.randn(2, encoder.prompt_layers, 4, encoder.width), level="attention")
    assert encoder(RAW[kind], prompts).values.shape[1] == TOKENS[kind]


@BOTH
def test_lora_targets_are_the_attention_maps_of_every_block(kind: type[Encoder]) -> None:
    encoder = kind(pretrained=False)
    hit = [name for name, _ in encoder.named_modules() if re.fullmatch(kind.lora_targets, name)]
    assert len(hit) == 4 * encoder.prompt_layers
    assert "transformer.blocks.0.attention.query" in hit


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 8, 8), (3, 50, 70)])
def test_images_of_any_size_and_channels_work(shape: tuple[int, ...]) -> None:
    assert TinyVit()(torch.rand(2, *shape)).values.shape == (2, 17, 96)


@pytest.mark.parametrize(("samples", "tokens"), [(4000, 17), (8000, 33), (8150, 35), (24000, 97), (100, 3)])
def test_clips_of_any_length_work(samples: int, tokens: int) -> None:
    assert TinyAst()(torch.randn(2, samples)).values.shape == (2, tokens, 96)


def test_silence_gives_finite_tokens_and_gradients() -> None:
    encoder = TinyAst()
    encoder(torch.zeros(2, 8000)).values.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())


def test_gain_changes_nothing() -> None:
    encoder, sound = TinyAst(), RAW[TinyAst]
    torch.testing.assert_close(encoder(0.1 * sound).values, encoder(sound).values, atol=1e-3, rtol=1e-3)


def test_a_second_at_sixteen_kilohertz_gives_nearly_the_same_spectrogram() -> None:
    time = torch.arange(16000) / 16000
    sweep = torch.sin(2 * torch.pi * (300 + 600 * time) * time)[None]
    high = TinyAst(sample_rate=16000).spectrogram(sweep)
    low = TinyAst().spectrogram(sweep[:, ::2])
    assert (high - low).abs().mean() < 0.1


def test_mel_tables_are_not_saved() -> None:
    assert not [key for key in TinyAst(pretrained=False).state_dict() if key.startswith("mel")]


def test_without_torchaudio_the_message_says_what_to_install() -> None:
    with (
        patch.dict(sys.modules, {"torchaudio.transforms": None}),
        pytest.raises(PluginError, match=r"torch<2\.15.*mmx doctor"),
    ):
        TinyAst(pretrained=False)


def test_no_digit_glyph_is_drawn() -> None:
    assert not any(character.isnumeric() for character in "".join(pretrain_tiny_vit.GLYPHS))


def test_no_glyph_is_in_two_classes() -> None:
    characters = "".join(pretrain_tiny_vit.GLYPHS)
    assert len(set(characters)) == len(characters)


def test_no_digit_word_nor_its_homophone_is_spoken() -> None:
    forbidden = "zero oh one won two to too three four for fore five six sicks seven eight ate nine nein"
    assert not set(forbidden.split()) & set(pretrain_tiny_ast.WORDS)


def test_no_voice_of_pretraining_is_one_by_which_digits_is_evaluated() -> None:
    with as_file(files("mmx_datasets") / "data" / "spoken_digits.npz") as path:
        clips = dict(np.load(path, allow_pickle=False))
    assert not set(pretrain_tiny_ast.VOICES) & set(clips["voice"][clips["split"] != "train"])
