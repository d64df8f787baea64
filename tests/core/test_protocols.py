"""Masks: pure, nested, never all absent, realised as promised; natural absence and-ed in."""

import math
import random
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmx.builtin.protocols.missing_table import MissingTable
from mmx.builtin.protocols.patterns import Patterns
from mmx.builtin.protocols.per_cell import PerCell
from mmx.builtin.protocols.per_modality import PerModality
from mmx.builtin.protocols.per_sample import PerSample
from mmx.errors import InputError
from mmx.protocols import (
    Presence,
    Protocol,
    all_patterns,
    derive_seed,
    draw_presence,
    natural_groups,
    pattern_weights,
    rate_of_each,
    uniforms,
)
from mmx.registry import Registry
from mmx.testing import world

OFFERS = [o for o in Registry.load().offers if o.kind == "protocol"]
APART = [o for o in OFFERS if Registry.load().load_class("protocol", o.component.name).samples_apart]
every_protocol = pytest.mark.parametrize("offer", OFFERS, ids=lambda o: o.component.name)
few = settings(deadline=None, max_examples=25)
counts = st.integers(2, 4)
shares = st.floats(0, 1)
seeds = st.integers(0, 2**31)
IDS = [f"id{i}" for i in range(200)]


def build(registry: Registry, offer: Any, count: int) -> tuple[Protocol, tuple[str, ...]]:
    modalities = world.names(count)
    return world.build(registry, offer, {"modalities": modalities, "seed": 0}), modalities


def complete(count: int, rows: int) -> Presence:
    return {m: torch.ones(rows, dtype=torch.bool) for m in world.names(count)}


def stacked(presence: Presence) -> torch.Tensor:
    return torch.stack(list(presence.values()))


@pytest.mark.parametrize("offer", APART, ids=lambda o: o.component.name)
@given(count=counts, share=shares, seed=seeds, order=st.randoms(use_true_random=False))
@few
def test_mask_of_a_sample_hangs_on_no_other_sample(
    registry: Registry, offer: Any, count: int, share: float, seed: int, order: random.Random
) -> None:
    protocol, modalities = build(registry, offer, count)
    rate = share * protocol.highest_rate(modalities)
    whole = protocol.draw(rate, IDS, modalities, seed, "train")
    rows = order.sample(range(len(IDS)), 30)
    part = protocol.draw(rate, [IDS[r] for r in rows], modalities, seed, "train")
    assert all(torch.equal(part[m], whole[m][rows]) for m in modalities)


@every_protocol
def test_mask_hangs_on_no_global_random_state(registry: Registry, offer: Any) -> None:
    protocol, modalities = build(registry, offer, 3)
    draws = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        random.seed(seed)
        draws.append(stacked(protocol.draw(0.5, IDS, modalities, 3)))
    assert torch.equal(*draws)


@every_protocol
@given(count=counts, first=shares, second=shares, seed=seeds)
@few
def test_who_is_absent_at_one_rate_stays_absent_at_a_higher_one(
    registry: Registry, offer: Any, count: int, first: float, second: float, seed: int
) -> None:
    protocol, modalities = build(registry, offer, count)
    low, high = (r * protocol.highest_rate(modalities) for r in sorted((first, second)))
    fewer, more = (stacked(protocol.draw(r, IDS, modalities, seed)) for r in (low, high))
    assert bool((more <= fewer).all())


@every_protocol
@given(count=counts, share=st.sampled_from([0.0, 0.3, 0.999, 1.0]), seed=seeds)
@few
def test_every_sample_keeps_a_modality(
    registry: Registry, offer: Any, count: int, share: float, seed: int
) -> None:
    protocol, modalities = build(registry, offer, count)
    drawn = protocol.draw(share * protocol.highest_rate(modalities), IDS, modalities, seed)
    assert bool(stacked(drawn).any(dim=0).all())


