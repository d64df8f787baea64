"""Laws of adapters and procedures."""

import torch

from mmx.contracts import Adapter, Procedure
from mmx.registry import Offer, Registry
from mmx.testing import world
from mmx.testing.laws import assert_gradient_everywhere


def adapter_starts_at_the_pretrained_encoder(registry: Registry, offer: Offer) -> None:
    """Before any step the adapted encoder gives what the plain one gives."""
    torch.manual_seed(0)
    encoder = world.PromptableEncoder().eval()
    raw = torch.randn(3, world.FEATURES)
    with torch.no_grad():
        before = encoder(raw).values
        adapter: Adapter = world.build(registry, offer, {"modality": "m0", "modalities": ("m0",), "seed": 0})
        adapter.apply(encoder)
        assert torch.allclose(encoder.eval()(raw).values, before, atol=1e-5)


def adapter_trains_what_it_frees(registry: Registry, offer: Offer) -> None:
    """Every parameter that it leaves trainable gets gradient, and a step moves the output in evaluation."""
    torch.manual_seed(0)
    encoder = world.PromptableEncoder()
    adapter: Adapter = world.build(registry, offer, {"modality": "m0", "modalities": ("m0",), "seed": 0})
    adapter.apply(encoder)
    if not any(p.requires_grad for p in encoder.parameters()):
        return
    raw = torch.randn(6, world.FEATURES)
    target = torch.randn(6, 4, world.WIDTH)
    before = encoder.eval()(raw).values.detach()
    assert_gradient_everywhere(encoder.train(), lambda: (encoder(raw).values - target).square().mean())
    assert not torch.allclose(encoder.eval()(raw).values, before, atol=1e-6)


def procedure_yields_steps_that_can_be_taken(registry: Registry, offer: Offer) -> None:
    """Every step's loss is a finite scalar with gradient, and its parts are named."""
    skip = next(o for o in registry.offers if o.kind == "strategy")
    fusion = next(o for o in registry.offers if o.kind == "fusion" and o.component.name == "mean_logits")
    model = world.assemble(registry, skip, fusion, 2)
    known = {"modalities": model.modalities, "task": world.task(), "seed": 0}
    procedure: Procedure = world.build(registry, offer, known)
    for case in world.presences(2).values():
        steps = 0
        for step in procedure.steps(model.train(), world.batch_of(case)):
            assert step.loss.ndim == 0 and bool(torch.isfinite(step.loss)) and step.losses
            step.loss.backward()
            steps += 1
        assert steps
