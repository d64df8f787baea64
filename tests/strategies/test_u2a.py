"""Mask tokens: what stands in each slot, what it was predicted from, and what its loss touches."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmx.builtin.fusions.concat import Concat
from mmx.builtin.fusions.sum import Sum
from mmx.contracts import Batch, Encoder, EncoderFacts, Fusion, Prompts, Tokens, first_token
from mmx.model import MultimodalModel
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


# ---------------------------------------------------------------------------------------- the whole model

COMPLETE = [1, 1, 1, 1, 1, 1]
LACKING = {
    2: {"m0": [1, 0, 1, 0, 1, 1], "m1": [0, 1, 1, 1, 0, 1]},
    3: {"m0": [1, 0, 0, 1, 1, 1], "m1": [0, 1, 0, 1, 0, 1], "m2": [0, 0, 1, 0, 1, 1]},
}
FUSIONS: dict[str, Callable[[tuple[str, ...]], Fusion]] = {
    "sum": lambda names: Sum(world.WIDTH, world.task()),
    "concat": lambda names: Concat(names, world.WIDTH, world.task()),
}
each_fusion = pytest.mark.parametrize("fusion", FUSIONS)
each_mask = pytest.mark.parametrize("read_only", [False, True], ids=["mask A", "mask B"])
each_count = pytest.mark.parametrize("count", [2, 3])


def whole(count: int, fusion: str, **options: Any) -> MultimodalModel:
    """Build a model of transformers that take prompts; all of it trains."""
    torch.manual_seed(0)
    names = world.names(count)
    encoders: dict[str, Encoder] = {m: world.PromptableEncoder() for m in names}
    facts = {m: EncoderFacts.of(e) for m, e in encoders.items()}
    head = FUSIONS[fusion](names)
    middle = MaskToken(names, world.WIDTH, facts, **options)
    return MultimodalModel(encoders, middle, head, world.WIDTH)


def disturbed(batch: Batch, rows: Mapping[str, Sequence[int]], filler: float) -> Batch:
    """Put something else in some inputs: `filler`, or, where that is finite, noise of that size."""
    inputs = {}
    for m, raw in batch.inputs.items():
        chosen = torch.tensor(rows[m], dtype=torch.bool)[:, None]
        other = torch.randn(raw.shape, generator=torch.Generator().manual_seed(5)) * filler
        inputs[m] = torch.where(chosen, other, raw)
    return Batch(inputs, batch.presence, batch.target, batch.ids)


def absent(presence: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    return {m: [1 - there for there in rows] for m, rows in presence.items()}


def read(model: MultimodalModel, batch: Batch) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Give the logits, the encoders' proxies and the slots that the fusion reads."""
    with torch.no_grad():
        front = len(model.modalities) - 1
        encoded = model.encode(batch.inputs, batch.presence, batch.presence)
        logits, _, slots, _ = model(batch)
    proxies = {m: t.values[batch.presence[m], :front] for m, t in encoded.items()}
    return logits, proxies, {m: first_token(t)[0] for m, t in slots.items()}


def equal(first: Any, second: Any) -> bool:
    (logits, *maps), (others, *their) = first, second
    pairs = [(a[m], b[m]) for a, b in zip(maps, their, strict=True) for m in a]
    return torch.equal(logits, others) and all(torch.equal(a, b) for a, b in pairs)


@each_count
@each_mask
@each_fusion
@pytest.mark.parametrize("filler", [float("nan"), 1e4], ids=["nan", "noise"])
def test_nothing_absent_reaches_logits_or_proxies(
    count: int, read_only: bool, fusion: str, filler: float
) -> None:
    model = whole(count, fusion, read_only=read_only).eval()
    batch = world.batch_of(LACKING[count])
    plain = read(model, batch)
    assert equal(plain, read(model, disturbed(batch, absent(LACKING[count]), filler)))
    assert not equal(plain, read(model, disturbed(batch, LACKING[count], 1.0)))


@each_count
@each_mask
def test_what_dropout_hides_reaches_no_logits_but_the_loss(count: int, read_only: bool) -> None:
    model = whole(count, "concat", read_only=read_only, dropout=1.0).train()
    batch = world.batch_of(dict.fromkeys(world.names(count), COMPLETE))

    def run(batch: Batch) -> Any:
        torch.manual_seed(3)
        return model(batch)

    torch.manual_seed(3)
    left = model.strategy.hide(batch.presence)
    gone = {m: (~there).int().tolist() for m, there in left.items()}
    assert sum(map(sum, gone.values())) == len(COMPLETE)
    plain, other = run(batch), run(disturbed(batch, gone, 10.0))
    assert torch.allclose(plain.logits, other.logits, rtol=0, atol=1e-6)
    assert abs((plain.losses["alignment"] - other.losses["alignment"]).item()) > 1e-3