@every_protocol
def test_rate_zero_leaves_everybody_complete(registry: Registry, offer: Any) -> None:
    protocol, modalities = build(registry, offer, 3)
    assert bool(stacked(protocol.draw(0.0, IDS, modalities, 0)).all())


@every_protocol
@given(count=counts, share=shares)
@few
def test_weights_are_probabilities_of_patterns(
    registry: Registry, offer: Any, count: int, share: float
) -> None:
    protocol, modalities = build(registry, offer, count)
    weights = protocol.weights(share * protocol.highest_rate(modalities), modalities)
    assert sum(weights.values()) == pytest.approx(1, abs=1e-9)
    assert all(-1e-12 <= w <= 1 + 1e-12 for w in weights.values())
    assert set(weights) <= set(all_patterns(modalities))


@every_protocol
@given(count=counts, share=shares, seed=st.integers(0, 5))
@settings(deadline=None, max_examples=10)
def test_draws_agree_with_the_weights(
    registry: Registry, offer: Any, count: int, share: float, seed: int
) -> None:
    protocol, modalities = build(registry, offer, count)
    rate = share * protocol.highest_rate(modalities)
    ids = [f"s{i}" for i in range(3000)]
    found = natural_groups(protocol.draw(rate, ids, modalities, seed))
    weights = protocol.weights(rate, modalities)
    for pattern in all_patterns(modalities):
        expected, realised = weights.get(pattern, 0.0), len(found.get(pattern, ())) / len(ids)
        # Six standard deviations of a binomial share.
        bound = 6 * math.sqrt(max(0.0, expected * (1 - expected)) / len(ids)) + 1e-3
        assert abs(realised - expected) <= bound


@every_protocol
@pytest.mark.parametrize("change", ["seed", "split"])
def test_another_seed_or_split_gives_other_masks(registry: Registry, offer: Any, change: str) -> None:
    protocol, modalities = build(registry, offer, 2)
    first = stacked(protocol.draw(0.5, IDS, modalities, 0, "test"))
    other = {"seed": (1, "test"), "split": (0, "val")}[change]
    assert not torch.equal(first, stacked(protocol.draw(0.5, IDS, modalities, *other)))


@every_protocol
@pytest.mark.parametrize("others", ["left out", "zero"])
@given(count=counts, rate=shares)
@few
def test_rate_for_one_modality_lets_only_that_one_go_missing(
    registry: Registry, offer: Any, others: str, count: int, rate: float
) -> None:
    protocol, modalities = build(registry, offer, count)
    chosen = modalities[-1]
    given_rate = {chosen: rate} if others == "left out" else dict.fromkeys(modalities, 0.0) | {chosen: rate}
    drawn = protocol.draw(given_rate, IDS, modalities, 0)
    assert all(bool(drawn[m].all()) for m in modalities if m != chosen)
    weights = protocol.weights(given_rate, modalities)
    without = frozenset(modalities) - {chosen}
    assert weights.get(without, 0.0) == pytest.approx(rate, abs=1e-9)
    assert weights.get(frozenset(modalities), 0.0) == pytest.approx(1 - rate, abs=1e-9)


@every_protocol
def test_rate_one_for_one_modality_takes_it_from_everybody(registry: Registry, offer: Any) -> None:
    protocol, modalities = build(registry, offer, 3)
    assert not bool(protocol.draw({"m1": 1.0}, IDS, modalities, 0)["m1"].any())


@every_protocol
@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan"), {"m9": 0.5}, {"m0": 2.0}], ids=str)
def test_rate_that_is_no_fraction_or_names_a_stranger_is_refused(
    registry: Registry, offer: Any, rate: Any
) -> None:
    protocol, modalities = build(registry, offer, 2)
    with pytest.raises(InputError):
        protocol.draw(rate, IDS, modalities, 0)
    with pytest.raises(InputError):
        protocol.weights(rate, modalities)


# ------------------------------------------------------------------------------------- natural absence

