"""SMIL: stand-ins, regularisers and both steps against plain references; the autoencoder beside it."""

import gc
import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn

from mmx.contracts import Batch, Begun, Output, Tokens
from mmx.errors import InputError
from mmx.sweep import Plan
from mmx.testing import world
from mmx.trial import run_trial
from mmx_strategies.autoencoder import Autoencoder
from mmx_strategies.complete_rows import Pairs
from mmx_strategies.smil import Meta, Smil

WIDTH, K = 4, 3
SOME = {"m0": [1, 1, 0, 1], "m1": [1, 0, 1, 0]}


def strategy(**options: Any) -> Smil:
    torch.manual_seed(0)
    model = Smil(("m0", "m1"), WIDTH, **{"centres": K, **options})
    for m in ("m0", "m1"):
        model.get_buffer(f"centres_{m}").normal_()
    return model


def tokens_of(presence: dict[str, list[int]], seed: int = 1) -> dict[str, Tokens]:
    torch.manual_seed(seed)
    found = {}
    for m, there in presence.items():
        valid = torch.tensor(there, dtype=torch.bool)[:, None].expand(-1, 2)
        values = torch.randn(len(there), 2, WIDTH)
        found[m] = Tokens(torch.where(valid[:, :, None], values, 0.0), valid)
    return found


def flags(presence: dict[str, list[int]]) -> dict[str, Tensor]:
    return {m: torch.tensor(there, dtype=torch.bool) for m, there in presence.items()}


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


def linear(layer: nn.Module, features: list[float]) -> list[float]:
    assert isinstance(layer, nn.Linear)
    rows = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
    return [sum(w * x for w, x in zip(row, features, strict=True)) + b for row, b in rows]


def test_released_stand_in_and_regulariser_are_the_equations() -> None:
    model, tokens = strategy().eval(), tokens_of(SOME)
    filled = model.fill(tokens, flags(SOME), None)
    h = tokens["m0"].values[1, 0].tolist()  # row 1 has m0 alone
    weights = [softplus(v) for v in linear(model.weigh["m1"]["m0"], h)]  # type: ignore[index]
    centres = model.get_buffer("centres_m1").tolist()
    mixed = [
        sum(w * c[i] for w, c in zip(weights, centres, strict=True)) / sum(weights) for i in range(WIDTH)
    ]
    for n, x in (("m0", h), ("m1", mixed)):
        change = [softplus(v) for v in linear(model.regularise[n]["m0"], h)]  # type: ignore[index]
        expected = [a + b for a, b in zip(x, change, strict=True)]
        assert filled.tokens[n].values[1, 0].tolist() == pytest.approx(expected, abs=1e-5)
        assert bool(filled.tokens[n].valid[:, 0].all())


def test_released_complete_rows_and_other_tokens_stay_as_they_are() -> None:
    model, tokens = strategy().eval(), tokens_of(SOME)
    filled = model.fill(tokens, flags(SOME), None).tokens
    for m in tokens:
        assert torch.allclose(filled[m].values[0], tokens[m].values[0])
        assert torch.equal(filled[m].values[:, 1:], tokens[m].values[:, 1:])
        assert torch.equal(filled[m].valid[:, 1:], tokens[m].valid[:, 1:])


def test_published_form_multiplies_and_mixes_with_mean_one() -> None:
    model, tokens = strategy(form="published").eval(), tokens_of(SOME)
    filled = model.fill(tokens, flags(SOME), None).tokens
    h = tokens["m0"].values[1, 0].tolist()
    mean = model.get_buffer("centres_m1").mean(dim=0).tolist()
    for n, x in (("m0", h), ("m1", mean)):
        factors = [softplus(v) for v in linear(model.regularise[n]["m0"], h)[:WIDTH]]  # type: ignore[index]
        expected = [a * b for a, b in zip(x, factors, strict=True)]
        assert filled[n].values[1, 0].tolist() == pytest.approx(expected, abs=1e-5)


