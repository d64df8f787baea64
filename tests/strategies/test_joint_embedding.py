"""Joint embedding: predictions and what they read, VICReg against loops, and what each part touches."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmx.builtin.fusions.concat import Concat
from mmx.contracts import Encoder, EncoderFacts, Prompts, Tokens, first_token
from mmx.errors import InputError
from mmx.model import MultimodalModel
from mmx.testing import world
from mmx_encoders.tiny_ast import TinyAst
from mmx_encoders.tiny_vit import TinyVit
from mmx_strategies.joint_embedding import FEWEST_PAIRS, JointEmbedding, vicreg

LENGTH = 2
SOME = {
    2: {"m0": [1, 1, 0, 1, 1, 0], "m1": [1, 0, 1, 1, 0, 1]},
    3: {"m0": [1, 1, 0, 1, 0, 0], "m1": [1, 0, 1, 1, 1, 0], "m2": [1, 0, 0, 0, 1, 1]},
}
each_count = pytest.mark.parametrize("count", [2, 3])


def model_of(count: int = 2, plain: bool = False, **options: Any) -> MultimodalModel:
    torch.manual_seed(0)
    names = world.names(count)
    encoders: dict[str, Encoder] = {
        m: world.PlainEncoder() if plain else world.PromptableEncoder() for m in names
    }
    facts = {m: EncoderFacts.of(e) for m, e in encoders.items()}
    strategy = JointEmbedding(names, world.WIDTH, facts, length=LENGTH, **options)
    return MultimodalModel(encoders, strategy, Concat(names, world.WIDTH, world.task()), world.WIDTH)


def strategy_of(model: MultimodalModel) -> JointEmbedding:
    assert isinstance(model.strategy, JointEmbedding)
    return model.strategy


def encoded(model: MultimodalModel, presence: Mapping[str, Sequence[int]]) -> dict[str, Tokens]:
    batch = world.batch_of(presence)
    return model.encode(batch.inputs, batch.presence, batch.presence)


def predicted(model: MultimodalModel, tokens: Mapping[str, Tokens], m: str, n: str) -> Tensor:
    """Give what m's prompts say of n, by the plain equations."""
    others = [o for o in model.modalities if o != m]
    place = LENGTH * others.index(n)
    norm, up, _, down = strategy_of(model).predictors[m][n]  # type: ignore[index,misc]
    return down(F.gelu(up(norm(tokens[m].values[:, place : place + LENGTH].mean(dim=1)))))


def own_summary(model: MultimodalModel, tokens: Mapping[str, Tokens], m: str) -> Tensor:
    return tokens[m].values[:, LENGTH * (len(model.modalities) - 1)]


# ------------------------------------------------------------------------------------------- the prompts


