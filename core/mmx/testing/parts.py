"""Laws of adapters and procedures."""

import copy
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from mmx.contracts import Adapter, Batch, Procedure
from mmx.errors import InputError
from mmx.model import MultimodalModel
from mmx.registry import Offer, Registry
from mmx.testing import world
from mmx.testing.laws import SHIFTS_A_KEY, NotHere, assert_gradient_everywhere

ROWS = 6
MODALITIES = ("m0", "m1")


def _adapted(
    registry: Registry, offer: Offer, seed: int = 0
) -> tuple[world.PromptableEncoder, Adapter, Tensor]:
    """Apply an adapter to m0's encoder, in a phase whose rows have m0 alone."""
    torch.manual_seed(seed)
    encoder = world.PromptableEncoder()
    raw = torch.randn(ROWS, world.FEATURES)
    known = {"modality": "m0", "modalities": MODALITIES, "pattern": frozenset({"m0"}), "seed": 0}
    adapter: Adapter = world.build(registry, offer, known)
    adapter.apply(encoder)
    adapter.select(_present(m1=False))
    return encoder, adapter, raw


def _present(m1: bool) -> dict[str, Tensor]:
    return {"m0": torch.ones(ROWS, dtype=torch.bool), "m1": torch.full((ROWS,), m1)}


def _train(encoder: world.PromptableEncoder, raw: Tensor) -> None:
    """Take two large steps on what trains."""
    target = torch.randn(ROWS, 4, world.WIDTH, generator=torch.Generator().manual_seed(1))
    trainable = [p for p in encoder.train().parameters() if p.requires_grad]
    if trainable:
        optimizer = torch.optim.SGD(trainable, lr=1.0)
        for _ in range(2):
            optimizer.zero_grad()
            (encoder(raw).values - target).square().mean().backward()
            optimizer.step()
    encoder.eval()


def adapter_starts_at_the_pretrained_encoder(registry: Registry, offer: Offer) -> None:
    """Before any step the adapted encoder gives what the plain one gives."""
    torch.manual_seed(0)
    plain = world.PromptableEncoder().eval()
    encoder, _, raw = _adapted(registry, offer)
    with torch.no_grad():
        assert torch.allclose(encoder.eval()(raw).values, plain(raw).values, atol=1e-5)


def adapter_trains_what_it_frees(registry: Registry, offer: Offer) -> None:
    """Every parameter that it leaves trainable gets gradient, and a step moves the output in evaluation."""
    encoder, _, raw = _adapted(registry, offer)
    if not any(p.requires_grad for p in encoder.parameters()):
        return
    target = torch.randn(ROWS, 4, world.WIDTH)
    before = encoder.eval()(raw).values.detach()
    assert_gradient_everywhere(encoder.train(), lambda: (encoder(raw).values - target).square().mean())
    assert not torch.allclose(encoder.eval()(raw).values, before, atol=1e-6)


def adapter_folds_into_plain_weights(registry: Registry, offer: Offer) -> None:
    """Folded, the encoder is built as before, but for biases that it had not, and gives the same outputs."""
    encoder, adapter, raw = _adapted(registry, offer)
    _train(encoder, raw)
    with torch.no_grad():
        before = encoder(raw).values
        adapter.fold(encoder)
        assert torch.allclose(encoder(raw).values, before, atol=1e-4)
    plain = set(world.PromptableEncoder().state_dict())
    found = set(encoder.state_dict())
    assert plain <= found and all(name.endswith(".bias") for name in found - plain)


def adapter_keeps_patterns_apart(registry: Registry, offer: Offer) -> None:
    """What it learns under one availability pattern changes nothing under another, in mixed batches too."""
    encoder, adapter, raw = _adapted(registry, offer)
    if not adapter.by_pattern:
        raise NotHere("what it does is the same whoever is present")
    with torch.no_grad():
        base = encoder.eval()(raw).values
    _train(encoder, raw)
    with torch.no_grad():
        alone = encoder(raw).values
        adapter.select(_present(m1=True))
        assert torch.allclose(encoder(raw).values, base, atol=1e-6)
        mixed = {**_present(m1=True), "m1": torch.arange(ROWS) % 2 == 0}
        adapter.select(mixed)
        expected = torch.where(mixed["m1"][:, None, None], base, alone)
        assert torch.allclose(encoder(raw).values, expected, atol=1e-5)