NATURAL = {
    "m0": torch.tensor(([True] * 3 + [False]) * 50),
    "m1": torch.tensor([True, True, False, True] * 50),
    "m2": torch.tensor([True, False, False, True] * 50),
}


@every_protocol
@given(share=shares, seed=seeds)
@few
def test_natural_absence_is_and_ed_in_and_nobody_loses_all(
    registry: Registry, offer: Any, share: float, seed: int
) -> None:
    protocol, modalities = build(registry, offer, 3)
    rate = share * protocol.highest_rate(modalities)
    drawn = draw_presence(protocol, rate, IDS, NATURAL, seed)
    assert all(bool((drawn[m] <= NATURAL[m]).all()) for m in modalities)
    assert bool(stacked(drawn).any(dim=0).all())
    alone = stacked(NATURAL).sum(dim=0) == 1
    assert torch.equal(stacked(drawn)[:, alone], stacked(NATURAL)[:, alone])


@every_protocol
@given(share=shares)
@few
def test_weights_under_natural_absence_are_over_what_a_sample_has(
    registry: Registry, offer: Any, share: float
) -> None:
    protocol, modalities = build(registry, offer, 3)
    rate = share * protocol.highest_rate(modalities)
    for natural in natural_groups(NATURAL):
        weights = pattern_weights(protocol, rate, natural, modalities)
        assert sum(weights.values()) == pytest.approx(1, abs=1e-9)
        assert all(pattern and pattern <= natural for pattern, w in weights.items() if w > 0)


@every_protocol
def test_draws_under_natural_absence_agree_with_their_weights(registry: Registry, offer: Any) -> None:
    protocol, modalities = build(registry, offer, 3)
    ids = [f"s{i}" for i in range(6000)]
    natural = {m: p.repeat(30) for m, p in NATURAL.items()}
    drawn = draw_presence(protocol, 0.6, ids, natural, 0)
    for group, rows in natural_groups(natural).items():
        weights = pattern_weights(protocol, 0.6, group, modalities)
        found = natural_groups({m: p[rows] for m, p in drawn.items()})
        for pattern, weight in weights.items():
            bound = 6 * math.sqrt(max(0.0, weight * (1 - weight)) / len(rows)) + 1e-3
            assert abs(len(found.get(pattern, ())) / len(rows) - weight) <= bound


def test_complete_data_are_drawn_as_the_protocol_draws(registry: Registry) -> None:
    drawn = draw_presence(PerModality(), 0.5, IDS, complete(2, len(IDS)), 3, "val")
    plain = PerModality().draw(0.5, IDS, ("m0", "m1"), 3, "val")
    assert torch.equal(stacked(drawn), stacked(plain))


# -------------------------------------------------------------------------------------- each by itself


@given(rates=st.fixed_dictionaries({m: st.floats(0.05, 1) for m in world.names(3)}))
@settings(deadline=None, max_examples=10)
def test_per_modality_realises_each_rate_less_what_the_rescue_gives_back(rates: Mapping[str, float]) -> None:
    ids = [f"s{i}" for i in range(4000)]
    drawn = PerModality().draw(dict(rates), ids, world.names(3), 1)
    for m, rate in rates.items():
        expected = rate - math.prod(rates.values()) / 3
        realised = float((~drawn[m]).double().mean())
        assert abs(realised - expected) <= 6 * math.sqrt(expected * (1 - expected) / len(ids)) + 1e-3


@pytest.mark.parametrize("rates", [{"m0": 1.0, "m1": 1.0}, {"m0": 0.9, "m1": 0.3}, {"m0": 0.2, "m1": 1.0}])
def test_per_modality_keeps_each_equally_often_where_all_would_be_lost(rates: dict[str, float]) -> None:
    ids = [f"s{i}" for i in range(20000)]
    lost_all = torch.ones(len(ids), dtype=torch.bool)
    for m, rate in rates.items():
        lost_all &= torch.from_numpy(uniforms(ids, 0, "test", m)) < rate
    drawn = PerModality().draw(rates, ids, ("m0", "m1"), 0)
    count = int(lost_all.sum())
    share = float(drawn["m0"][lost_all].double().mean())
    assert abs(share - 0.5) <= 5 * 0.5 / math.sqrt(count)
    assert bool((drawn["m0"] ^ drawn["m1"])[lost_all].all())


