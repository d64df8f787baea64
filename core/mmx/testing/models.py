"""Laws of strategies and fusions, tried inside whole models."""

import copy
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from mmx.contracts import Batch, Strategy
from mmx.data import Split
from mmx.errors import InputError
from mmx.evaluate import predict_patterns
from mmx.model import MultimodalModel
from mmx.protocols import all_patterns
from mmx.registry import Offer, Registry
from mmx.testing import world
from mmx.testing.laws import assert_gradient_everywhere

COUNTS = (1, 2, 3)


def _models(
    registry: Registry, offer: Offer, counts: tuple[int, ...] = COUNTS, seed: int = 0
) -> Iterator[MultimodalModel]:
    """Build the component into models of one to three modalities.

    A strategy meets every fusion, and the first of each sort (with prompts and without) at every count, with
    encoders that take prompts and that do not. A fusion, which every strategy meets already, meets one of
    each sort (hiding or not, with prompts or without) once more, with three modalities.
    """
    partner = "fusion" if offer.kind == "strategy" else "strategy"
    built = 0
    sorts: set[bool] = set()
    others = world.partners(registry, partner)
    for other in others if partner == "fusion" else _one_of_each_sort(registry, others):
        strategy, fusion = (offer, other) if partner == "fusion" else (other, offer)
        sort = bool(getattr(_load(registry, fusion), "accepts_prompts", False))
        thorough = partner == "fusion" and sort not in sorts
        sorts.add(sort)
        some = ((2, False),) if partner == "fusion" else ((counts[-1], False),)
        for count, plain in product(counts, (False, True)) if thorough else some:
            try:
                model = world.assemble(registry, strategy, fusion, count, plain, seed)
            except InputError:
                continue  # refused with a reason: this pair does not go together
            built += 1
            yield model
    assert built, f"no {partner} goes together with it"


def _one_of_each_sort(registry: Registry, strategies: Sequence[Offer]) -> list[Offer]:
    sorts: dict[tuple[bool, bool], Offer] = {}
    for offer in strategies:
        cls: Any = _load(registry, offer)
        sorts.setdefault((cls.hide is not Strategy.hide, cls.prompts is not Strategy.prompts), offer)
    return list(sorts.values())


def _load(registry: Registry, offer: Offer) -> type:
    return registry.load_class(offer.kind, f"{offer.distribution}:{offer.component.name}")


def model_answers_whoever_is_absent(registry: Registry, offer: Offer) -> None:
    """Logits are (batch, out) and finite for none, some, all but one absent, in training and evaluation."""
    for model in _models(registry, offer):
        for case, presence in world.presences(len(model.modalities)).items():
            for mode in (True, False):
                logits, losses, *_ = model.train(mode)(world.batch_of(presence))
                assert logits.shape == (4, world.CLASSES), case
                assert bool(torch.isfinite(logits).all()), case
                assert all(bool(torch.isfinite(loss)) and loss.ndim == 0 for loss in losses.values()), case
                assert mode or not losses, "losses belong to training"


def model_never_reads_what_is_absent(registry: Registry, offer: Offer) -> None:
    """NaN in place of an absent input changes no logit, no loss and no gradient."""
    for model in _models(registry, offer, counts=(2, 3)):
        for mode in (True, False):
            clean, probed = (_answers(model, mode, filler) for filler in (0.0, float("nan")))
            assert len(clean) == len(probed)
            assert all(torch.equal(a, b) for a, b in zip(clean, probed, strict=True))


def _answers(model: MultimodalModel, mode: bool, filler: float) -> list[Tensor]:
    """Run a copy of a model on every presence, one after another; give logits, losses and gradients."""
    trial = copy.deepcopy(model).train(mode)
    found: list[Tensor] = []
    for presence in world.presences(len(model.modalities)).values():
        torch.manual_seed(0)
        trial.zero_grad(set_to_none=True)
        logits, losses, *_ = trial(world.batch_of(presence, filler))
        (logits.square().mean() + sum(losses.values())).backward()
        found += [logits.detach(), *(loss.detach() for loss in losses.values())]
        found += [p.grad for p in trial.parameters() if p.grad is not None]
    return found


def model_treats_rows_apart(registry: Registry, offer: Offer) -> None:
    """In evaluation a row's logits do not depend on the others, nor on who is absent there."""
    for model in _models(registry, offer):
        model.eval()
        for presence in world.presences(len(model.modalities)).values():
            batch = world.batch_of(presence)
            with torch.no_grad():
                together = model(batch).logits
                for row in range(4):
                    alone = Batch(
                        {m: t[row : row + 1] for m, t in batch.inputs.items()},
                        {m: p[row : row + 1] for m, p in batch.presence.items()},
                        batch.target[row : row + 1],
                        batch.ids[row : row + 1],
                    )
                    assert torch.allclose(model(alone).logits[0], together[row], atol=1e-4)


def model_trains_everywhere(registry: Registry, offer: Offer) -> None:
    """Every trainable parameter gets gradient within two steps of training with modalities missing."""
    for model in _models(registry, offer, counts=(2, 3)):
        model.train()
        torch.manual_seed(0)
        everyone = all_patterns(model.modalities)
        presence = {m: [int(m in p) for p in everyone] * 4 for m in model.modalities}
        batch = world.batch_of(presence)

        def loss(model: MultimodalModel = model, batch: Batch = batch) -> Tensor:
            logits, losses, *_ = model(batch)
            return world.task().loss(logits, batch.target) + sum(losses.values())

        assert_gradient_everywhere(model, loss)


def model_evaluates_as_it_runs(registry: Registry, offer: Offer) -> None:
    """Predicting every pattern from one encoding pass gives what running each pattern alone gives."""
    for model in _models(registry, offer, counts=(2, 3)):
        split = Split(world.Rows(model.modalities), "test", model.modalities)
        found = predict_patterns(model, split, torch.device("cpu"), batch_size=3)
        rows = torch.arange(len(split))
        for pattern in all_patterns(model.modalities):
            presence = {m: torch.full((len(split),), m in pattern) for m in model.modalities}
            with torch.no_grad():
                logits = model.eval()(split.batch(rows, presence)).logits
            expected = split.task.outputs(logits).numpy()
            assert abs(found.outputs[pattern] - expected).max() < 1e-4, sorted(pattern)


def model_is_a_function_of_seed_and_state(registry: Registry, offer: Offer) -> None:
    """The same seed gives the same numbers; a state loaded elsewhere gives the same predictions."""
    first = _models(registry, offer, seed=0)
    again = _models(registry, offer, seed=0)
    other = _models(registry, offer, seed=1)
    for a, b, c in zip(first, again, other, strict=True):
        batch = world.batch_of(world.presences(len(a.modalities))["complete"])
        torch.manual_seed(0)
        trained = a.train()(batch).logits
        torch.manual_seed(0)
        assert torch.equal(trained, b.train()(batch).logits)
        c.load_state_dict(a.state_dict())
        with torch.no_grad():
            assert torch.equal(a.eval()(batch).logits, c.eval()(batch).logits)


def strategy_hides_but_never_all(registry: Registry, offer: Offer) -> None:
    """Hiding only takes away, and leaves each row at least one modality."""
    for model in _models(registry, offer):
        for presence in world.presences(len(model.modalities)).values():
            given = world.batch_of(presence).presence
            for seed in range(5):
                torch.manual_seed(seed)
                left = model.strategy.train().hide(given)
                assert all(bool((left[m] <= given[m]).all()) for m in given)
                assert bool(torch.stack(list(left.values())).any(dim=0).all())