@each_count
@each_fusion
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize(("read_only", "same"), [(False, False), (True, True)], ids=["mask A", "mask B"])
def test_prediction_from_everything_depends_on_the_proxies_in_mask_a_alone(
    count: int, fusion: str, training: bool, read_only: bool, same: bool
) -> None:
    model = whole(count, fusion, read_only=read_only, dropout=0.0).train(training)
    batch = world.batch_of(dict.fromkeys(world.names(count), COMPLETE))
    logits, proxies, slots = read(model, batch)
    with torch.no_grad():
        for proxy in model.strategy.proxies.values():  # type: ignore[operator,union-attr]
            proxy.normal_(std=10.0)
    others, moved, their = read(model, batch)
    assert torch.allclose(logits, others, rtol=0, atol=1e-6) == same
    assert all(torch.allclose(slots[m], their[m], rtol=0, atol=1e-6) == same for m in slots)
    assert not any(torch.allclose(proxies[m], moved[m], atol=1e-2) for m in proxies)


def gradients(model: MultimodalModel, batch: Batch, aligned: bool) -> dict[str, Tensor]:
    """Give the gradient of the task's loss, or of that and the strategy's; zeros where there is none."""
    torch.manual_seed(3)
    model.train().zero_grad(set_to_none=True)
    logits, losses, *_ = model(batch)
    loss = world.task().loss(logits, batch.target)
    (loss + sum(losses.values()) if aligned else loss).backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


@each_count
@each_mask
@each_fusion
@pytest.mark.parametrize("stop", [True, False], ids=["stopped", "flowing"])
def test_without_lambda_the_gradient_is_the_tasks_alone(
    count: int, read_only: bool, fusion: str, stop: bool
) -> None:
    options = {"read_only": read_only, "stop_gradient": stop, "dropout": 0.5}
    with_loss, without = (whole(count, fusion, alignment=a, **options) for a in (0.2, 0.0))
    batch = world.batch_of(LACKING[count] | {"m0": COMPLETE})
    expected = gradients(without, batch, aligned=True)
    task = gradients(with_loss, batch, aligned=False)
    assert expected.keys() == task.keys()
    assert all(torch.allclose(g, task[n], rtol=1e-4, atol=1e-6) for n, g in expected.items())
    total = gradients(with_loss, batch, aligned=True)
    moved = {n for n, g in expected.items() if not torch.allclose(g, total[n], rtol=1e-3, atol=1e-5)}
    assert {f"strategy.proxies.{m}" for m in world.names(count)} <= moved
    assert any(n.startswith("encoders.") for n in moved)
    assert not any(n.startswith("fusion.") for n in moved)


@each_count
@each_mask
@each_fusion
def test_slots_are_own_summaries_or_mean_proxies_and_the_fusion_reads_them(
    count: int, read_only: bool, fusion: str
) -> None:
    model = whole(count, fusion, read_only=read_only).eval()
    for parameter in model.fusion.parameters():
        torch.nn.init.normal_(parameter)
    batch, names = world.batch_of(LACKING[count]), world.names(count)
    logits, _, slots = read(model, batch)
    for row in range(len(COMPLETE)):
        said = {}  # what each encoder that has something to read says: proxies of the others, its own summary
        for m in names:
            if batch.presence[m][row]:
                prompts = Prompts(model.strategy.proxies[m][None, None], read_only=read_only)  # type: ignore[index]
                said[m] = model.encoders[m](batch.inputs[m][row : row + 1], prompts=prompts).values[0]
        filled = []
        for n in names:
            guesses = [said[m][[o for o in names if o != m].index(n)] for m in said if m != n]
            filled.append(said[n][count - 1] if n in said else torch.stack(guesses).mean(dim=0))
        for n, expected in zip(names, filled, strict=True):
            assert torch.allclose(slots[n][row], expected, atol=1e-5)
        assert torch.allclose(logits[row], headed(model, filled), rtol=1e-4, atol=1e-4)


def headed(model: MultimodalModel, slots: Sequence[Tensor]) -> Tensor:
    """Fuse one row's slots by hand."""
    if isinstance(model.fusion, Sum):
        norm, head = model.fusion.norm, model.fusion.head
        total = torch.stack(list(slots)).sum(dim=0)
        centred = total - total.mean()
        normed = centred / (centred.square().mean() + norm.eps).sqrt() * norm.weight + norm.bias
    else:
        head, normed = model.fusion.head[-1], torch.cat(list(slots))  # type: ignore[index]
    return F.linear(normed, head.weight, head.bias)