@pytest.mark.parametrize("count", [2, 3, 4])
def test_per_modality_at_rate_one_leaves_exactly_one(count: int) -> None:
    drawn = PerModality().draw(1.0, IDS, world.names(count), 0)
    assert bool((stacked(drawn).sum(dim=0) == 1).all())


def test_per_sample_loses_at_most_one_modality() -> None:
    drawn = PerSample().draw(0.7, IDS, world.names(4), 0)
    assert int(stacked(drawn).sum(dim=0).min()) == 3


def test_per_sample_with_which_loses_only_that_one() -> None:
    protocol = PerSample(which="m1")
    drawn = protocol.draw(0.7, IDS, world.names(2), 0)
    assert bool(drawn["m0"].all()) and 0.6 < float((~drawn["m1"]).double().mean()) < 0.8
    weights = protocol.weights(0.7, world.names(2))
    assert weights[frozenset({"m0"})] == pytest.approx(0.7)


def test_per_sample_splits_evenly_by_default() -> None:
    weights = PerSample().weights(0.6, world.names(3))
    assert all(weights[frozenset(world.names(3)) - {m}] == pytest.approx(0.2) for m in world.names(3))


def test_per_sample_refuses_shares_above_one() -> None:
    with pytest.raises(InputError, match="exceed one"):
        PerSample().draw({"m0": 0.7, "m1": 0.7}, IDS, world.names(2), 0)


@given(rows=st.integers(1, 200), rate=shares, ratio=shares, seed=seeds)
@few
def test_missing_table_takes_exact_numbers_and_one_of_a_sample_at_most(
    rows: int, rate: float, ratio: float, seed: int
) -> None:
    drawn = MissingTable(("text", "image"), "both", ratio).draw(rate, IDS[:rows], ("text", "image"), seed)
    affected = int(rows * rate)
    assert int((~drawn["image"]).sum()) == int(affected * ratio)
    assert int((~drawn["text"]).sum()) == affected - int(affected * ratio)
    assert bool((drawn["image"] | drawn["text"]).all())


@pytest.mark.parametrize("lost", ["text", "image"])
def test_missing_table_of_one_type_takes_that_modality_alone(lost: str) -> None:
    protocol = MissingTable(("text", "image"), lost)
    drawn = protocol.draw(0.7, IDS, ("text", "image"), 0)
    absent = {m: int((~p).sum()) for m, p in drawn.items()}
    assert absent == {"text": 0, "image": 0} | {lost: 140}
    assert protocol.weights(0.7, ("text", "image"))[frozenset({"text", "image"} - {lost})] == pytest.approx(
        0.7
    )


@pytest.mark.parametrize("count", [3, 4])
def test_missing_table_takes_each_of_more_modalities_equally_often(count: int) -> None:
    drawn = MissingTable(world.names(count)).draw(0.5, IDS, world.names(count), 0)
    absent = [int((~p).sum()) for p in drawn.values()]
    assert sum(absent) == 100 and max(absent) - min(absent) <= 1


def test_missing_table_keeps_its_numbers_under_natural_absence_in_each_group() -> None:
    natural = {"m0": torch.ones(200, dtype=torch.bool), "m1": torch.arange(200) < 80}
    drawn = draw_presence(MissingTable(("m0", "m1")), 0.5, IDS, natural, 0)
    assert int((~drawn["m0"]).sum()) == 20 and int((natural["m1"] & ~drawn["m1"]).sum()) == 20