def test_noise_is_for_rows_that_really_lack_something_and_for_training() -> None:
    model, tokens, presence = strategy(), tokens_of(SOME), flags(SOME)
    hidden = {"m0": presence["m0"], "m1": presence["m1"] & torch.tensor([False, True, True, True])}
    visible = {
        m: Tokens(t.values * hidden[m][:, None, None], t.valid & hidden[m][:, None])
        for m, t in tokens.items()
    }
    first, second = (model.fill(visible, hidden, tokens).tokens["m1"].values[:, 0] for _ in range(2))
    assert torch.equal(first[0], second[0]) and not torch.allclose(first[1], second[1])
    model.eval()
    first, second = (model.fill(visible, hidden, None).tokens["m1"].values[:, 0] for _ in range(2))
    assert torch.equal(first, second)


def test_alignment_is_the_error_to_the_features_of_rows_that_were_hidden() -> None:
    complete = {"m0": [1, 1], "m1": [1, 1]}
    model, tokens = strategy(lacks="m1", align=0.5), tokens_of(complete)
    presence = model.hide(flags(complete))
    assert presence["m0"].all() and not presence["m1"].any()
    visible = {"m0": tokens["m0"], "m1": Tokens(tokens["m1"].values[:, :0], tokens["m1"].valid[:, :0])}
    filled = model.fill(visible, presence, tokens)
    total = sum(
        (filled.tokens[m].values[row, 0, i] - tokens[m].values[row, 0, i]).item() ** 2
        for m in tokens for row in range(2) for i in range(WIDTH)
    )  # fmt: skip
    assert filled.losses["align"].item() == pytest.approx(0.5 * total / (2 * 2 * WIDTH), rel=1e-5)


@pytest.mark.parametrize("form", ["released", "published"])
def test_only_the_released_form_takes_a_modality_of_complete_rows(form: Any) -> None:
    torch.manual_seed(0)
    hidden = strategy(form=form).hide(
        {"m0": torch.ones(200, dtype=torch.bool), "m1": torch.arange(200) < 150}
    )
    left = torch.stack(list(hidden.values())).sum(dim=0)
    assert bool((left == 1).all()) == (form == "released")
    if form == "released":
        assert 50 < int(hidden["m0"][:150].sum()) < 100


def test_centres_are_those_of_complete_rows() -> None:
    model, tokens = strategy(), tokens_of({"m0": [1] * 20, "m1": [1] * 12 + [0] * 8})
    halves = [
        {m: Tokens(t.values[a:b], t.valid[a:b]) for m, t in tokens.items()} for a, b in ((0, 9), (9, 20))
    ]
    model.prepare(iter(halves))
    features = tokens["m1"].values[:12, 0].double().numpy()
    expected = KMeans(K, n_init=10, random_state=0).fit(features).cluster_centers_
    assert torch.allclose(model.get_buffer("centres_m1"), torch.from_numpy(expected).float(), atol=1e-5)


def test_fewer_complete_rows_than_centres_are_repeated() -> None:
    model, tokens = strategy(), tokens_of({"m0": [1, 1, 1], "m1": [1, 1, 0]})
    model.prepare(iter([tokens]))
    assert len({tuple(row) for row in model.get_buffer("centres_m0").tolist()}) == 2


def test_training_shows_the_strategy_all_rows_before_the_first_step(plan_toy: Callable[..., Plan]) -> None:
    plan = plan_toy(
        {"strategy": {"name": "smil", "centres": 2}, "adapter": "frozen", "missing.train.rate": 0.0}
    )
    outcome = run_trial(plan.cells[0].spec, plan.bench, torch.device("cpu"))
    model = plan.bench.model(plan.cells[0].spec)
    split = plan.bench.split(plan.cells[0].spec, "train")
    batch = split.batch(torch.arange(len(split)), split.natural)
    with torch.no_grad():
        model.strategy.prepare(iter([model.eval().encode(batch.inputs, batch.presence, batch.presence)]))
    for m in model.modalities:
        found, expected = outcome.state[f"strategy.centres_{m}"], model.strategy.get_buffer(f"centres_{m}")
        assert torch.allclose(found.sort(dim=0).values, expected.sort(dim=0).values, atol=1e-4)


# ------------------------------------------------------------------------------------------ the two steps