@pytest.mark.parametrize(
    ("encoder", "raw"),
    [(world.PromptableEncoder, (3, world.FEATURES)), (TinyVit, (3, 1, 28, 28)), (TinyAst, (3, 8000))],
    ids=["world", "tiny_vit", "tiny_ast"],
)
def test_own_tokens_are_the_same_bits_whatever_the_prompts_and_the_same_numbers_without(
    encoder: Any, raw: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    module = encoder().eval()
    facts = dict.fromkeys(world.names(2), EncoderFacts.of(module))
    strategy = JointEmbedding(world.names(2), module.width, facts)
    prompts = strategy.prompts("m0", {"m0": torch.ones(3, dtype=torch.bool)})
    assert prompts is not None and prompts.read_only
    inputs = torch.rand(raw)
    with torch.no_grad():
        plain, prompted = module(inputs).values, module(inputs, prompts=prompts).values
        other = module(inputs, prompts=Prompts(prompts.values.flip(-1), read_only=True)).values
    assert torch.equal(prompted[:, 4:], other[:, 4:])
    assert not torch.allclose(prompted[:, :4], other[:, :4])
    # Without prompts other kernels run, which add up in another order.
    assert torch.allclose(prompted[:, 4:], plain, rtol=0, atol=1e-5)


def test_no_prompt_reads_another() -> None:
    torch.manual_seed(0)
    module = world.PromptableEncoder().eval()
    inputs, values = torch.randn(3, world.FEATURES), torch.randn(1, 1, 4, world.WIDTH).expand(3, -1, -1, -1)
    changed = values.clone()
    changed[:, :, 0] = torch.randn(world.WIDTH)
    with torch.no_grad():
        first, second = (module(inputs, prompts=Prompts(v, read_only=True)).values for v in (values, changed))
    assert torch.equal(first[:, 1:], second[:, 1:]) and not torch.allclose(first[:, 0], second[:, 0])


def test_prompts_start_beside_the_class_token() -> None:
    model = model_of()
    for m, prompts in strategy_of(model).sets.items():
        away = prompts - model.encoders[m].class_token[0]  # type: ignore[operator,index]
        assert torch.allclose(away.norm(dim=1), torch.full((LENGTH,), 0.1), atol=1e-5)


def test_without_read_only_own_tokens_move_with_the_prompts() -> None:
    for read_only, same in ((True, True), (False, False)):
        model = model_of(read_only=read_only).eval()
        before = own_summary(model, encoded(model, SOME[2]), "m0")
        with torch.no_grad():
            strategy_of(model).sets["m0"].add_(torch.randn(world.WIDTH))
        after = own_summary(model, encoded(model, SOME[2]), "m0")
        assert torch.equal(before, after) == same


# ------------------------------------------------------------------------------------------ what stands in


@each_count
def test_slot_is_the_own_summary_or_the_mean_prediction_from_what_is_there(count: int) -> None:
    model = model_of(count).eval()
    tokens = encoded(model, SOME[count])
    presence = world.batch_of(SOME[count]).presence
    filled = strategy_of(model).fill(tokens, presence, None).tokens
    for n in model.modalities:
        found, valid = first_token(filled[n])
        assert bool(valid.all())
        for row in range(len(found)):
            sources = [m for m in model.modalities if m != n and presence[m][row]]
            guesses = [predicted(model, tokens, m, n)[row] for m in sources]
            own = own_summary(model, tokens, n)[row]
            expected = own if presence[n][row] else torch.stack(guesses).mean(dim=0)
            assert torch.allclose(found[row], expected, atol=1e-5)


def test_predictors_read_the_summary_where_an_encoder_takes_no_prompts() -> None:
    for model in (model_of(plain=True), model_of(source="summary")):
        tokens, presence = encoded(model, SOME[2]), world.batch_of(SOME[2]).presence
        assert not strategy_of(model).sets and strategy_of(model).prompts("m0", presence) is None
        filled = strategy_of(model).eval().fill(tokens, presence, None).tokens["m1"]
        expected = strategy_of(model).predictors["m0"]["m1"](tokens["m0"].values[:, 0])  # type: ignore[index]
        lacks = ~presence["m1"]
        assert torch.allclose(filled.values[lacks, 0], expected[lacks], atol=1e-6)


def test_one_modality_is_left_as_it_is() -> None:
    model = model_of(1)
    tokens, presence = encoded(model, {"m0": [1, 1]}), world.batch_of({"m0": [1, 1]}).presence
    assert torch.equal(
        strategy_of(model).fill(tokens, presence, tokens).tokens["m0"].values, tokens["m0"].values
    )
    assert not list(strategy_of(model).parameters())


# -------------------------------------------------------------------------------------------------- VICReg


def vicreg_by_hand(x: list[list[float]], y: list[list[float]]) -> float:
    n, d = len(x), len(x[0])
    inv = sum((a - b) ** 2 for p, q in zip(x, y, strict=True) for a, b in zip(p, q, strict=True)) / (n * d)
    total = 25 * inv
    for rows in (x, y):
        means = [sum(row[j] for row in rows) / n for j in range(d)]
        c = [[sum((row[i] - means[i]) * (row[j] - means[j]) for row in rows) / (n - 1) for j in range(d)]
             for i in range(d)]  # fmt: skip
        total += 25 * 0.5 * sum(max(0.0, 1 - math.sqrt(c[j][j] + 1e-4)) for j in range(d)) / d
        total += sum(c[i][j] ** 2 for i in range(d) for j in range(d) if i != j) / d
    return total


@pytest.mark.parametrize(("rows", "width", "scale"), [(8, 3, 0.5), (9, 1, 2.0), (12, 5, 1.0)])
def test_vicreg_is_that_of_the_release(rows: int, width: int, scale: float) -> None:
    torch.manual_seed(rows)
    x, y = (scale * torch.randn(rows, width) for _ in range(2))
    assert float(vicreg(x, y)) == pytest.approx(vicreg_by_hand(x.tolist(), y.tolist()), rel=1e-4)


PAIRS = {
    2: {"m0": [1] * 10 + [0], "m1": [1] * 9 + [0, 1]},
    3: {"m0": [1] * 10 + [0], "m1": [1] * 9 + [0, 1], "m2": [1] * 11},
}


@each_count
def test_loss_sums_over_targets_the_mean_over_sources_on_complete_pairs(count: int) -> None:
    model = model_of(count, weight=0.5).train()
    tokens, presence = encoded(model, PAIRS[count]), world.batch_of(PAIRS[count]).presence
    expected = 0.0
    for n in model.modalities:
        sources = [m for m in model.modalities if m != n]
        for m in sources:
            both = presence[m] & presence[n]
            x, y = predicted(model, tokens, m, n)[both], own_summary(model, tokens, n)[both]
            expected += 0.5 * vicreg_by_hand(x.tolist(), y.tolist()) / len(sources)
    loss = strategy_of(model).fill(tokens, presence, tokens).losses["vicreg"]
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-3)


