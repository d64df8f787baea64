"""torchvision's image networks: tokens, LoRA targets, prompts, preprocessing, norms."""

import re
from functools import cache
from typing import get_args

import pytest
import torch
from torch import nn

from mmx.builtin.adapters.frozen import Frozen
from mmx.builtin.adapters.lora import Lora
from mmx.contracts import Adapter
from mmx.errors import InputError
from mmx.model import MultimodalModel
from mmx.registry import Registry
from mmx.testing import world
from mmx_encoders.torchvision_image import Name, TorchvisionImage

MODELS = get_args(Name)
SIDE = 64
IMAGES = torch.rand(2, 3, 40, 50, generator=torch.Generator().manual_seed(0))
EVERY = pytest.mark.parametrize("model", MODELS)


def build(model: str) -> TorchvisionImage:
    torch.manual_seed(0)
    return TorchvisionImage(model, weights="none", size=SIDE).eval()  # type: ignore[arg-type]


@cache
def shared(model: str) -> TorchvisionImage:
    """Give one that no test changes."""
    return build(model)


@EVERY
def test_tokens_are_a_summary_and_a_map_all_valid(model: str) -> None:
    encoder = shared(model)
    values, valid = encoder(IMAGES)
    places = (SIDE // 16) ** 2 if model == "vit_b_16" else (SIDE // 32) ** 2
    assert values.shape == (2, 1 + places, encoder.width)
    assert bool(valid.all()) and bool(values.isfinite().all())


@EVERY
def test_the_summary_is_what_the_networks_own_head_reads(model: str) -> None:
    from torchvision.models import get_model

    encoder = shared(model)
    size = {"image_size": SIDE} if model == "vit_b_16" else {}
    whole = get_model(model, weights=None, **size).eval()
    whole.load_state_dict(encoder.network.state_dict(), strict=False)
    with torch.no_grad():
        images = encoder.prepare(IMAGES)
        read = []
        head = next(m for m in whole.modules() if isinstance(m, nn.Linear) and m.in_features == encoder.width)
        if model not in ("mobilenet_v3_small", "mobilenet_v3_large"):
            head = [m for m in whole.modules() if isinstance(m, nn.Linear)][-1]
        head.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
        whole(images)
        torch.testing.assert_close(read[0], encoder(IMAGES).values[:, 0], atol=1e-5, rtol=1e-4)


@EVERY
def test_lora_targets_are_no_grouped_convolution_and_each_gets_gradient(model: str) -> None:
    encoder = build(model)
    chosen = {n: m for n, m in encoder.named_modules() if re.fullmatch(TorchvisionImage.lora_targets, n)}
    assert all(getattr(m, "groups", 1) == 1 for m in chosen.values())
    Lora(rank=2).apply(encoder)
    encoder(IMAGES).values.square().mean().backward()
    moved = {n: p.grad for n, p in encoder.named_parameters() if "lora_B" in n}
    assert len(moved) >= len(chosen)
    assert all(grad is not None and bool((grad != 0).any()) for grad in moved.values())


@pytest.mark.parametrize("model", [m for m in MODELS if m.startswith(("resnet", "mobilenet"))])
def test_lora_reaches_every_convolution_of_the_blocks_that_is_not_grouped(model: str) -> None:
    encoder = shared(model)
    wanted = {
        n
        for n, m in encoder.named_modules()
        if isinstance(m, nn.Conv2d)
        and m.groups == 1
        and not n.endswith((".fc1", ".fc2"))  # squeeze and excitation
        and n not in ("network.conv1", "network.features.0.0")
    }
    assert {n for n, _ in encoder.named_modules() if re.fullmatch(encoder.lora_targets, n)} == wanted


def test_only_a_vit_takes_prompts_and_gives_them_back_in_front() -> None:
    vit, plain = shared("vit_b_16"), shared("resnet18")
    prompts = torch.randn(2, 3, vit.width, requires_grad=True)
    values, valid = vit(IMAGES, prompts)
    assert values.shape[1] == vit(IMAGES).values.shape[1] + 3 == valid.shape[1]
    values[:, 3, 0].sum().backward()
    assert prompts.grad is not None and bool((prompts.grad != 0).any())
    assert vit.accepts_prompts and not plain.accepts_prompts
    with pytest.raises(ValueError, match="takes no prompts"):
        plain(IMAGES, prompts)


def test_a_vit_obeys_the_law_of_prompts() -> None:
    from dataclasses import replace

    from mmx.testing.encoders import encoder_takes_the_prompts_that_it_says

    registry = Registry.load()
    offer = next(o for o in registry.offers if o.component.name == "torchvision")
    example = {"model": "vit_b_16", "weights": "none", "size": 32}
    offer = replace(offer, component=replace(offer.component, example=example))
    encoder_takes_the_prompts_that_it_says(registry, offer)


def test_a_vit_tells_its_class_embedding_and_others_have_none() -> None:
    assert shared("resnet18").class_embedding() is None
    embedding = shared("vit_b_16").class_embedding()
    assert embedding is not None and embedding.shape == (768,)


def test_grey_images_are_taken_as_three_equal_channels() -> None:
    encoder, grey = shared("resnet18"), IMAGES[:, :1]
    torch.testing.assert_close(encoder(grey).values, encoder(grey.expand(-1, 3, -1, -1)).values)


def test_other_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="1 or 3 channels, not 4"):
        shared("resnet18")(torch.rand(1, 4, 64, 64))


def test_preprocessing_is_that_of_the_weights_unless_said_otherwise() -> None:
    from torchvision.models import ResNet18_Weights

    own = TorchvisionImage("resnet18", weights="none")
    torch.testing.assert_close(own.prepare(IMAGES), ResNet18_Weights.DEFAULT.transforms()(IMAGES))
    half = TorchvisionImage("resnet18", weights="none", size=SIDE, mean=[0.5] * 3, std=[0.5] * 3)
    assert half.prepare(IMAGES).shape == (2, 3, SIDE, SIDE)
    torch.testing.assert_close(half.prepare(torch.ones(1, 3, 8, 8)), torch.ones(1, 3, SIDE, SIDE))


def test_a_size_that_the_network_cannot_have_is_refused() -> None:
    with pytest.raises(InputError, match="size 40"):
        TorchvisionImage("vit_b_16", weights="none", size=40)


@pytest.mark.parametrize("adapter", [Frozen(), Lora(rank=2)], ids=["frozen", "lora"])
def test_norms_of_frozen_weights_keep_their_statistics_in_training(adapter: Adapter) -> None:
    encoder = build("mobilenet_v3_small")
    adapter.apply(encoder)
    registry = Registry.load()
    known = world.known_for(("m0",), {"m0": encoder}, 0) | {"width": encoder.width}
    strategy, fusion = (
        world.build(registry, next(o for o in registry.offers if o.component.name == name), known)
        for name in ("skip", "mean")
    )
    model = MultimodalModel({"m0": encoder}, strategy, fusion, encoder.width, {"m0": adapter}).train()
    before = {n: b.clone() for n, b in encoder.named_buffers()}
    encoder(IMAGES)
    assert before and all(torch.equal(b, before[n]) for n, b in encoder.named_buffers())
    assert model.training
