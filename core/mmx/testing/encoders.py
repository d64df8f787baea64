"""Laws of encoders."""

from typing import Any

import torch
from torch import Tensor, nn

from mmx.builtin.adapters.full import Full
from mmx.builtin.adapters.lora import Lora
from mmx.contracts import Encoder, Prompts
from mmx.registry import Offer, Registry
from mmx.testing import world
from mmx.testing.laws import NotHere, assert_gradient_everywhere


def _encoder(registry: Registry, offer: Offer, seed: int = 0) -> tuple[Encoder, Tensor]:
    cls: Any = registry.load_class("encoder", f"{offer.distribution}:{offer.component.name}")
    kind = cls.kind
    if kind not in world.EXAMPLES:
        raise NotHere(f"no made-up input of kind '{kind}'")
    example = world.EXAMPLES[kind]
    torch.manual_seed(seed)
    encoder = world.build(registry, offer, {"example": example, "modality": "m0", "seed": seed})
    return encoder.eval(), world.rows_like(example)


def encoder_gives_valid_finite_tokens(registry: Registry, offer: Offer) -> None:
    """Tokens are (batch, tokens, width), finite, the summary token first and valid."""
    encoder, raw = _encoder(registry, offer)
    values, valid = encoder(raw)
    assert values.shape[0] == 4 and values.shape[2] == encoder.width
    assert valid.shape == values.shape[:2] and bool(valid[:, 0].all())
    assert bool(torch.isfinite(values).all())


def encoder_treats_rows_apart(registry: Registry, offer: Offer) -> None:
    """In evaluation a row's tokens do not depend on who else is in the batch."""
    encoder, raw = _encoder(registry, offer)
    with torch.no_grad():
        assert torch.allclose(encoder(raw).values[:1], encoder(raw[:1]).values, atol=1e-4)


def encoder_takes_the_prompts_that_it_says(registry: Registry, offer: Offer) -> None:
    """Prompts' outputs come back in front, each layer's prompts change the summary, and get gradient."""
    encoder, raw = _encoder(registry, offer)
    plain = encoder(raw).values
    if not encoder.accepts_prompts:
        assert encoder.prompt_layers == 0
        return
    prompted = encoder(raw, prompts=torch.randn(4, 3, encoder.width)).values
    assert prompted.shape[1] == plain.shape[1] + 3
    for level in ("input", "attention") if encoder.prompt_layers else ():
        sets = nn.Parameter(torch.randn(4, encoder.prompt_layers, 2, encoder.width))
        out = encoder(raw, prompts=Prompts(sets, level)).values
        front = 2 * encoder.prompt_layers * (level == "input")
        assert out.shape[1] == plain.shape[1] + front
        out[:, front, 0].sum().backward()  # the sum over a normed token is constant
        assert sets.grad is not None and bool((sets.grad.abs().sum(dim=(0, 2, 3)) > 0).all())


def encoder_comes_in_stages(registry: Registry, offer: Offer) -> None:
    """Where it is cut into stages, they give the same tokens as the whole, wherever one stops between."""
    encoder, raw = _encoder(registry, offer)
    with torch.no_grad():
        whole = encoder(raw)
        for stage in range(1, encoder.depth):
            rest = encoder.advance(encoder.advance(raw, 0, stage), stage, encoder.depth)
            assert torch.equal(rest.values, whole.values) and torch.equal(rest.valid, whole.valid)


def encoder_moves_under_lora(registry: Registry, offer: Offer) -> None:
    """LoRA at the author's targets changes the output in training and in evaluation, and starts at none."""
    encoder, raw = _encoder(registry, offer)
    with torch.no_grad():
        before = encoder(raw).values
        Lora(rank=2).apply(encoder)
        assert torch.allclose(encoder.eval()(raw).values, before, atol=1e-5)
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
        for mode in (True, False):
            assert not torch.allclose(encoder.train(mode)(raw).values, before, atol=1e-4)


def encoder_trains_everywhere(registry: Registry, offer: Offer) -> None:
    """Fully fine-tuned, every parameter gets gradient within two steps."""
    encoder, raw = _encoder(registry, offer)
    Full().apply(encoder)
    weights = torch.randn(encoder(raw).values.shape, generator=torch.Generator().manual_seed(2))
    assert_gradient_everywhere(encoder, lambda: (encoder(raw).values * weights).square().mean())


def encoder_is_a_function_of_its_state(registry: Registry, offer: Offer) -> None:
    """Another instance with the same state gives the same tokens; the same seed gives the same weights."""
    first, raw = _encoder(registry, offer, seed=0)
    again, _ = _encoder(registry, offer, seed=0)
    other, _ = _encoder(registry, offer, seed=1)
    with torch.no_grad():
        assert torch.equal(first(raw).values, again(raw).values)
        other.load_state_dict(first.state_dict())
        assert torch.equal(first(raw).values, other(raw).values)
