"""ShaSpec: its equations against a plain reference, what each switch takes away, and what is refused."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmx.contracts import Filled, Presence, Tokens
from mmx.errors import InputError
from mmx.testing import world
from mmx_strategies.hiding import keep_some
from mmx_strategies.shaspec import ShaSpec

WIDTH = 8
SOME = {"m0": [1, 1, 0, 1], "m1": [1, 0, 1, 1], "m2": [1, 0, 0, 1]}


def strategy_of(count: int = 3, **options: Any) -> ShaSpec:
    torch.manual_seed(0)
    return ShaSpec(world.names(count), WIDTH, **options)


def presence_of(given: Mapping[str, Sequence[int]]) -> Presence:
    return {m: torch.tensor(present, dtype=torch.bool) for m, present in given.items()}


def tokens_of(given: Mapping[str, Sequence[int]]) -> dict[str, Tokens]:
    generator = torch.Generator().manual_seed(1)
    found = {}
    for m, present in presence_of(given).items():
        valid = present[:, None].expand(-1, 2)
        values = torch.randn(len(present), 2, WIDTH, generator=generator)
        found[m] = Tokens(torch.where(valid[:, :, None], values, 0.0), valid)
    return found


def filled_by(strategy: ShaSpec, given: Mapping[str, Sequence[int]] = SOME) -> Filled:
    tokens = tokens_of(given)
    return strategy.fill(tokens, presence_of(given), tokens)


def by_hand(map_: nn.Module, x: Tensor) -> Tensor:
    """Apply a layer norm and a perceptron of two layers to one vector."""
    norm, first, _, second = map_.children()
    x = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt() * norm.weight + norm.bias
    hidden = first.weight @ x + first.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    return second.weight @ hidden + second.bias


def parts_by_hand(strategy: ShaSpec, row: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Give a row's r and s of what it has."""
    tokens = tokens_of(SOME)
    there = [m for m in SOME if SOME[m][row]]
    r = {m: by_hand(strategy.shared["all"], tokens[m].values[row, 0]) for m in there}
    return r, {m: by_hand(strategy.specific[m], tokens[m].values[row, 0]) for m in there}


@pytest.mark.parametrize("row", range(4))
def test_features_are_composed_where_present_and_the_mean_of_shared_ones_where_not(row: int) -> None:
    strategy = strategy_of()
    found = filled_by(strategy)
    r, s = parts_by_hand(strategy, row)
    for m in SOME:
        if m in r:
            both = torch.cat([r[m], s[m]])
            expected = r[m] + strategy.compose.weight @ both + strategy.compose.bias
        else:
            expected = sum(r.values()) / len(r)
        assert torch.allclose(found.tokens[m].values[row, 0], expected, atol=1e-5)
        assert found.tokens[m].valid[row].tolist() == [True, m in r]


def test_shared_loss_is_the_sum_of_l1_over_pairs_that_are_there() -> None:
    strategy = strategy_of()
    rows = [parts_by_hand(strategy, row)[0] for row in range(4)]
    expected = torch.zeros(())
    for m, n in (("m0", "m1"), ("m0", "m2"), ("m1", "m2")):
        pairs = [(r[m] - r[n]).abs().mean() for r in rows if m in r and n in r]
        expected = expected + sum(pairs) / len(pairs)
    assert float(filled_by(strategy).losses["dao"].detach()) == pytest.approx(
        0.1 * float(expected.detach()), rel=1e-4
    )


def test_specific_loss_is_the_cross_entropy_of_which_modality_it_is() -> None:
    strategy = strategy_of()
    costs = []
    for row in range(4):
        for m, s in parts_by_hand(strategy, row)[1].items():
            logits = strategy.classifier.weight @ s + strategy.classifier.bias
            costs.append(float((logits.logsumexp(dim=0) - logits[list(SOME).index(m)]).detach()))
    expected = 0.02 * sum(costs) / len(costs)
    assert float(filled_by(strategy).losses["dco"].detach()) == pytest.approx(expected, rel=1e-4)


def test_losses_belong_to_training_and_to_several_modalities() -> None:
    tokens = tokens_of(SOME)
    assert not strategy_of().fill(tokens, presence_of(SOME), None).losses
    alone = filled_by(strategy_of(1), {"m0": [1, 1]})
    assert not alone.losses and alone.tokens["m0"].valid.all()


def test_rows_without_pairs_cost_nothing() -> None:
    alone = filled_by(strategy_of(2), {"m0": [1, 1], "m1": [0, 0]})
    assert float(alone.losses["dao"].detach()) == 0 and float(alone.losses["dco"].detach()) > 0


@pytest.mark.parametrize(
    ("options", "losses"),
    [({"dao": 0.0}, {"dco"}), ({"dco": 0.0}, {"dao"}), ({"specific": False}, {"dao"})],
)
def test_switches_take_losses_away(options: dict[str, Any], losses: set[str]) -> None:
    assert filled_by(strategy_of(**options)).losses.keys() == losses


def test_zeros_can_stand_in_and_shared_maps_can_be_own_ones() -> None:
    zeros = filled_by(strategy_of(substitute="zero")).tokens
    assert not zeros["m1"].values[1, 0].any() and zeros["m1"].valid[1, 0]
    assert strategy_of(shared=False).shared.keys() == set(SOME)


def test_without_specific_features_all_modalities_pass_the_one_map() -> None:
    strategy = strategy_of(specific=False)
    expected = by_hand(strategy.shared["all"], tokens_of(SOME)["m0"].values[0, 0])
    assert torch.allclose(filled_by(strategy).tokens["m0"].values[0, 0], expected, atol=1e-5)


def test_dropping_keeps_each_number_of_modalities_as_often() -> None:
    torch.manual_seed(0)
    everyone = {m: torch.ones(3000, dtype=torch.bool) for m in world.names(3)}
    left = torch.stack(list(keep_some(everyone, world.names(3)).values()))
    counts = left.sum(dim=0).bincount(minlength=4).tolist()
    assert counts[0] == 0 and all(900 < count < 1100 for count in counts[1:])
    assert all(1900 < count < 2100 for count in left.sum(dim=1).tolist())


def test_dropping_leaves_what_is_alone_and_can_be_switched_off() -> None:
    torch.manual_seed(0)
    given = presence_of({"m0": [1, 0, 0], "m1": [0, 1, 0], "m2": [0, 0, 0]})
    assert all(torch.equal(left, given[m]) for m, left in keep_some(given, tuple(given)).items())
    assert strategy_of(drop=False).hide(given) is given


@pytest.mark.parametrize("options", [{"dao": -1.0}, {"dco": -0.1}, {"hidden": 0}])
def test_weights_and_widths_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="shaspec"):
        strategy_of(**options)