def test_loss_compares_with_what_was_hidden() -> None:
    model = model_of().train()
    rows = {m: [1] * FEWEST_PAIRS for m in ("m0", "m1")}
    targets, presence = encoded(model, rows), world.batch_of(rows).presence
    gone = Tokens(torch.zeros_like(targets["m1"].values), torch.zeros_like(targets["m1"].valid))
    hidden = {"m0": presence["m0"], "m1": ~presence["m1"]}
    strategy = strategy_of(model)
    found = strategy.fill({**targets, "m1": gone}, hidden, targets).losses["vicreg"]
    assert torch.equal(found, strategy.fill(targets, presence, targets).losses["vicreg"])


@pytest.mark.parametrize(("rows", "zero"), [(FEWEST_PAIRS - 1, True), (FEWEST_PAIRS, False)])
def test_fewer_than_eight_pairs_have_no_loss(rows: int, zero: bool) -> None:
    model = model_of().train()
    pairs = {"m0": [1] * rows + [0], "m1": [1] * (rows + 1)}
    tokens, presence = encoded(model, pairs), world.batch_of(pairs).presence
    loss = strategy_of(model).fill(tokens, presence, tokens).losses["vicreg"]
    assert (float(loss.detach()) == 0) == zero


@pytest.mark.parametrize("stop", [False, True])
def test_gradient_of_vicreg_reaches_the_truth_unless_it_is_stopped(stop: bool) -> None:
    model = model_of(stop_gradient=stop).train()
    front, rows = LENGTH, 10
    values = {m: torch.randn(rows, front + 2, world.WIDTH, requires_grad=True) for m in ("m0", "m1")}
    tokens = {m: Tokens(v, torch.ones(rows, front + 2, dtype=torch.bool)) for m, v in values.items()}
    presence = {m: torch.ones(rows, dtype=torch.bool) for m in values}
    strategy_of(model).fill(tokens, presence, tokens).losses["vicreg"].backward()
    for v in values.values():
        assert v.grad is not None and bool(v.grad[:, :front].any())
        assert bool(v.grad[:, front].any()) != stop


def test_evaluation_and_weight_zero_have_no_loss() -> None:
    model = model_of(weight=0.0)
    tokens, presence = encoded(model, PAIRS[2]), world.batch_of(PAIRS[2]).presence
    assert not strategy_of(model).train().fill(tokens, presence, tokens).losses
    assert not model_of(weight=0.0).strategy.uses_targets
    assert not strategy_of(model_of()).eval().fill(tokens, presence, None).losses


# ------------------------------------------------------------------------------------ exposure, and no pairs


@each_count
def test_all_there_and_each_one_gone_are_equally_likely(count: int) -> None:
    torch.manual_seed(0)
    presence = {m: torch.ones(6000, dtype=torch.bool) for m in world.names(count)}
    left = torch.stack(list(strategy_of(model_of(count)).hide(presence).values()))
    assert int(left.sum(dim=0).min()) == count - 1
    shares = [float(left.all(dim=0).double().mean()), *(~left).double().mean(dim=1).tolist()]
    assert all(share == pytest.approx(1 / (count + 1), abs=0.03) for share in shares)


def test_rows_that_lack_something_lose_nothing_more() -> None:
    presence = {"m0": torch.tensor([True, False] * 50), "m1": torch.tensor([False, True] * 50)}
    left = strategy_of(model_of(exposure=1.0)).hide(presence)
    assert all(torch.equal(left[m], presence[m]) for m in presence)


def test_without_exposure_nothing_is_hidden() -> None:
    presence = {m: torch.ones(50, dtype=torch.bool) for m in ("m0", "m1")}
    assert all(bool(p.all()) for p in strategy_of(model_of(exposure=0.0)).hide(presence).values())


@pytest.mark.parametrize("there", ["m0", "m1"])
def test_unpaired_samples_train_the_prompts_and_the_predictor_of_what_they_lack(there: str) -> None:
    model = model_of().train()
    lacking = "m1" if there == "m0" else "m0"
    batch = world.batch_of({there: [1] * 6, lacking: [0] * 6})
    output = model(batch)
    (world.task().loss(output.logits, batch.target) + sum(output.losses.values())).backward()
    strategy = strategy_of(model)
    assert bool(strategy.sets[there].grad.any())  # type: ignore[union-attr]
    assert all(p.grad is not None and bool(p.grad.any()) for p in strategy.predictors[there].parameters())
    assert all(p.grad is None or not p.grad.any() for p in strategy.predictors[lacking].parameters())


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("options", "told"),
    [({"length": 0}, "length 0"), ({"weight": -1.0}, "weight -1"), ({"exposure": 1.5}, "exposure 1.5")],
)
def test_senseless_options_are_refused(options: dict[str, Any], told: str) -> None:
    facts = dict.fromkeys(world.names(2), EncoderFacts.of(world.PromptableEncoder()))
    with pytest.raises(InputError, match=told):
        JointEmbedding(world.names(2), world.WIDTH, facts, **options)