class Curved(nn.Module):
    """A model of four numbers whose loss is not quadratic, so that second derivatives change."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.modalities = ("m0", "m1")
        self.encoders = nn.ModuleDict({m: nn.Linear(world.FEATURES, 3).double() for m in self.modalities})
        self.fusion: Any = nn.Linear(3, world.CLASSES).double()
        self.strategy = nn.Linear(3, 3).double()
        self.adapters: dict[str, Any] = {}

    def forward(self, batch: Batch) -> Output:
        """Add what is there."""
        total: Any = 0.0
        for m, encoder in self.encoders.items():
            raw = batch.inputs[m]
            assert isinstance(raw, Tensor)
            total = total + torch.where(batch.presence[m][:, None], torch.tanh(encoder(raw.double())), 0.0)
        return Output(self.fusion(torch.tanh(self.strategy(total))), {}, {}, batch.presence)


def outer_loss(model: Curved, batch: Batch, rate: float, released: bool) -> Tensor:
    """Take the inner step by hand and give the loss of the complete rows after it."""
    rows = torch.stack(list(batch.presence.values())).all(dim=0)

    def loss(state: dict[str, Tensor], chosen: Tensor) -> Tensor:
        part = Batch(
            {m: r[chosen] for m, r in batch.inputs.items()},
            {m: p[chosen] for m, p in batch.presence.items()},
            batch.target[chosen],
            [],
        )
        logits = torch.func.functional_call(model, state, (part,)).logits
        return nn.functional.cross_entropy(logits, part.target)

    state = dict(model.named_parameters())
    slow = {n: p.detach().clone().requires_grad_() for n, p in state.items() if not n.startswith("strategy")}
    inner = loss({**state, **slow}, ~rows)
    slopes = torch.autograd.grad(inner, list(slow.values()), allow_unused=True)
    fast = {n: p - rate * (0 if g is None else g) for (n, p), g in zip(slow.items(), slopes, strict=True)}
    total = loss({**state, **fast}, rows)
    return (total + inner if released else total).detach()


@pytest.mark.parametrize("form", ["released", "published"])
def test_gradient_goes_through_the_inner_step(form: Any) -> None:
    model, rate = Curved(), 0.5
    batch = world.batch_of({"m0": [1, 1, 1, 1, 1], "m1": [1, 1, 0, 0, 0]})
    procedure = Meta(world.task(), form, rate)
    (step,) = procedure.steps(model, batch)
    assert step.loss.item() == pytest.approx(float(outer_loss(model, batch, rate, form == "released")))
    step.loss.backward()
    for name in ("fusion.weight", "encoders.m0.bias", "encoders.m1.bias", "strategy.weight"):
        parameter, nudge = model.get_parameter(name), 1e-5
        expected = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.flatten()[0].add_(sign * nudge)
            expected.append(float(outer_loss(model, batch, rate, form == "released")))
            with torch.no_grad():
                parameter.flatten()[0].sub_(sign * nudge)
        assert parameter.grad is not None
        slope = (expected[0] - expected[1]) / (2 * nudge)
        assert parameter.grad.flatten()[0].item() == pytest.approx(slope, rel=1e-4, abs=1e-7)


def test_nothing_of_a_steps_graph_outlives_it() -> None:
    model, procedure = Curved(), Meta(world.task())
    batch = world.batch_of({"m0": [1, 1, 1], "m1": [1, 0, 0]})
    seen = []
    for _ in range(3):
        for step in procedure.steps(model, batch):
            seen.append(weakref.ref(step.loss))
            step.loss.backward()
            assert all(p.grad is None or p.grad.grad_fn is None for p in model.parameters())
        del step
    gc.collect()
    assert all(ref() is None for ref in seen)


@pytest.mark.parametrize(("form", "ratio"), [("released", 0.1), ("published", 1.0)])
def test_only_the_released_inner_rate_falls(form: Any, ratio: float) -> None:
    model = Curved()
    batch = world.batch_of({"m0": [1, 1, 1], "m1": [1, 0, 0]})
    late, early = Meta(world.task(), form, 0.5), Meta(world.task(), form, 0.5 * ratio)
    late.taken = 1000
    found = [next(iter(p.steps(model, batch))).losses["task"].item() for p in (late, early)]
    assert found[0] == pytest.approx(found[1])


@pytest.mark.parametrize("there", [[1, 1, 1], [0, 0, 0]], ids=["all complete", "none complete"])
def test_without_both_kinds_of_rows_the_step_is_a_plain_one(there: list[int]) -> None:
    model, batch = Curved(), world.batch_of({"m0": [1, 1, 1], "m1": there})
    (step,) = Meta(world.task()).steps(model, batch)
    assert step.loss.item() == pytest.approx(world.task().loss(model(batch).logits, batch.target).item())
    assert set(step.losses) == {"task"}


def test_outer_steps_have_the_complete_rows_that_came_by_last() -> None:
    pairs = Pairs(3)
    like = world.batch_of({"m0": [1, 1], "m1": [1, 1]})
    for seed in (0, 1):
        pairs.add(world.batch_of({"m0": [1, 1], "m1": [1, 1]}, seed=seed))
    found = pairs.batch(like)
    assert found is not None
    first, last = (world.batch_of({"m0": [1, 1], "m1": [1, 1]}, seed=s) for s in (0, 1))
    assert torch.equal(found.target, torch.cat([first.target[1:], last.target]))
    again = Pairs(3)
    again.load_state_dict(pairs.state_dict())
    kept = again.batch(like)
    assert kept is not None and all(torch.equal(kept.inputs[m], found.inputs[m]) for m in found.inputs)  # type: ignore[arg-type]


@pytest.mark.parametrize("stage", [None, 2])
def test_rows_that_were_encoded_before_are_remembered_too(stage: int | None) -> None:
    row = Begun(torch.randn(1, 2, 5), stage)
    batch = Batch({"m0": row}, {"m0": torch.tensor([True])}, torch.tensor([1]), ["a"])
    pairs, again = Pairs(4), Pairs(4)
    pairs.add(batch)
    pairs.add(batch)
    again.load_state_dict(pairs.state_dict())
    found = again.batch(batch)
    assert found is not None
    kept = found.inputs["m0"]
    assert isinstance(kept, Begun) and kept.stage == stage and len(kept.packed) == 2


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "centres": (lambda: strategy(centres=0), "centres 0"),
    "align": (lambda: strategy(align=-1.0), r"align -1\.0"),
    "lacks": (lambda: strategy(lacks="m7"), "'m7' is no modality"),
    "rate": (lambda: Meta(world.task(), inner_rate=0.0), r"inner_rate 0\.0"),
    "pairs": (lambda: Meta(world.task(), pairs=0), "pairs 0"),
    "weight": (lambda: Autoencoder(("m0", "m1"), 4, 0.0), r"weight 0\.0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_values_that_mean_nothing_are_refused(case: str) -> None:
    build, told = REFUSED[case]
    with pytest.raises(InputError, match=told):
        build()


# ------------------------------------------------------------------------------------------ autoencoder


def test_autoencoder_predicts_what_is_absent_and_learns_from_its_error_alone() -> None:
    torch.manual_seed(0)
    model, tokens, presence = Autoencoder(("m0", "m1"), WIDTH, 2.0), tokens_of(SOME), flags(SOME)
    values = tokens["m0"].values.requires_grad_()
    filled = model.fill({**tokens, "m0": Tokens(values, tokens["m0"].valid)}, presence, tokens)
    network = model.predict["m1"]["m0"]  # type: ignore[index]
    assert torch.allclose(filled.tokens["m1"].values[1, 0], network(values[1, 0]))
    errors = [
        (model.predict[n][m](tokens[m].values[0, 0]) - tokens[n].values[0, 0]).square().mean()  # type: ignore[index]
        for n, m in (("m0", "m1"), ("m1", "m0"))
    ]
    assert filled.losses["reconstruction"].item() == pytest.approx(sum(errors).item(), rel=1e-5)  # type: ignore[union-attr]
    assert not filled.tokens["m1"].values.requires_grad
    filled.losses["reconstruction"].backward()
    assert all(p.grad is not None for p in model.parameters()) and values.grad is None


def test_a_frozen_encoder_may_be_encoded_once_for_both_steps(plan_toy: Callable[..., Plan]) -> None:
    changes = {
        "strategy": "smil", "procedure": "smil", "adapter": {"m0": "full", "m1": "frozen"},
        "fusion": "concat", "missing.train.rate": 0.4, "training.epochs": 1,
    }  # fmt: skip
    losses = []
    for gigabytes in (0.0, 0.01):
        plan = plan_toy({**changes, "training.frozen_cache_gigabytes": gigabytes})
        figures = run_trial(plan.cells[0].spec, plan.bench, torch.device("cpu")).metrics
        losses.append([figures[f"train/{name}"][0] for name in ("task", "inner", "align")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
