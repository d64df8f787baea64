"""timm's image networks: tokens, LoRA targets, prompts, preprocessing, weights, norms."""

import re
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mmx.builtin.adapters.frozen import Frozen
from mmx.builtin.adapters.lora import Lora
from mmx.contracts import Adapter
from mmx.errors import InputError
from mmx.model import MultimodalModel
from mmx.registry import Registry
from mmx.testing import world

timm = pytest.importorskip("timm", reason="needs timm: pip install 'mmx[timm]'")

from mmx_encoders.timm_image import TimmImage  # noqa: E402 not before it is known that timm is there

BLOCKS = r"network\.blocks\.\d+\."
VIT = {f"{BLOCKS}attn.qkv", f"{BLOCKS}attn.proj", f"{BLOCKS}mlp.fc\\d+"}
TARGETS = {
    "test_vit": VIT,
    "test_convnext": {
        r"network\.stages\.\d+\.blocks\.\d+\.mlp\.fc\d+",
        r"network\.stages\.\d\.downsample\.1",
    },
    "test_efficientnet": {rf"{BLOCKS}\d+\.conv(_exp|_pw|_pwl)?", r"network\.conv_head"},
    "mobilenetv3_small_050": {rf"{BLOCKS}\d+\.conv(_pw|_pwl)?", r"network\.conv_head"},
    "test_resnet": {r"network\.layer\d\.\d\.conv\d", r"network\.layer[234]\.0\.downsample\.1"},
    "regnetx_002": {r"network\.s\d\.b\d+\.conv[13]\.conv", r"network\.s\d\.b1\.downsample\.conv"},
    "test_mambaout": {r"network\.stages\.\d+\.blocks\.\d+\.fc\d+", r"network\.stages\.\d+\.downsample\.conv"},
    "swin_tiny_patch4_window7_224": {
        r"network\.layers\.\d\.blocks\.\d\.(attn\.(qkv|proj)|mlp\.fc\d)",
        r"network\.layers\.\d\.downsample\.reduction",
    },
    "eva02_tiny_patch14_224": {rf"{BLOCKS}(attn\.proj|mlp\.fc\d(_[gx])?)"},
}
"""For each family what LoRA adapts, all of it and nothing else."""
IMAGES = torch.rand(2, 3, 40, 50, generator=torch.Generator().manual_seed(0))
EVERY = pytest.mark.parametrize("model", TARGETS)


def build(model: str) -> TimmImage:
    torch.manual_seed(0)
    encoder = TimmImage(model, weights="none").eval()
    for module in encoder.modules():  # some end their blocks with a scale of zero, which hides all before
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return encoder


@cache
def shared(model: str) -> TimmImage:
    """Give one that no test changes."""
    return build(model)


@EVERY
def test_tokens_of_a_network_are_a_summary_and_the_others_all_valid(model: str) -> None:
    encoder = shared(model)
    values, valid = encoder(IMAGES)
    assert values.shape[0] == 2 and values.shape[1] > 1 and values.shape[2] == encoder.width
    assert bool(valid.all()) and bool(values.isfinite().all())


@EVERY
def test_the_summary_is_what_the_head_of_timm_reads(model: str) -> None:
    encoder = shared(model)
    network = encoder.network
    with torch.no_grad():
        read = network.forward_head(
            network.forward_features(encoder.prepare(IMAGES.expand(-1, 3, -1, -1))), pre_logits=True
        )
        torch.testing.assert_close(encoder(IMAGES).values[:, 0], read)


@EVERY
def test_lora_adapts_all_maps_of_the_blocks_but_grouped_ones_and_each_gets_gradient(model: str) -> None:
    encoder = build(model)
    wanted = {
        n
        for n, m in encoder.named_modules()
        if isinstance(m, (nn.Linear, nn.Conv2d)) and any(re.fullmatch(t, n) for t in TARGETS[model])
    }
    chosen = {n: m for n, m in encoder.named_modules() if re.fullmatch(encoder.lora_targets, n)}
    assert wanted == set(chosen)
    assert all(getattr(m, "groups", 1) == 1 for m in chosen.values())
    Lora(rank=2).apply(encoder)
    encoder(IMAGES).values.square().mean().backward()
    moved = [p.grad for n, p in encoder.named_parameters() if "lora_B" in n]
    assert len(moved) == len(chosen)
    assert all(grad is not None and bool((grad != 0).any()) for grad in moved)


def test_maps_whose_weights_are_read_past_an_adapter_are_left_alone() -> None:
    encoder = shared("eva02_tiny_patch14_224")
    assert hasattr(encoder.network.blocks[0].attn, "qkv")
    chosen = [n for n, _ in encoder.named_modules() if re.fullmatch(encoder.lora_targets, n)]
    assert chosen and not [n for n in chosen if ".attn.qkv" in n]


def test_networks_without_a_map_that_lora_can_adapt_say_so() -> None:
    with pytest.raises(InputError, match="match no module"):
        Lora(rank=2).apply(build("test_nfnet"))


@pytest.mark.parametrize("model", ["test_convnext", "test_vit2", "test_resnet", "test_efficientnet"])
def test_every_law_of_encoders_holds_for_a_family(model: str, registry: Registry) -> None:
    from dataclasses import replace

    from mmx.testing import CHECKS

    offer = next(o for o in registry.offers if o.component.name == "timm")
    example = {"model": model, "weights": "none", "size": 32}
    offer = replace(offer, component=replace(offer.component, example=example))
    for law in CHECKS["encoder"]:
        law(registry, offer)


