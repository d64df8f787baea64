"""MoRA: its equations against a plain reference, what is shared, where it starts, what it refuses."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from mmx.builtin.adapters.frozen import Frozen
from mmx.errors import InputError
from mmx.testing import world
from mmx_strategies.mora import Changed, Mora

Pair = tuple[dict[str, world.PromptableEncoder], dict[str, Mora]]


def pair(count: int = 2, **options: Any) -> Pair:
    """Adapt some encoders, and let their adapters meet."""
    torch.manual_seed(0)
    encoders = {m: world.PromptableEncoder().eval() for m in world.names(count)}
    adapters = {m: Mora(modality=m, rank=2, **options) for m in encoders}
    for m, encoder in encoders.items():
        adapters[m].apply(encoder)
    for m in encoders:
        adapters[m].meet({n: other for n, other in adapters.items() if n != m})
    return encoders, adapters


def disturb(adapters: dict[str, Mora]) -> None:
    """Let training have happened."""
    torch.manual_seed(1)
    with torch.no_grad():
        for adapter in adapters.values():
            for layer in adapter.layers:
                for parameter in layer.parameters():
                    parameter.add_(0.3 * torch.randn_like(parameter))


def columns(weight: Tensor) -> Tensor:
    """Scale each column to length one, column by column."""
    return torch.stack([column / column.square().sum().sqrt() for column in weight.T], dim=1)


def raw(rows: int = 3) -> Tensor:
    return torch.randn(rows, world.FEATURES, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_weights_are_those_of_the_equations(count: int) -> None:
    _, adapters = pair(count, alpha=0.2)
    begun = {m: [layer.factors.detach().clone() for layer in a.layers] for m, a in adapters.items()}
    disturb(adapters)
    torch.manual_seed(3)
    weight = torch.randn(world.WIDTH, world.WIDTH)
    for m, adapter in adapters.items():
        for place, layer in enumerate(adapter.layers):
            changes = []
            for factors in ({n: a.layers[place].factors for n, a in adapters.items()}, None):
                own = {n: begun[n][place] for n in adapters} if factors is None else factors
                grams = [own[n].T @ own[n] for n in own if n != m] or [torch.eye(2)]
                changes.append(own[m] @ (sum(grams) / len(grams)) @ own[m].T)
            shared = layer.magnitude_shared * columns(weight + 0.2 * (changes[0] - changes[1]))
            own_part = layer.magnitude * columns(weight + 0.2 * layer.up @ layer.down)
            assert torch.allclose(layer(weight), shared + own_part, atol=1e-5)


@pytest.mark.parametrize("shared", [True, False])
def test_it_starts_at_the_plain_encoder(shared: bool) -> None:
    encoders, _ = pair(shared=shared)
    torch.manual_seed(0)
    for encoder in encoders.values():
        plain = world.PromptableEncoder().eval()
        assert torch.allclose(encoder(raw()).values, plain(raw()).values, atol=1e-5)


def test_what_one_encoder_learns_of_the_shared_factors_moves_the_other() -> None:
    encoders, adapters = pair()
    disturb(adapters)  # at the start S enters as its change alone
    before = encoders["m1"](raw()).values
    with torch.no_grad():
        adapters["m0"].layers[-1].factors.mul_(2)
    assert not torch.allclose(encoders["m1"](raw()).values, before, atol=1e-4)


def test_the_loss_of_one_encoder_reaches_the_factors_of_the_other() -> None:
    encoders, adapters = pair()
    disturb(adapters)
    encoders["m1"](raw()).values.square().sum().backward()
    assert all(layer.factors.grad.any() for layer in adapters["m0"].layers)
    assert all(layer.up.grad is None for layer in adapters["m0"].layers)


def test_nothing_is_shared_where_that_is_switched_off_or_the_other_is_frozen() -> None:
    _, adapters = pair(shared=False)
    assert not any(layer.others for a in adapters.values() for layer in a.layers)
    alone = Mora(modality="m0")
    alone.apply(world.PromptableEncoder())
    alone.meet({"m1": Frozen()})
    assert not any(layer.others for layer in alone.layers)


def test_folding_one_encoder_after_the_other_keeps_both_outputs() -> None:
    encoders, adapters = pair()
    disturb(adapters)
    before = {m: encoder(raw()).values for m, encoder in encoders.items()}
    for m, adapter in adapters.items():
        adapter.fold(encoders[m])
    plain = set(world.PromptableEncoder().state_dict())
    for m, encoder in encoders.items():
        assert torch.allclose(encoder(raw()).values, before[m], atol=1e-5)
        assert set(encoder.state_dict()) == plain


def test_a_copy_shares_with_its_own_copies_alone() -> None:
    encoders, adapters = pair()
    disturb(adapters)
    again, adapters_again = copy.deepcopy((encoders, adapters))
    with torch.no_grad():
        adapters["m0"].layers[-1].factors.mul_(2)
    assert not torch.allclose(again["m1"](raw()).values, encoders["m1"](raw()).values, atol=1e-4)
    assert adapters_again["m1"].layers[-1].others[0] is adapters_again["m0"].layers[-1]


def test_maps_are_paired_from_the_last_one_back() -> None:
    torch.manual_seed(0)
    whole, last = Mora(modality="m0", rank=2), Mora(modality="m1", rank=2, targets=r".*blocks\.1\..*query")
    for adapter in (whole, last):
        adapter.apply(world.PromptableEncoder())
    last.meet({"m0": whole})
    assert [layer.others for layer in last.layers] == [[whole.layers[-1]]]


def test_a_column_of_zeros_does_no_harm() -> None:
    weight = torch.randn(4, 4)
    weight[:, 1] = 0
    assert torch.allclose(Changed(weight, 2, 0.1, shared=True)(weight), weight, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"modality": None}, "for encoders"),
        ({"rank": 0}, "below 1"),
        ({"targets": "nothing"}, "match no module"),
        ({"targets": "("}, "no regex"),
        ({"targets": ".*up"}, "same width"),
    ],
)
def test_what_cannot_be_adapted_is_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        Mora(**{"modality": "m0", **options}).apply(world.PromptableEncoder())


def test_ranks_that_differ_are_refused() -> None:
    with pytest.raises(InputError, match="one rank"):
        Mora(modality="m0", rank=2).meet({"m1": Mora(modality="m1", rank=4)})