def test_missing_table_hangs_on_who_is_drawn_together_but_not_on_their_order() -> None:
    protocol, names = MissingTable(("m0", "m1")), ("m0", "m1")
    whole = protocol.draw(0.5, IDS, names, 0)
    turned = protocol.draw(0.5, IDS[::-1], names, 0)
    assert all(torch.equal(whole[m], turned[m].flip(0)) for m in names)
    half = stacked(protocol.draw(0.5, IDS[:100], names, 0))
    assert int((~half).sum()) == 50 and not torch.equal(half, stacked(whole)[:, :100])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"type": "texd"}, "neither 'both' nor a modality.*text"),
        ({"both_ratio": 1.5}, "no fraction"),
        ({"type": "text", "both_ratio": 0.5}, "is for type 'both'"),
    ],
    ids=["type", "ratio", "ratio of one"],
)
def test_missing_table_refuses_what_cannot_be(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        MissingTable(("text", "image"), **options)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_per_cell_refuses_a_rate_that_does_not_exist_and_says_why(count: int) -> None:
    highest = (count - 1) / count
    with pytest.raises(InputError, match=rf"every sample keeps one.*{count - 1}/{count}"):
        PerCell().weights(highest + 0.01, world.names(count))
    assert PerCell().highest_rate(world.names(count)) == pytest.approx(highest)
    drawn = PerCell().draw(highest, IDS, world.names(count), 0)
    assert bool((stacked(drawn).sum(dim=0) == 1).all())


@given(share=st.floats(0.05, 1), count=counts)
@settings(deadline=None, max_examples=10)
def test_per_cell_realises_its_rate_over_all_cells(share: float, count: int) -> None:
    rate = share * (count - 1) / count
    ids = [f"s{i}" for i in range(3000)]
    drawn = PerCell().draw(rate, ids, world.names(count), 2)
    cells = len(ids) * count
    assert abs(float((~stacked(drawn)).double().mean()) - rate) <= 6 * math.sqrt(0.25 / cells)


@pytest.mark.parametrize(
    ("probabilities", "told"),
    [({"m0": 0.5}, "add up"), ({"m9": 1.0}, "m9"), ({"m0": 1.5, "m1": -0.5}, "0 or more"), ({}, "add up")],
)
def test_patterns_refuses_what_is_no_distribution(probabilities: dict[str, float], told: str) -> None:
    with pytest.raises(InputError, match=told):
        Patterns(("m0", "m1"), probabilities)


def test_patterns_at_rate_one_is_the_distribution_itself() -> None:
    weights = Patterns(("m0", "m1"), {"m0": 0.3, "m1.m0": 0.7}).weights(1.0, ("m0", "m1"))
    assert weights[frozenset({"m0"})] == pytest.approx(0.3)
    assert weights[frozenset({"m0", "m1"})] == pytest.approx(0.7)


# ------------------------------------------------------------------------------------------- draws


def test_uniforms_are_uniform_and_their_streams_independent() -> None:
    ids = [f"s{i}" for i in range(5000)]
    first, second = uniforms(ids, 0, "test", "m0"), uniforms(ids, 0, "test", "m1")
    assert first.min() >= 0 and first.max() < 1
    assert abs(first.mean() - 0.5) < 0.02 and abs((first * second).mean() - 0.25) < 0.02


def test_derived_seeds_do_not_collide_at_the_seams_of_their_names() -> None:
    derived = [derive_seed(0, "ab", "c"), derive_seed(0, "a", "bc"), derive_seed(0, "abc"), derive_seed(0)]
    assert len(set(derived)) == 4 and all(0 <= d < 2**63 for d in derived)


def test_patterns_are_listed_the_fullest_first_without_the_empty_one() -> None:
    patterns = all_patterns(("a", "b", "c"))
    assert len(set(patterns)) == 7 and frozenset() not in patterns
    assert all(len(p) >= len(q) for p, q in pairwise(patterns))


def test_rate_for_some_modalities_is_zero_for_the_others() -> None:
    assert rate_of_each({"m1": 0.5}, ("m0", "m1")) == {"m0": 0.0, "m1": 0.5}
