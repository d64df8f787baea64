"""Mask tokens: what stands in each slot, what it was predicted from, and what its loss touches."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mmx.contracts import EncoderFacts, Tokens, first_token
from mmx.testing import world
from mmx_strategies.u2a import MaskToken

WIDTH = 6
ROWS = 4
PRESENCE = {"m0": [1, 1, 0, 1], "m1": [1, 0, 1, 1]}


def strategy(count: int = 2, prompted: bool = True, **options: Any) -> MaskToken:
    torch.manual_seed(0)
    names = world.names(count)
    facts = {m: EncoderFacts(WIDTH, prompted, 0) for m in names}
    return MaskToken(names, WIDTH, facts, **options)


def given(presence: dict[str, list[int]], front: int = 0, seed: int = 1, grad: bool = False) -> Any:
    """Make encodings of `front` proxy outputs and three own tokens, zeros where absent."""
    generator = torch.Generator().manual_seed(seed)
    there = {m: torch.tensor(p, dtype=torch.bool) for m, p in presence.items()}
    tokens = {}
    for m, present in there.items():
        raw = torch.randn(len(present), front + 3, WIDTH, generator=generator).requires_grad_(grad)
        kept = present[:, None].expand(-1, front + 3)
        tokens[m] = Tokens(torch.where(kept[:, :, None], raw, 0.0), kept)
    return tokens, there


def slot(model: MaskToken, m: str, tokens: Any, there: Any) -> Tensor:
    return model.eval().fill(tokens, there, None).tokens[m].values[:, 0]


@pytest.mark.parametrize(("prompted", "front"), [(True, 1), (False, 0)], ids=["inside", "output"])
def test_slot_is_the_class_token_where_the_modality_is_there(prompted: bool, front: int) -> None:
    tokens, there = given(PRESENCE, front)
    filled = strategy(prompted=prompted).eval().fill(tokens, there, None).tokens
    for m in ("m0", "m1"):
        assert torch.equal(filled[m].values[there[m]], tokens[m].values[there[m]][:, front:])
        assert bool(filled[m].valid[there[m]].all())


@pytest.mark.parametrize(("prompted", "front"), [(True, 1), (False, 0)], ids=["inside", "output"])
def test_absent_slot_holds_one_valid_token(prompted: bool, front: int) -> None:
    tokens, there = given(PRESENCE, front)
    filled = strategy(prompted=prompted).eval().fill(tokens, there, None).tokens
    for m in ("m0", "m1"):
        assert filled[m].valid[~there[m]].sum(dim=1).tolist() == [1]
        assert bool((filled[m].values[~there[m]][:, 0] != 0).any())


def test_absent_slot_is_the_proxy_that_came_out_of_the_others_encoder() -> None:
    tokens, there = given(PRESENCE, front=1)
    found = slot(strategy(), "m1", tokens, there)
    assert torch.equal(found[1], tokens["m0"].values[1, 0])


def test_proxies_do_not_reach_the_fusion_as_tokens() -> None:
    tokens, there = given(PRESENCE, front=1)
    filled = strategy().eval().fill(tokens, there, None).tokens
    assert {t.values.shape[1] for t in filled.values()} == {3}


@pytest.mark.parametrize(("prompted", "front"), [(True, 2), (False, 0)], ids=["inside", "output"])
def test_proxy_depends_on_present_modalities_only(prompted: bool, front: int) -> None:
    presence = {"m0": [1] * ROWS, "m1": [0] * ROWS, "m2": [0] * ROWS}
    model = strategy(3, prompted)
    tokens, there = given(presence, front)
    noise = {m: t._replace(values=t.values + 100.0 * (~there[m])[:, None, None]) for m, t in tokens.items()}
    assert torch.equal(slot(model, "m2", tokens, there), slot(model, "m2", noise, there))
    other, _ = given(presence, front, seed=2)
    assert not torch.allclose(slot(model, "m2", tokens, there), slot(model, "m2", other, there))


def test_several_sources_are_averaged() -> None:
    presence = {"m0": [1], "m1": [1], "m2": [0]}
    tokens, there = given(presence, front=2)
    expected = (tokens["m0"].values[:, 1] + tokens["m1"].values[:, 1]) / 2  # m2 is the second other of both
    assert torch.allclose(slot(strategy(3), "m2", tokens, there), expected)


def test_modality_that_nobody_has_may_have_no_token_axis() -> None:
    tokens, there = given({"m0": [1, 1], "m1": [0, 0]}, front=1)
    tokens["m1"] = Tokens(torch.zeros(2, 0, WIDTH), torch.zeros(2, 0, dtype=torch.bool))
    filled = strategy().eval().fill(tokens, there, None).tokens
    assert torch.equal(filled["m1"].values[:, 0], tokens["m0"].values[:, 0])


def test_prompts_are_the_same_proxies_for_every_row() -> None:
    model = strategy(3)
    _, there = given({m: [1, 0, 1] for m in world.names(3)})
    prompts = model.prompts("m0", there)
    assert prompts is not None and prompts.shape == (3, 2, WIDTH)
    assert torch.equal(prompts[0], model.proxies["m0"]) and torch.equal(prompts[1], prompts[0])


@pytest.mark.parametrize("source", ["output", "constant"])
def test_sources_outside_the_encoder_give_no_prompts(source: Any) -> None:
    _, there = given(PRESENCE)
    assert strategy(source=source).prompts("m0", there) is None


def test_encoders_without_prompts_are_read_by_cross_attention() -> None:
    model = strategy(prompted=False)
    assert set(model.readers) == {"m0", "m1"} and model.prompts("m0", given(PRESENCE)[1]) is None


def test_cross_attention_reads_valid_tokens_only() -> None:
    model = strategy(prompted=False)
    tokens, there = given({"m0": [1] * ROWS, "m1": [0] * ROWS})
    valid = tokens["m0"].valid.clone()
    valid[:, 2] = False
    short = {**tokens, "m0": Tokens(tokens["m0"].values, valid)}
    values = tokens["m0"].values.clone()
    values[:, 2] = 100.0
    noise = {**tokens, "m0": Tokens(values, valid)}
    assert torch.allclose(slot(model, "m1", short, there), slot(model, "m1", noise, there))


def test_constant_source_sees_no_input() -> None:
    model = strategy(source="constant")
    first, second = (slot(model, "m1", *given(PRESENCE, seed=seed))[1] for seed in (1, 2))
    assert torch.equal(first, second) and torch.equal(first, model.proxies["m0"][0])


# -------------------------------------------------------------------------------------------- the loss


def test_alignment_is_the_weighted_mean_over_pairs_of_the_squared_error() -> None:
    model = strategy(alignment=0.5).train()
    tokens, there = given(PRESENCE, front=1)
    both = there["m0"] & there["m1"]
    errors = [
        (tokens[m].values[both, 0] - tokens[n].values[both, 1]).square().mean()
        for m, n in (("m0", "m1"), ("m1", "m0"))
    ]
    (loss,) = model.fill(tokens, there, tokens).losses.values()
    assert float(loss) == pytest.approx(0.5 * float(sum(errors)) / 2, rel=1e-5)


def test_alignment_compares_with_what_was_hidden() -> None:
    model = strategy().train()
    targets, there = given({"m0": [1, 1], "m1": [1, 1]}, front=1)
    hidden = {"m0": there["m0"], "m1": torch.zeros(2, dtype=torch.bool)}
    tokens = {
        **targets,
        "m1": Tokens(torch.zeros_like(targets["m1"].values), torch.zeros(2, 4, dtype=torch.bool)),
    }
    with_hidden = model.fill(tokens, hidden, targets).losses["alignment"]
    assert torch.equal(with_hidden, model.fill(targets, there, targets).losses["alignment"])


def test_alignment_of_no_pair_is_zero() -> None:
    tokens, there = given({"m0": [1, 0], "m1": [0, 1]}, front=1)
    assert float(strategy().train().fill(tokens, there, tokens).losses["alignment"]) == 0


def test_evaluation_has_no_loss() -> None:
    tokens, there = given(PRESENCE, front=1)
    assert not strategy().eval().fill(tokens, there, None).losses


def test_without_alignment_there_is_no_loss_and_no_use_of_targets() -> None:
    model = strategy(alignment=0.0).train()
    tokens, there = given(PRESENCE, front=1)
    assert not model.fill(tokens, there, tokens).losses and not model.uses_targets


def test_without_alignment_what_is_filled_in_is_the_same() -> None:
    tokens, there = given(PRESENCE, front=1)
    filled = [strategy(alignment=a).train().fill(tokens, there, tokens).tokens for a in (0.0, 0.2)]
    assert all(torch.equal(filled[0][m].values, filled[1][m].values) for m in filled[0])


@pytest.mark.parametrize("stop", [True, False], ids=["stopped", "flowing"])
def test_gradient_of_the_alignment_reaches_what_it_stands_for_only_if_it_may(stop: bool) -> None:
    model = strategy(stop_gradient=stop).train()
    there = {m: torch.ones(2, dtype=torch.bool) for m in ("m0", "m1")}
    values = {m: torch.randn(2, 4, WIDTH, requires_grad=True) for m in there}
    tokens = {m: Tokens(v, torch.ones(2, 4, dtype=torch.bool)) for m, v in values.items()}
    model.fill(tokens, there, tokens).losses["alignment"].backward()
    for v in values.values():
        proxy, summary = v.grad[:, 0].abs().sum(), v.grad[:, 1].abs().sum()  # type: ignore[index]
        assert float(proxy) > 0 and (float(summary) == 0) == stop


# ------------------------------------------------------------------------------------------------ hiding


def hidden(model: MaskToken, presence: dict[str, Tensor], seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return torch.stack(list(model.train().hide(presence).values()))


@pytest.mark.parametrize("count", [2, 3])
def test_complete_rows_lose_one_modality_about_as_often_as_said(count: int) -> None:
    rows = 6000
    presence = {m: torch.ones(rows, dtype=torch.bool) for m in world.names(count)}
    left = hidden(strategy(count), presence)
    share, expected = float((left.sum(dim=0) == count - 1).double().mean()), count / (count + 1)
    assert abs(share - expected) <= 5 * math.sqrt(expected * (1 - expected) / rows)
    assert int(left.sum(dim=0).min()) == count - 1
    each = (~left).double().mean(dim=1)
    assert float((each - 1 / (count + 1)).abs().max()) < 0.03


def test_rows_that_are_not_complete_lose_nothing() -> None:
    presence = {"m0": torch.tensor([True, False] * 200), "m1": torch.tensor([False, True] * 200)}
    assert torch.equal(hidden(strategy(dropout=1.0), presence), torch.stack(list(presence.values())))


@pytest.mark.parametrize(("dropout", "share"), [(0.0, 0.0), (1.0, 1.0)])
def test_dropout_can_be_switched(dropout: float, share: float) -> None:
    presence = {m: torch.ones(50, dtype=torch.bool) for m in ("m0", "m1")}
    left = hidden(strategy(dropout=dropout), presence)
    assert float((left.sum(dim=0) == 1).double().mean()) == share


def test_one_modality_is_left_as_it_is() -> None:
    model = strategy(1)
    tokens, there = given({"m0": [1, 1]})
    assert torch.equal(model.fill(tokens, there, tokens).tokens["m0"].values, tokens["m0"].values)
    assert not list(model.parameters())


def test_summary_of_a_filled_slot_is_valid() -> None:
    tokens, there = given(PRESENCE, front=1)
    filled = strategy().eval().fill(tokens, there, None).tokens
    assert all(bool(first_token(t)[1].all()) for t in filled.values())


def test_read_only_proxy_leaves_what_is_there_as_it_would_be_without() -> None:
    torch.manual_seed(0)
    encoder = world.PromptableEncoder().eval()
    facts = {m: EncoderFacts.of(encoder) for m in world.names(2)}
    raw, present = torch.randn(ROWS, world.FEATURES), torch.ones(ROWS, dtype=torch.bool)
    presence = dict.fromkeys(world.names(2), present)
    plain = encoder(raw).values
    for read_only, same in ((True, True), (False, False)):
        model = MaskToken(world.names(2), world.WIDTH, facts, read_only=read_only)
        own = encoder(raw, prompts=model.prompts("m0", presence)).values[:, 1:]
        assert torch.allclose(own, plain, atol=1e-5) == same


def test_proxy_starts_as_a_copy_of_the_class_token() -> None:
    torch.manual_seed(0)
    encoder = world.PromptableEncoder()
    facts = {m: EncoderFacts.of(encoder) for m in world.names(2)}
    copied = MaskToken(world.names(2), world.WIDTH, facts).proxies["m0"]
    assert float((copied - encoder.class_token[0]).abs().max()) < 0.1
    noise = MaskToken(world.names(2), world.WIDTH, facts, start="noise").proxies["m0"]
    assert float(noise.abs().max()) < 0.1
