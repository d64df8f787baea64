"""KWT and YAMNet, random: lengths, rates, front ends, files of weights."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from mmx.contracts import Prompts
from mmx.errors import InputError
from mmx_encoders.kwt import PUBLISHED, Kwt
from mmx_encoders.sound import magnitudes, mel_filters
from mmx_encoders.yamnet import SameConv, Yamnet

SOUND = 0.1 * torch.randn(2, 16000, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("samples", [500, 16000, 40000])
def test_kwt_hears_one_second_of_clips_of_any_length(samples: int) -> None:
    values, valid = Kwt("none")(torch.randn(1, samples))
    assert values.shape == (1, 99, 64) and bool(valid.all())


def test_kwt_fills_up_with_silence_at_the_end() -> None:
    encoder = Kwt("none").eval()
    longer = F.pad(SOUND[:, :9000], (0, 7000))
    assert torch.equal(encoder(SOUND[:, :9000]).values, encoder(longer).values)


@pytest.mark.parametrize(("size", "width", "heads"), [("kwt1", 64, 1), ("kwt2", 128, 2), ("kwt3", 192, 3)])
def test_kwt_has_heads_of_64(size: str, width: int, heads: int) -> None:
    encoder = Kwt("none", size=size)  # type: ignore[arg-type]
    assert encoder.width == width
    assert encoder.transformer.blocks[0].attention.heads == heads


def test_kwt_has_as_many_parameters_as_published() -> None:
    assert sum(p.numel() for p in Kwt("none").parameters()) + 12 * 64 + 12 == 607308


def test_kwt_takes_prompts_in_every_layer() -> None:
    encoder = Kwt("none")
    sets = torch.randn(2, 12, 2, 64)
    assert encoder(SOUND, Prompts(sets)).values.shape[1] == 24 + 99
    assert encoder(SOUND, Prompts(sets, level="attention")).values.shape[1] == 99


def test_kwt_lora_targets_are_the_attention_maps_of_every_block() -> None:
    encoder = Kwt("none")
    assert sum(bool(re.fullmatch(Kwt.lora_targets, n)) for n, _ in encoder.named_modules()) == 48


def published(encoder: Kwt) -> dict[str, Tensor]:
    """Give its state by the names of published files, with a head and tables."""
    state = {}
    for name, tensor in encoder.state_dict().items():
        new = name.replace("transformer.", "").replace("project.", "proj.")
        for short, long in PUBLISHED.items():
            new = new.replace(f".{long}.", f".{short}.")
        state[{"class_token": "cls", "positions": "pos"}.get(new, new)] = tensor.clone()
    return state | {"head.weight": torch.randn(12, 64), "fe_mel": torch.zeros(80, 244)}


def test_kwt_reads_published_names_and_leaves_the_head_out(tmp_path: Path) -> None:
    first = Kwt("none").eval()
    save_file(published(first), tmp_path / "kwt.safetensors")
    assert torch.equal(first(SOUND).values, Kwt(str(tmp_path / "kwt.safetensors")).eval()(SOUND).values)


def test_kwt_of_another_size_is_refused(tmp_path: Path) -> None:
    save_file(published(Kwt("none")), tmp_path / "kwt.safetensors")
    with pytest.raises(InputError, match="in another shape"):
        Kwt(str(tmp_path / "kwt.safetensors"), size="kwt2")


@pytest.mark.parametrize(("samples", "patches"), [(100, 1), (15600, 1), (15601, 2), (23280, 2), (48000, 6)])
def test_yamnet_has_a_token_each_half_second_and_loses_no_end(samples: int, patches: int) -> None:
    values, valid = Yamnet("none").eval()(0.1 * torch.randn(1, samples))
    assert values.shape == (1, 1 + patches, 1024) and bool(valid.all())


def test_the_summary_of_yamnet_is_the_mean_of_its_patches() -> None:
    values = Yamnet("none").eval()(0.1 * torch.randn(2, 48000)).values
    torch.testing.assert_close(values[:, 0], values[:, 1:].mean(dim=1))


def test_yamnet_lora_targets_are_no_grouped_convolution() -> None:
    encoder = Yamnet("none")
    hit = [m for n, m in encoder.named_modules() if re.fullmatch(Yamnet.lora_targets, n)]
    assert len(hit) == 13 and all(m.groups == 1 for m in hit)


def test_yamnet_takes_no_prompts() -> None:
    with pytest.raises(ValueError, match="no prompts"):
        Yamnet("none")(SOUND, torch.randn(2, 1, 1024))


@pytest.mark.parametrize("kind", [Kwt, Yamnet])
def test_sound_at_eight_kilohertz_is_heard_alike(kind: type[Kwt] | type[Yamnet]) -> None:
    time = torch.arange(16000) / 16000
    sweep = torch.sin(2 * torch.pi * (300 + 600 * time) * time)[None]
    torch.manual_seed(0)
    high = kind("none").eval()
    low = kind("none", sample_rate=8000).eval()
    low.load_state_dict(high.state_dict())
    other = torch.sin(2 * torch.pi * 3000 * time)[None]
    first, same, different = (
        e(s).values[0, 0] for e, s in [(high, sweep), (low, sweep[:, ::2]), (high, other)]
    )
    assert (first - same).norm() < 0.5 * (first - different).norm()


def test_features_are_in_single_precision_where_training_is_not() -> None:
    low = Kwt("none", sample_rate=8000), Yamnet("none", sample_rate=8000)
    sound = SOUND[:, :8000]
    expected = low[0].cepstra(sound), low[1].patches(sound)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = low[0].cepstra(sound), low[1].patches(sound)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_silence_gives_finite_tokens() -> None:
    assert all(bool(kind("none")(torch.zeros(1, 16000)).values.isfinite().all()) for kind in (Kwt, Yamnet))


def test_tables_of_front_ends_are_not_saved() -> None:
    for kind in (Kwt, Yamnet):
        assert not {"filters", "cosines"} & set(kind("none").state_dict())


def test_a_tone_is_loudest_in_the_band_around_it() -> None:
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(16000) / 16000)[None]
    energies = magnitudes(tone, 400, 160) @ mel_filters(257, 64, 125.0, 7500.0)
    low, high = (1127 * torch.log1p(torch.tensor(f) / 700) for f in (125.0, 7500.0))
    place = (1127 * torch.log1p(torch.tensor(1000.0) / 700) - low) / (high - low) * 65 - 1
    assert abs(float(energies[0, 50].argmax()) - float(place)) <= 1


@pytest.mark.parametrize(("size", "stride", "out"), [(8, 1, 8), (8, 2, 4), (7, 2, 4)])
def test_padding_is_that_of_tensorflow(size: int, stride: int, out: int) -> None:
    convolution = SameConv(1, 1, stride)
    with torch.no_grad():
        convolution.weight.zero_()[0, 0, 0, 0] = 1  # gives back what its first place reads
        convolution.bias.zero_()  # type: ignore[union-attr]
        image = torch.ones(1, 1, size, size)
        read = convolution(image)[0, 0]
    assert read.shape == (out, out)
    starts_inside = stride == 2 and size % 2 == 0  # then nothing is put before the first place
    assert bool(read[0, 0] == 1) == starts_inside
