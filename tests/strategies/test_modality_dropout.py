"""Modality dropout: how often what is hidden, and that something always remains."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mmx.builtin.fusions.mean_logits import MeanLogits
from mmx.errors import InputError
from mmx.model import MultimodalModel
from mmx.testing import world
from mmx_strategies.modality_dropout import ModalityDropout
from mmx_strategies.skip import Skip

ROWS = 6000


def hidden(strategy: ModalityDropout, presence: dict[str, Tensor], seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    left = strategy.hide(presence)
    assert list(left) == list(presence)
    return torch.stack(list(left.values()))


@given(st.data())
def test_rows_keep_one_of_what_they_had_and_gain_nothing(data: st.DataObject) -> None:
    count, rows = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 8))
    some = st.lists(st.booleans(), min_size=rows, max_size=rows)
    presence = {m: torch.tensor(data.draw(some)) for m in world.names(count)}
    strategy = ModalityDropout(world.names(count), data.draw(st.floats(0, 0.99)))
    left, had = hidden(strategy, presence, data.draw(st.integers(0, 99))), torch.stack([*presence.values()])
    assert not bool((left & ~had).any())
    assert torch.equal(left.any(dim=0), had.any(dim=0))


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("rate", [0.2, 0.5, 0.9])
def test_each_modality_is_hidden_at_the_rate_but_where_it_would_be_the_last(count: int, rate: float) -> None:
    presence = {m: torch.ones(ROWS, dtype=torch.bool) for m in world.names(count)}
    share = (~hidden(ModalityDropout(world.names(count), rate), presence)).double().mean(dim=1)
    expected = rate - rate**count / count
    assert float((share - expected).abs().max()) <= 5 * math.sqrt(expected * (1 - expected) / ROWS)


def test_modalities_are_hidden_independently() -> None:
    presence = {m: torch.ones(ROWS, dtype=torch.bool) for m in world.names(3)}
    lost = ~hidden(ModalityDropout(world.names(3), 0.3), presence)
    expected = 3 * 0.3**2 * 0.7 + 0.3**3  # two fall, or all three and one is kept
    both = float((lost.sum(dim=0) == 2).double().mean())
    assert abs(both - expected) <= 5 * math.sqrt(expected * (1 - expected) / ROWS)


def test_what_is_kept_is_evenly_chosen_among_what_the_row_had() -> None:
    everyone, nobody = torch.ones(ROWS, dtype=torch.bool), torch.zeros(ROWS, dtype=torch.bool)
    left = hidden(
        ModalityDropout(world.names(3), 0.999), {"m0": everyone, "m1": nobody, "m2": everyone}
    ).double()
    share = left.mean(dim=1).tolist()
    assert share[1] == 0 and share[0] == pytest.approx(0.5, abs=0.04) and share[0] + share[2] < 1.01


def test_row_with_one_modality_keeps_it() -> None:
    presence = {"m0": torch.tensor([True, False] * 200), "m1": torch.tensor([False, True] * 200)}
    assert torch.equal(
        hidden(ModalityDropout(("m0", "m1"), 0.9), presence), torch.stack(list(presence.values()))
    )


def test_rate_zero_leaves_presence_as_it_is() -> None:
    presence = {m: torch.tensor([True, False, True]) for m in world.names(2)}
    assert ModalityDropout(world.names(2), 0.0).hide(presence) is presence


def test_hiding_is_a_function_of_the_seed() -> None:
    presence = {m: torch.ones(50, dtype=torch.bool) for m in world.names(2)}
    strategy = ModalityDropout(world.names(2))
    first, again, other = (hidden(strategy, presence, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_it_hides_in_training_and_never_in_evaluation() -> None:
    torch.manual_seed(0)
    encoders = {m: world.PlainEncoder() for m in world.names(2)}
    fusion = MeanLogits(world.names(2), world.WIDTH // 2, world.task())
    model = MultimodalModel(encoders, ModalityDropout(world.names(2), 0.9), fusion, world.WIDTH // 2)
    batch = world.batch_of({m: [1] * 20 for m in world.names(2)})
    trained, evaluated = model.train()(batch), model.eval()(batch)
    assert not all(bool(t.valid.all()) for t in trained.tokens.values())
    assert all(bool(t.valid.all()) for t in evaluated.tokens.values())
    model.strategy = Skip()
    assert torch.equal(model.eval()(batch).logits, evaluated.logits)


def test_nothing_stands_in_and_nothing_trains() -> None:
    tokens = {m: world.PlainEncoder()(torch.randn(3, world.FEATURES)) for m in world.names(2)}
    presence = {m: torch.ones(3, dtype=torch.bool) for m in world.names(2)}
    strategy = ModalityDropout(world.names(2))
    filled = strategy.train().fill(tokens, presence, tokens)
    assert filled.tokens == tokens and not filled.losses and not list(strategy.parameters())


@pytest.mark.parametrize("rate", [-0.1, 1.0, 2.0, float("nan")])
def test_rate_outside_zero_to_one_is_refused(rate: float) -> None:
    with pytest.raises(InputError, match="rate"):
        ModalityDropout(world.names(2), rate)