def _trained_by(
    registry: Registry, offer: Offer, counts: Sequence[int] = (1, 2, 3)
) -> Iterator[tuple[MultimodalModel, Procedure]]:
    """Build the procedure with a model of every fusion that it takes, nothing standing in; where it takes no
    such model, with the strategies of its own module and two fusions, since those have met all.

    The first is tried with each count of modalities, the others, of which there may be many, with one.
    """
    fusions = world.partners(registry, "fusion")
    for place, strategy in enumerate(world.strategies_for(registry, offer)):
        found = 0
        for fusion in fusions if place == 0 else world.one_of_each_sort(registry, fusions):
            for count in counts if not found else counts[-1:]:
                try:
                    model = world.assemble(registry, strategy, fusion, count)
                    known = {"modalities": model.modalities, "task": world.task(), "pattern": None, "seed": 0}
                    known["teacher"] = copy.deepcopy(model)
                    procedure: Procedure = world.build(registry, offer, known)
                    procedure.check(model)
                except InputError:
                    continue  # refused with a reason: they do not go together
                found += 1
                yield model, procedure
        if found:
            return
    raise AssertionError("it takes no model of the fusions that there are")


def _run(model: MultimodalModel, procedure: Procedure, batch: Batch) -> list[Tensor]:
    """Take the steps of two epochs of one batch by plain gradient descent; give the losses."""
    torch.manual_seed(0)
    losses = []
    trainable = [p for p in model.train().parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=0.1)
    for epoch in range(2):
        procedure.epoch_started(epoch, 1)
        for step in procedure.steps(model, batch):
            assert step.loss.ndim == 0 and bool(torch.isfinite(step.loss)) and step.losses
            optimizer.zero_grad(set_to_none=True)
            step.loss.backward()
            if step.after_backward is not None:
                step.after_backward()
            optimizer.step()
            losses.append(step.loss.detach())
    assert losses
    return losses


def procedure_yields_steps_that_can_be_taken(registry: Registry, offer: Offer) -> None:
    """Every step's loss is a finite scalar with gradient, its parts are named, and nothing becomes NaN."""
    for model, procedure in _trained_by(registry, offer):
        for case in world.presences(len(model.modalities)).values():
            _run(model, procedure, world.batch_of(case))
            assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def procedure_never_reads_what_is_absent(registry: Registry, offer: Offer) -> None:
    """NaN in place of an absent input changes no loss and no weight."""
    for model, procedure in _trained_by(registry, offer, counts=(3,)):
        for case in world.presences(len(model.modalities)).values():
            results = []
            for filler in (0.0, float("nan")):
                # One copy of both: a procedure may hold on to what it was told of the model.
                trial, own = copy.deepcopy((model, procedure))
                losses = _run(trial, own, world.batch_of(case, filler))
                results.append([*losses, *trial.parameters()])
            assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def procedure_trains_everywhere(registry: Registry, offer: Offer) -> None:
    """Where rows of every pattern are there, its steps move every trainable parameter."""
    for model, procedure in _trained_by(registry, offer, counts=(2, 3)):
        before = copy.deepcopy(dict(model.named_parameters()))
        _run(model, procedure, world.batch_of(_mixed(model.modalities)))
        stuck = [
            n
            for n, p in model.named_parameters()
            if p.requires_grad and torch.equal(p, before[n]) and not SHIFTS_A_KEY.search(n)
        ]
        assert not stuck, f"{sorted(stuck)} did not move"


def procedure_is_a_function_of_the_seed(registry: Registry, offer: Offer) -> None:
    """The same model, batch and seed give the same weights."""
    for first, again in zip(
        _trained_by(registry, offer, (2,)), _trained_by(registry, offer, (2,)), strict=True
    ):
        for model, procedure in (first, again):
            _run(model, procedure, world.batch_of(_mixed(model.modalities)))
        assert all(
            torch.equal(a, b) for a, b in zip(first[0].parameters(), again[0].parameters(), strict=True)
        )


def _mixed(modalities: Sequence[str]) -> Mapping[str, list[int]]:
    """Make rows of every availability pattern, each twice."""
    codes = range(1, 2 ** len(modalities))
    return {m: [code >> i & 1 for code in codes] * 2 for i, m in enumerate(modalities)}
