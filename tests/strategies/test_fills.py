"""The controls: zeros, a running mean, or nothing in an absent modality's place."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmx.contracts import Strategy, Tokens
from mmx_strategies.mean_fill import MeanFill
from mmx_strategies.skip import Skip
from mmx_strategies.zero_fill import ZeroFill

WIDTH = 4
THERE = {"m0": torch.tensor([True, True, False]), "m1": torch.tensor([True, False, True])}


def tokens_of(seed: int = 0, there: dict[str, torch.Tensor] = THERE) -> dict[str, Tokens]:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for m, present in there.items():
        valid = present[:, None].expand(-1, 2)
        values = torch.randn(len(present), 2, WIDTH, generator=generator)
        found[m] = Tokens(torch.where(valid[:, :, None], values, 0.0), valid)
    return found


def strategies() -> list[Strategy]:
    return [Skip(), ZeroFill(), MeanFill(("m0", "m1"), WIDTH)]


@pytest.mark.parametrize("strategy", strategies(), ids=lambda s: type(s).__name__)
def test_what_is_there_stays_as_it_is(strategy: Strategy) -> None:
    tokens = tokens_of()
    filled = strategy.train().fill(tokens, THERE, tokens).tokens
    for m, present in THERE.items():
        assert torch.equal(filled[m].values[present], tokens[m].values[present])
        assert torch.equal(filled[m].valid[present], tokens[m].valid[present])


@pytest.mark.parametrize("strategy", strategies(), ids=lambda s: type(s).__name__)
def test_controls_have_no_loss_and_nothing_that_trains(strategy: Strategy) -> None:
    tokens = tokens_of()
    assert not strategy.train().fill(tokens, THERE, tokens).losses
    assert not list(strategy.parameters()) and not strategy.uses_targets and not strategy.encodes_by_pattern


def test_skip_leaves_the_absent_without_a_valid_token() -> None:
    filled = Skip().fill(tokens_of(), THERE, None).tokens
    assert not bool(filled["m0"].valid[2].any())


def test_zero_fill_makes_one_zero_token_valid() -> None:
    filled = ZeroFill().fill(tokens_of(), THERE, None).tokens
    for m, present in THERE.items():
        assert filled[m].valid[~present].tolist() == [[True, False]]
        assert float(filled[m].values[~present].abs().sum()) == 0


@pytest.mark.parametrize(
    "strategy", [ZeroFill(), MeanFill(("m0", "m1"), WIDTH)], ids=lambda s: type(s).__name__
)
def test_modality_that_nobody_has_is_filled_too(strategy: Strategy) -> None:
    there = {"m0": torch.ones(3, dtype=torch.bool), "m1": torch.zeros(3, dtype=torch.bool)}
    tokens = tokens_of(there=there)
    tokens["m1"] = Tokens(torch.zeros(3, 0, WIDTH), torch.zeros(3, 0, dtype=torch.bool))
    filled = strategy.train().fill(tokens, there, tokens).tokens["m1"]
    assert filled.values.shape == (3, 1, WIDTH) and bool(filled.valid.all())


@given(steps=st.integers(1, 6), momentum=st.floats(0.01, 1.0))
@settings(deadline=None, max_examples=25)
def test_mean_fill_is_the_exponential_mean_corrected_for_its_start(steps: int, momentum: float) -> None:
    strategy = MeanFill(("m0", "m1"), WIDTH, momentum).train()
    total, weight = torch.zeros(WIDTH), 0.0
    for step in range(steps):
        tokens = tokens_of(step)
        filled = strategy.fill(tokens, THERE, tokens).tokens
        mean = tokens["m0"].values[THERE["m0"], 0].mean(dim=0)
        total, weight = (1 - momentum) * total + momentum * mean, (1 - momentum) * weight + momentum
        assert torch.allclose(filled["m0"].values[2, 0], total / weight, atol=1e-5)


def test_mean_fill_after_one_step_is_that_steps_mean() -> None:
    strategy, tokens = MeanFill(("m0", "m1"), WIDTH).train(), tokens_of()
    filled = strategy.fill(tokens, THERE, tokens).tokens["m0"]
    assert torch.allclose(filled.values[2, 0], tokens["m0"].values[:2, 0].mean(dim=0), atol=1e-6)


def test_mean_fill_does_not_move_in_evaluation() -> None:
    strategy, tokens = MeanFill(("m0", "m1"), WIDTH), tokens_of()
    strategy.train().fill(tokens, THERE, tokens)
    before = {n: b.clone() for n, b in strategy.named_buffers()}
    strategy.eval().fill(tokens_of(5), THERE, None)
    assert all(torch.equal(b, before[n]) for n, b in strategy.named_buffers())


def test_mean_fill_learns_from_present_rows_only() -> None:
    noise = tokens_of()
    values = noise["m0"].values.clone()
    values[2] = 1e6
    noisy = {**noise, "m0": Tokens(values, noise["m0"].valid)}
    first, second = (MeanFill(("m0", "m1"), WIDTH).train() for _ in range(2))
    first.fill(tokens_of(), THERE, None)
    second.fill(noisy, THERE, None)
    assert torch.equal(first.get_buffer("mean_m0"), second.get_buffer("mean_m0"))


def test_mean_fill_before_any_training_is_zero() -> None:
    filled = MeanFill(("m0", "m1"), WIDTH).eval().fill(tokens_of(), THERE, None).tokens
    assert float(filled["m0"].values[2].abs().sum()) == 0


def test_mean_fill_carries_no_gradient_into_the_encoders() -> None:
    raw = torch.randn(3, 2, WIDTH, requires_grad=True)
    valid = THERE["m0"][:, None].expand(-1, 2)
    tokens = {**tokens_of(), "m0": Tokens(torch.where(valid[:, :, None], raw, 0.0), valid)}
    strategy = MeanFill(("m0", "m1"), WIDTH).train()
    filled = strategy.fill(tokens, THERE, tokens).tokens["m0"]
    assert not strategy.get_buffer("mean_m0").requires_grad
    filled.values[2].sum().backward()
    assert raw.grad is None or float(raw.grad.abs().sum()) == 0