def test_prompts_of_a_vit_come_back_in_front_and_others_take_none() -> None:
    vit, plain = shared("test_vit"), shared("test_resnet")
    prompts = torch.randn(2, 3, vit.width, requires_grad=True)
    values, valid = vit(IMAGES, prompts)
    assert values.shape[1] == vit(IMAGES).values.shape[1] + 3 == valid.shape[1]
    values[:, 3, 0].sum().backward()
    assert prompts.grad is not None and bool((prompts.grad != 0).any())
    assert vit.accepts_prompts and not plain.accepts_prompts
    with pytest.raises(ValueError, match="takes no prompts"):
        plain(IMAGES, prompts)


def test_a_plain_vit_tells_its_class_embedding() -> None:
    vit = shared("test_vit")
    expected = vit.network.cls_token[0, 0] + vit.network.pos_embed[0, 0]
    torch.testing.assert_close(vit.class_embedding(), expected)
    assert shared("test_resnet").class_embedding() is None


def test_preprocessing_is_timms_own_unless_said_otherwise() -> None:
    from timm.data import create_transform, resolve_model_data_config

    encoder = shared("test_resnet")
    own = create_transform(**resolve_model_data_config(timm.create_model("test_resnet")), is_training=False)
    torch.testing.assert_close(encoder.prepare(IMAGES), own(IMAGES))
    half = TimmImage("test_resnet", weights="none", size=64, mean=[0.5] * 3, std=[0.5] * 3)
    torch.testing.assert_close(half.prepare(torch.ones(1, 3, 8, 8)), torch.ones(1, 3, 64, 64))


def test_grey_is_three_equal_channels_and_four_are_refused() -> None:
    encoder, grey = shared("test_resnet"), IMAGES[:, :1]
    torch.testing.assert_close(encoder(grey).values, encoder(grey.expand(-1, 3, -1, -1)).values)
    with pytest.raises(ValueError, match="1 or 3 channels, not 4"):
        encoder(torch.rand(1, 4, 64, 64))


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_weights_of_a_file_are_those_of_the_network_its_head_left_out(tmp_path: Path, ending: str) -> None:
    torch.manual_seed(7)
    whole = timm.create_model("test_vit").eval()
    path = tmp_path / f"weights.{ending}"
    (save_file if ending == "safetensors" else torch.save)(whole.state_dict(), path)
    encoder = TimmImage("test_vit", weights=str(path)).eval()
    with torch.no_grad():
        expected = whole.forward_head(whole.forward_features(encoder.prepare(IMAGES)), pre_logits=True)
        torch.testing.assert_close(encoder(IMAGES).values[:, 0], expected)


def test_a_file_of_another_image_size_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    small = timm.create_model("test_vit", img_size=64)
    save_file(small.state_dict(), path)
    encoder = TimmImage("test_vit", weights=str(path), size=64)
    torch.testing.assert_close(encoder.network.pos_embed, small.pos_embed)


def test_names_of_older_files_are_understood(tmp_path: Path) -> None:
    """ConvNeXt's own release, whose names timm has others for."""
    torch.manual_seed(3)
    whole = timm.create_model("test_convnext").state_dict()
    older = {"head.weight": whole.pop("head.fc.weight"), "head.bias": whole.pop("head.fc.bias")}
    older |= {"norm.weight": whole.pop("head.norm.weight"), "norm.bias": whole.pop("head.norm.bias")}
    path = tmp_path / "older.safetensors"
    save_file({**whole, **older}, path)
    encoder = TimmImage("test_convnext", weights=str(path))
    torch.testing.assert_close(encoder.network.head.norm.weight, older["norm.weight"])


WRONG = {
    "unknown": (
        {"model": "resnet19", "weights": "none"},
        "is no model .* Did you mean 'resnet18'",
    ),
    "tag": ({"model": "resnet18.nope", "weights": "none"}, "Invalid pretrained tag .*leave the tag"),
    "size": (
        {"model": "test_vit", "weights": "none", "size": 37},
        "no tokens for images of 37x37",
    ),
    "features": ({"model": "crossvit_9_240", "weights": "none"}, "gives no tokens .*take another model"),
    "no file": ({"model": "test_vit", "weights": "nothing.pt"}, "no weights at 'nothing.pt'"),
    "offline": ({"model": "test_vit"}, r"timm's test_vit cannot be had .*connect once .*weights: PATH"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_built_is_refused_with_what_to_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *place: None)
    options, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        TimmImage(**options)


def test_a_file_of_another_network_is_refused_by_name(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="are not of this model: the file lacks"):
        TimmImage("test_resnet", weights=str(tmp_path / "x.safetensors"))


def test_offline_the_hubs_cache_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    whole = timm.create_model("test_resnet")
    save_file(whole.state_dict(), tmp_path / "model.safetensors")
    asked: list[str] = []

    def cached(place: str, name: str) -> str:
        asked.append(place)
        return str(tmp_path / name)

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    encoder = TimmImage("test_resnet")
    assert set(asked) == {"timm/test_resnet.r160_in1k"}
    torch.testing.assert_close(encoder.network.conv1.state_dict(), whole.conv1.state_dict())


@pytest.mark.parametrize("adapter", [Frozen(), Lora(rank=2)], ids=["frozen", "lora"])
def test_norms_of_frozen_timm_weights_keep_their_statistics_in_training(
    adapter: Adapter, registry: Registry
) -> None:
    encoder = build("test_resnet")
    adapter.apply(encoder)
    known = world.known_for(("m0",), {"m0": encoder}, 0) | {"width": encoder.width}
    strategy, fusion = (
        world.build(registry, next(o for o in registry.offers if o.component.name == name), known)
        for name in ("skip", "mean")
    )
    MultimodalModel({"m0": encoder}, strategy, fusion, encoder.width, {"m0": adapter}).train()
    before = {n: b.clone() for n, b in encoder.named_buffers()}
    encoder(IMAGES)
    assert before and all(torch.equal(b, before[n]) for n, b in encoder.named_buffers())
