"""The statistics behind a comparison: known answers, symmetry, and how often they err."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmx.report.comparison import Comparison
from mmx.report.resampling import bootstrap_p, holm, interval, resampled_means, signed_rank_p
from mmx.scores import Array, Score

Compared = Callable[..., Comparison]
MEDIAN = Score("median", lambda outputs, targets: float(np.median(outputs[:, 0])))


def corrected(found: Comparison) -> Comparison:
    """Correct a comparison that is the only one."""
    return replace(found, corrected=found.p)


def noise(seed: int, seeds: int = 3, samples: int = 200, scale: float = 0.3) -> Array:
    return np.random.default_rng(seed).normal(0.5, scale, (seeds, samples))


# ----------------------------------------------------------------------------------------- known answers


@pytest.mark.parametrize("score", [None, MEDIAN], ids=["mean", "no mean"])
def test_identical_predictions_do_not_differ(compared: Compared, score: Score | None) -> None:
    values = noise(0, samples=60)
    found = corrected(compared(values, values, **({"score": score} if score else {})))
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1) and not found.better
    assert "no difference can be told between one and other" in found.told()


@pytest.mark.parametrize("score", [None, MEDIAN], ids=["mean", "no mean"])
def test_planted_difference_is_found(compared: Compared, score: Score | None) -> None:
    base = noise(1, samples=150)
    found = corrected(
        compared(
            base + 0.2 + noise(2, samples=150, scale=0.1) - 0.5, base, **({"score": score} if score else {})
        )
    )
    assert found.better == "one" and found.low < 0.2 < found.high
    assert "one is better than other by" in found.told()


def test_interval_is_that_of_the_normal_law_where_seeds_agree(compared: Compared) -> None:
    difference = np.tile(np.random.default_rng(3).normal(0.1, 0.5, 2000), (5, 1))
    found = compared(difference, np.zeros_like(difference))
    half = 1.96 * difference[0].std() / np.sqrt(2000)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.08)


def test_interval_knows_the_spread_over_seeds(compared: Compared) -> None:
    shifts = np.random.default_rng(4).normal(0, 0.05, (8, 1))
    found = compared(shifts + np.zeros((8, 500)), np.zeros((8, 500)))
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * shifts.std() / np.sqrt(8), rel=0.12)


def test_means_that_are_drawn_are_those_of_a_loop() -> None:
    values = noise(5, seeds=3, samples=20)
    draws = resampled_means(values[:, None], draws=4000)[:, 0]
    random = np.random.default_rng(6)
    slow = [
        values[random.integers(0, 3, 3)][:, random.integers(0, 20, 20)].mean() for _ in range(4000)
    ]  # fmt: skip
    assert draws.mean() == pytest.approx(np.mean(slow), abs=0.005)
    assert draws.std() == pytest.approx(np.std(slow), rel=0.06)


def test_many_samples_are_drawn_in_parts_of_which_none_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmx.report import resampling

    monkeypatch.setattr(resampling, "CHUNK", 100)
    assert resampled_means(np.ones((2, 3, 40)), draws=7).tolist() == [[1.0] * 3] * 7


def test_signed_rank_test_is_that_of_a_hand_computation() -> None:
    # 1, 2, 3, 4, 5 with one minus on the smallest: W = 1; of 32 sign patterns 2 reach W ≤ 1, on both sides 4.
    assert signed_rank_p(np.array([-1.0, 2, 3, 4, 5])) == pytest.approx(4 / 32)


def test_rounding_is_no_difference() -> None:
    assert signed_rank_p(np.array([1e-17, -1e-17, 0, 2e-16])) == 1.0


def test_holm_is_that_of_a_hand_computation() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04, times 4, 3, 2, 1, never below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0] and holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_never_helps_and_keeps_the_order(values: list[float]) -> None:
    found = holm(values)
    assert all(p <= q <= min(1.0, len(values) * p) for p, q in zip(values, found, strict=True))
    assert all(
        found[i] <= found[j] for i in range(len(values)) for j in range(len(values)) if values[i] < values[j]
    )


def test_p_of_the_bootstrap_is_never_nought_and_leaves_out_what_is_not_defined() -> None:
    assert bootstrap_p(np.array([0.1] * 99)) == pytest.approx(0.02)
    assert bootstrap_p(np.array([0.1] * 99 + [np.nan] * 50)) == pytest.approx(0.02)
    low, high = interval(np.array([np.nan, 1.0, 1.0]), 0.95)
    assert (low, high) == (1.0, 1.0) and np.isnan(interval(np.array([np.nan]), 0.95)[0])


# --------------------------------------------------------------------------------- symmetry, determinism


@pytest.mark.parametrize("score", [None, MEDIAN], ids=["mean", "no mean"])
def test_the_other_way_round_all_signs_turn(compared: Compared, score: Score | None) -> None:
    more = {"score": score} if score else {}
    one, other = noise(7, samples=80), noise(8, samples=80)
    there, back = compared(one, other, **more), compared(other, one, **more)
    assert back.difference == pytest.approx(-there.difference)
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low))
    assert back.p == pytest.approx(there.p)


def test_the_same_predictions_give_the_same_figures(compared: Compared) -> None:
    assert compared(noise(9), noise(10)) == compared(noise(9), noise(10))


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(2, 40))
def test_difference_lies_between_the_extremes_of_the_draws(seed: int, seeds: int, samples: int) -> None:
    draws = resampled_means(noise(seed, seeds, samples)[:, None])[:, 0]
    low, high = interval(draws, 0.95)
    assert draws.min() <= low <= high <= draws.max()


def test_higher_confidence_gives_a_wider_interval(compared: Compared) -> None:
    wide, narrow = (compared(noise(11), noise(12), confidence=c) for c in (0.99, 0.8))
    assert wide.low < narrow.low < narrow.high < wide.high


# ------------------------------------------------------------------------------------- how often they err


def wrongly_told(compared: Compared, spread: float, seeds: int, times: int = 200) -> float:
    """Say how often a difference is told where there is none; `spread`: of training, from seed to seed."""
    random = np.random.default_rng(13)
    told = 0
    for _ in range(times):
        shift = random.normal(0, spread, (2, seeds, 1))
        one, other = (random.random((2, seeds, 120)) < 0.8 + shift).astype(float)
        told += bool(corrected(compared(one, other)).better)
    return told / times


def test_without_a_spread_of_training_a_difference_is_wrongly_told_no_more_often_than_allowed(
    compared: Compared,
) -> None:
    assert wrongly_told(compared, 0.0, seeds=3) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 200)


def test_with_a_spread_of_training_five_seeds_keep_the_error_near_the_level(compared: Compared) -> None:
    assert wrongly_told(compared, 0.03, seeds=5) <= 0.10


def test_true_difference_is_mostly_covered_by_its_interval(compared: Compared) -> None:
    random = np.random.default_rng(14)
    covered = 0
    for _ in range(200):
        one = (random.random((3, 120)) < 0.85).astype(float)
        other = (random.random((3, 120)) < 0.75).astype(float)
        found = compared(one, other)
        covered += found.low <= 0.1 <= found.high
    assert covered / 200 >= 0.91
