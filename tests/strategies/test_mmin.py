"""MMIN: the cascade and its losses against a plain reference, patterns shown, the teacher of stage two."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from mmx.builtin.fusions.concat import Concat
from mmx.contracts import Filled, Presence, Tokens
from mmx.errors import ConfigError, InputError
from mmx.model import MultimodalModel
from mmx.sweep import Plan
from mmx.testing import world
from mmx.trial.phases import train_in_phases
from mmx_strategies.mmin import Cascade, Imagination, Mmin, error
from mmx_strategies.skip import Skip

WIDTH = 8
SMALL: dict[str, Any] = {"blocks": 2, "layers": (6, 4)}
NAMES = world.names(3)


def strategy_of(count: int = 3, **options: Any) -> Mmin:
    torch.manual_seed(0)
    return Mmin(world.names(count), WIDTH, **{**SMALL, **options})


def presence_of(given: Mapping[str, Sequence[int]]) -> Presence:
    return {m: torch.tensor(present, dtype=torch.bool) for m, present in given.items()}


def tokens_of(given: Mapping[str, Sequence[int]]) -> dict[str, Tokens]:
    generator = torch.Generator().manual_seed(1)
    found = {}
    for m, present in presence_of(given).items():
        values = torch.randn(len(present), 2, WIDTH, generator=generator)
        found[m] = Tokens(torch.where(present[:, None, None], values, 0.0), present[:, None].expand(-1, 2))
    return found


def model_of(strategy: Any, count: int = 2) -> MultimodalModel:
    torch.manual_seed(1)
    encoders = {m: world.PlainEncoder() for m in world.names(count)}
    return MultimodalModel(encoders, strategy, Concat(world.names(count), WIDTH, world.task()), WIDTH).train()


# ---------------------------------------------------------------------------------------------- the cascade


def layers_by_hand(network: Any, x: Tensor, slope: float) -> Tensor:
    maps = [layer for layer in network if isinstance(layer, torch.nn.Linear)]
    for place, layer in enumerate(maps):
        x = layer.weight @ x + layer.bias
        if place + 1 < len(maps):
            x = torch.where(x > 0, x, slope * x)
    return x


def test_each_block_reads_what_the_one_before_added_and_all_bottlenecks_come_out() -> None:
    torch.manual_seed(0)
    cascade, x = Cascade(12, (6, 4), 3), torch.randn(12)
    imagined, bottlenecks = cascade(x[None])
    found = []
    for encoder, decoder in zip(cascade.encoders, cascade.decoders, strict=True):
        found.append(layers_by_hand(encoder, x, 0.01))
        x = x + layers_by_hand(decoder, found[-1], 0.0)
    assert torch.allclose(bottlenecks[0], torch.cat(found), atol=1e-6)
    assert torch.allclose(imagined[0], layers_by_hand(cascade.transition, x, 0.0), atol=1e-6)


def test_a_cascade_that_rebuilds_nothing_has_no_weights_for_it() -> None:
    cascade = Cascade(12, (6, 4), 3, rebuilds=False)
    assert len(cascade.encoders) == 3 and len(cascade.decoders) == 2 and cascade.transition is None


def test_published_sizes_are_the_default() -> None:
    strategy = Mmin(NAMES, 128)
    sizes = [layer.out_features for layer in strategy.forth.encoders[0] if isinstance(layer, torch.nn.Linear)]
    assert sizes == [256, 128, 64] and len(strategy.forth.encoders) == 5
    assert (strategy.imagination, strategy.cycle) == (4.0, 2.0)


# ----------------------------------------------------------------------------------------------- the losses

WHOLE = {m: [1, 1, 1] for m in NAMES}
SHOWN = {"m0": [1, 0, 1], "m1": [0, 0, 1], "m2": [1, 1, 0]}


def filled_by(strategy: Mmin, targets: Mapping[str, Tokens]) -> Filled:
    present = presence_of(SHOWN)
    shown = {
        m: Tokens(torch.where(present[m][:, None, None], t.values, 0.0), t.valid & present[m][:, None])
        for m, t in targets.items()
    }
    return strategy.fill(shown, present, targets)


def test_imagination_is_held_against_the_complement_and_zeros_elsewhere() -> None:
    strategy, targets = strategy_of(cycle=0.0), tokens_of(WHOLE)
    costs = []
    for row in range(3):
        x, t = (
            torch.cat([targets[m].values[row, 0] * (SHOWN[m][row] == shown) for m in NAMES])
            for shown in (1, 0)
        )
        costs.append((strategy.forth(x[None])[0][0] - t).square().mean())
    found = filled_by(strategy, targets).losses
    assert found.keys() == {"imagination"}
    assert float(found["imagination"].detach()) == pytest.approx(4 * float(sum(costs).detach()) / 3, rel=1e-5)


def test_the_way_back_is_held_against_what_entered_without_gradient() -> None:
    strategy, targets = strategy_of(), tokens_of(WHOLE)
    for tokens in targets.values():
        tokens.values.requires_grad_()
    x = torch.stack(
        [torch.cat([targets[m].values[row, 0] * SHOWN[m][row] for m in NAMES]) for row in range(3)]
    )
    back = strategy.back(strategy.forth(x)[0])[0]
    expected = 2 * float((back - x).square().mean().detach())
    found = filled_by(strategy, targets).losses
    assert float(found["cycle"].detach()) == pytest.approx(expected, rel=1e-5)
    found["imagination"].backward()
    hidden = torch.tensor([[1 - present for present in SHOWN[m]] for m in NAMES], dtype=torch.bool)
    for m, gone in zip(NAMES, hidden, strict=True):  # the goal is a goal, and moves by no gradient
        assert not targets[m].values.grad[gone].any() and targets[m].values.grad[~gone].any()


def test_what_nobody_knows_costs_nothing() -> None:
    torch.manual_seed(0)
    imagined, truth = torch.randn(1, 6), torch.randn(1, 6)
    visible, known = torch.tensor([[True, False, False]]), torch.tensor([[True, True, False]])
    expected = (imagined[0, :2].square().sum() + (imagined - truth)[0, 2:4].square().sum()) / 4
    assert float(error(imagined, truth, visible, known)) == pytest.approx(float(expected))


def test_every_fusion_reads_one_token_a_modality_that_is_always_there() -> None:
    found = filled_by(strategy_of(), tokens_of(WHOLE)).tokens
    assert all(t.values.shape == (3, 1, WIDTH) and t.valid.all() for t in found.values())


def test_imagined_features_can_stand_in() -> None:
    strategy, targets = strategy_of(reads="imagined"), tokens_of(WHOLE)
    found = filled_by(strategy, targets).tokens
    x = torch.cat([targets[m].values[0, 0] * SHOWN[m][0] for m in NAMES])
    imagined = strategy.forth(x[None])[0][0].chunk(3)
    assert torch.allclose(found["m1"].values[0, 0], imagined[1], atol=1e-6)
    assert torch.equal(found["m0"].values[0], targets["m0"].values[0])


def test_one_modality_alone_imagines_nothing() -> None:
    alone = strategy_of(1)
    tokens = tokens_of({"m0": [1, 1]})
    assert not alone.fill(tokens, presence_of({"m0": [1, 1]}), tokens).losses and alone.back is None


# --------------------------------------------------------------------------------------------- the patterns


def shown_by(strategy: Mmin, given: Mapping[str, Sequence[int]], rows: int = 1200) -> dict[str, int]:
    torch.manual_seed(0)
    there = {m: torch.tensor(present * rows, dtype=torch.bool) for m, present in given.items()}
    left = torch.stack(list(strategy.hide(there).values()), dim=1).int().tolist()
    kinds = ["".join(map(str, row)) for row in left]
    return {kind: kinds.count(kind) for kind in set(kinds)}


def test_complete_rows_show_each_incomplete_pattern_as_often() -> None:
    found = shown_by(strategy_of(), {m: [1] for m in NAMES})
    assert found.keys() == {"100", "010", "001", "110", "101", "011"}
    assert all(150 < count < 250 for count in found.values())


def test_rows_that_lack_something_show_what_they_can() -> None:
    found = shown_by(strategy_of(), {"m0": [1], "m1": [1], "m2": [0]})
    assert found.keys() == {"100", "010", "110"} and all(320 < count < 480 for count in found.values())
    assert shown_by(strategy_of(), {"m0": [0], "m1": [1], "m2": [0]}).keys() == {"010"}


def test_a_share_of_the_rows_can_be_shown_whole() -> None:
    found = shown_by(strategy_of(whole=0.5), {m: [1] for m in NAMES})
    assert 520 < found["111"] < 680
    assert shown_by(strategy_of(whole=1.0), {m: [1] for m in NAMES}).keys() == {"111"}


# ---------------------------------------------------------------------------------------------- the teacher


@pytest.mark.parametrize("strategy", [Skip, lambda: strategy_of(2)], ids=["skip", "mmin"])
def test_the_goal_is_what_the_teacher_makes_of_all_that_is_there(
    strategy: Callable[[], Any],
) -> None:
    teacher, model = model_of(strategy()), model_of(strategy_of(2, cycle=0.0))
    with torch.no_grad():
        for parameter in teacher.encoders.parameters():
            parameter.mul_(2)
    batch = world.batch_of({"m0": [1, 1, 1, 0], "m1": [1, 1, 0, 1]})
    torch.manual_seed(0)
    (step,) = Imagination(tuple(batch.presence), world.task(), teacher).steps(model, batch)
    torch.manual_seed(0)
    shown = model.strategy.hide(batch.presence)
    tokens = {
        key: {m: encoder(batch.inputs[m]).values[:, 0] for m, encoder in some.encoders.items()}
        for key, some in (("own", model), ("goal", teacher))
    }
    x = torch.cat([tokens["own"][m] * shown[m][:, None] for m in shown], dim=1)
    imagined = model.strategy.forth(x)[0].chunk(2, dim=1)
    cost, count = torch.zeros(()), 0
    for part, m in zip(imagined, shown, strict=True):
        for row in range(4):
            if batch.presence[m][row]:
                goal = tokens["goal"][m][row] * ~shown[m][row]
                cost, count = cost + (part[row] - goal).square().sum(), count + WIDTH
    assert float(step.losses["imagination"].detach()) == pytest.approx(
        4 * float(cost.detach()) / count, rel=1e-4
    )
    assert float(step.loss.detach()) == pytest.approx(
        sum(float(v.detach()) for v in step.losses.values()), rel=1e-5
    )


def test_stage_two_runs_after_stage_one(plan_toy: Callable[..., Plan]) -> None:
    phases = [{"strategy": "skip", "epochs": 1}, {"procedure": "mmin", "epochs": 1}]
    small = {"name": "mmin", "blocks": 2, "layers": [8, 4]}
    changes = {"strategy": small, "fusion": "concat", "missing.train.rate": 0.0}
    plan = plan_toy({**changes, "training.phases": phases})
    model, stages = train_in_phases(plan.cells[0].spec, plan.bench, torch.device("cpu"))
    assert isinstance(model.strategy, Mmin) and "train/imagination" in stages[1].fit.history[0]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"procedure": "mmin", "strategy": "mmin"}, "imagines what the phase before saw"),
        ({"training.phases": [{}, {"procedure": "mmin"}], "strategy": "skip"}, "Skip imagines nothing"),
    ],
)
def test_a_procedure_without_teacher_or_imagination_is_refused(
    plan_toy: Callable[..., Plan], changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        plan_toy({"fusion": "concat", **changes})


@pytest.mark.parametrize(
    "options", [{"imagination": -1.0}, {"cycle": -1.0}, {"whole": 1.5}, {"blocks": 0}, {"layers": ()}]
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="mmin"):
        strategy_of(**options)
