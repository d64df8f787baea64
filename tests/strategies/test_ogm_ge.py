"""OGM-GE: who leads, what that does to whose gradients, and when it does nothing."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mmx.builtin.fusions.concat import Concat
from mmx.builtin.fusions.mean_logits import MeanLogits
from mmx.contracts import Batch, Encoder, Fusion, Tokens
from mmx.errors import InputError
from mmx.model import MultimodalModel
from mmx.tasks import MultiLabel, Regression
from mmx.testing import world
from mmx_strategies.modality_dropout import ModalityDropout
from mmx_strategies.ogm_ge import OgmGe, coefficients
from mmx_strategies.skip import Skip

WIDTH = 48
FULL = {"m0": [1] * 6, "m1": [1] * 6}
SOME = {"m0": [1, 1, 0, 1, 1], "m1": [1, 0, 1, 1, 0], "m2": [0, 0, 1, 1, 1]}


class Wide(Encoder):
    """One token from one matrix that is large enough for statistics, and a bias."""

    kind: ClassVar[str] = "vector"
    lora_targets: ClassVar[str] = "linear"

    def __init__(self) -> None:
        super().__init__()
        self.width = WIDTH
        self.linear = nn.Linear(world.FEATURES, WIDTH)

    def forward(self, raw: Tensor, prompts: Any = None) -> Tokens:
        del prompts
        values = self.linear(raw)[:, None].tanh()
        return Tokens(values, torch.ones(values.shape[:2], dtype=torch.bool))


def model_of(count: int, fusion: type[Fusion] = MeanLogits, seed: int = 0, **options: Any) -> MultimodalModel:
    torch.manual_seed(seed)
    names = world.names(count)
    head = fusion(modalities=names, width=WIDTH, task=world.task(), **options)  # type: ignore[call-arg]
    return MultimodalModel({m: Wide() for m in names}, Skip(), head, WIDTH).train()


def unbalanced(seed: int = 0) -> MultimodalModel:
    """Make a model of two modalities of which the first knows its answers by heart."""
    model = model_of(2, seed=seed)
    with torch.no_grad():
        model.fusion.heads["m0"].weight.mul_(0.01)
        model.fusion.heads["m0"].bias.copy_(torch.tensor([6.0, 0.0, 0.0]))
    return model


def batch_where_zero_is_right(presence: Mapping[str, Sequence[int]], seed: int = 0) -> Batch:
    batch = world.batch_of(presence, seed=seed)
    return Batch(batch.inputs, batch.presence, torch.zeros_like(batch.target), batch.ids)


def gradients(model: MultimodalModel, procedure: OgmGe | None, batch: Batch) -> dict[str, Tensor]:
    """Give the gradients that the optimiser would see; without a procedure, those of joint training."""
    model.zero_grad(set_to_none=True)
    if procedure is None:
        world.task().loss(model(batch).logits, batch.target).backward()
    else:
        (step,) = procedure.steps(model, batch)
        step.loss.backward()
        if step.after_backward is not None:
            step.after_backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def procedure(count: int = 2, **options: Any) -> OgmGe:
    return OgmGe(world.names(count), world.task(), **options)


def same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[n], expected[n]) for n in expected)


def by_hand(model: MultimodalModel, batch: Batch, alpha: float) -> dict[str, float]:
    """Give k_m, row by row, from each modality's encoder and head."""
    scores: dict[str, list[float]] = {}
    for m in model.modalities:
        for row in range(len(batch.ids)):
            if bool(batch.presence[m][row]):
                hidden = model.encoders[m](batch.inputs[m][row : row + 1])[0][0, 0]
                logits = (model.fusion.heads[m].weight @ hidden + model.fusion.heads[m].bias).tolist()
                chances = [math.exp(z) / sum(math.exp(y) for y in logits) for z in logits]
                scores.setdefault(m, []).append(chances[int(batch.target[row])])
    means = {m: sum(s) / len(s) for m, s in scores.items()}
    found = dict.fromkeys(model.modalities, 1.0)
    for m in means if len(means) > 1 else ():
        others = [s for n, s in means.items() if n != m]
        ratio = means[m] * len(others) / sum(others)
        if ratio > 1:
            found[m] = 1 - math.tanh(alpha * ratio)
    return found


# ------------------------------------------------------------------------------------------ coefficients


@given(st.floats(0.01, 1), st.floats(0.01, 1), st.floats(0, 2))
def test_of_two_modalities_only_the_leader_is_slowed_down(a: float, v: float, alpha: float) -> None:
    found = coefficients({"a": a, "v": v}, alpha)
    assert found["a"] == (pytest.approx(1 - math.tanh(alpha * a / v)) if a / v > 1 else 1)
    assert found["v"] == (pytest.approx(1 - math.tanh(alpha * v / a)) if v / a > 1 else 1)


def test_of_three_modalities_each_is_compared_with_the_mean_of_the_others() -> None:
    found = coefficients({"a": 0.9, "v": 0.5, "t": 0.1}, alpha=0.4)
    assert found["a"] == pytest.approx(1 - math.tanh(0.4 * 0.9 / 0.3))
    assert found["v"] == 1 and found["t"] == 1  # 0.5 against a mean of 0.5


@pytest.mark.parametrize("scores", [{}, {"a": 0.7}], ids=["none", "alone"])
def test_without_another_there_is_no_coefficient(scores: dict[str, float]) -> None:
    assert coefficients(scores, 0.3) == {}


@pytest.mark.parametrize("v", [0.0, 1e-30])
def test_leader_over_nothing_stands_still(v: float) -> None:
    assert coefficients({"a": 0.5, "v": v}, 0.3) == {"a": 0, "v": 1}


# --------------------------------------------------------------------------------------------- gradients


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_encoder_matrices_are_scaled_exactly_and_nothing_else_is(data: st.DataObject) -> None:
    count, rows = data.draw(st.integers(2, 3)), data.draw(st.integers(1, 5))
    some = st.lists(st.integers(0, 1), min_size=rows, max_size=rows)
    presence = {m: data.draw(some) for m in world.names(count)}
    seed, alpha = data.draw(st.integers(0, 99)), data.draw(st.floats(0, 1))
    model, batch = model_of(count, seed=seed), world.batch_of(presence, seed=seed)
    assume(any(bool(p.any()) for p in batch.presence.values()))
    before = gradients(model, None, batch)
    after = gradients(model, procedure(count, alpha=alpha, noise=False), batch)
    factors = by_hand(model, batch, alpha)
    assert after.keys() == before.keys()
    for name, gradient in before.items():
        part = name.split(".")
        k = factors[part[1]] if part[0] == "encoders" and part[-1] == "weight" else 1.0
        assert torch.allclose(after[name], k * gradient, rtol=1e-4, atol=1e-8), name
        assert k != 1 or torch.equal(after[name], gradient)


def test_leading_modality_learns_more_slowly() -> None:
    model, batch = unbalanced(), batch_where_zero_is_right(FULL)
    before, after = gradients(model, None, batch), gradients(model, procedure(noise=False), batch)
    assert float(after["encoders.m0.linear.weight"].norm() / before["encoders.m0.linear.weight"].norm()) < 0.6
    assert torch.equal(after["encoders.m1.linear.weight"], before["encoders.m1.linear.weight"])


def test_balanced_modalities_are_left_alone() -> None:
    model, batch = model_of(2), world.batch_of(FULL)
    for part in (model.encoders, model.fusion.heads):
        part["m1"].load_state_dict(part["m0"].state_dict())
    batch = Batch(dict.fromkeys(FULL, batch.inputs["m0"]), batch.presence, batch.target, batch.ids)
    assert same(gradients(model, procedure(noise=False), batch), gradients(model, None, batch))


def test_rows_without_a_modality_do_not_count_into_its_score() -> None:
    model = model_of(3)
    batch = world.batch_of(SOME)
    output = model(batch)
    scores = procedure(3).scores(model, output.tokens, batch)
    for m, present in SOME.items():
        rows = torch.tensor(present).nonzero()[:, 0]
        z = model.fusion.heads[m](model.encoders[m](batch.inputs[m][rows]).values[:, 0])
        expected = z.softmax(dim=1)[torch.arange(len(rows)), batch.target[rows]].mean().detach()
        assert scores[m] == pytest.approx(float(expected), rel=1e-5)


def test_rows_in_which_a_modality_was_hidden_do_not_count_into_its_score() -> None:
    model, batch = model_of(2), world.batch_of({m: [1] * 20 for m in FULL})
    model.strategy = ModalityDropout(("m0", "m1"), rate=0.5)
    output = model(batch)
    kept = output.tokens["m0"].valid[:, 0]
    assert 0 < int(kept.sum()) < len(kept)
    z = model.fusion.heads["m0"](output.tokens["m0"].values[kept, 0])
    expected = z.softmax(dim=1)[torch.arange(len(z)), batch.target[kept]].mean().detach()
    found = procedure().scores(model, output.tokens, batch)["m0"]
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_columns_of_a_concatenating_head_give_the_scores() -> None:
    model, batch = model_of(2, Concat), world.batch_of(FULL)
    output = model(batch)
    linear = model.fusion.head[-1]
    scores = procedure().scores(model, output.tokens, batch)
    for i, m in enumerate(("m0", "m1")):
        z = output.tokens[m].values[:, 0] @ linear.weight[:, i * WIDTH : (i + 1) * WIDTH].T + linear.bias / 2
        expected = z.softmax(dim=1)[torch.arange(len(z)), batch.target].mean().detach()
        assert scores[m] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("noise", [True, False])
def test_nothing_is_modulated_where_only_one_modality_is_there(noise: bool) -> None:
    model, batch = unbalanced(), batch_where_zero_is_right({"m0": [1] * 4, "m1": [0] * 4})
    assert same(gradients(model, procedure(noise=noise), batch), gradients(model, None, batch))


def test_modality_that_no_row_has_is_not_compared_with() -> None:
    model = model_of(3)
    batch = world.batch_of({"m0": [1, 1, 1], "m1": [1, 1, 1], "m2": [0, 0, 0]})
    output = model(batch)
    assert set(procedure(3).scores(model, output.tokens, batch)) == {"m0", "m1"}
    assert not any(n.startswith("encoders.m2") for n in gradients(model, procedure(3), batch))


def test_frozen_encoder_is_left_alone_and_still_compared_with() -> None:
    model, batch = unbalanced(), batch_where_zero_is_right(FULL)
    model.encoders["m1"].requires_grad_(False)
    before, after = gradients(model, None, batch), gradients(model, procedure(noise=False), batch)
    assert not any(n.startswith("encoders.m1") for n in after)
    k = by_hand(model, batch, 0.3)["m0"]
    expected = k * before["encoders.m0.linear.weight"]
    assert k < 1 and torch.allclose(after["encoders.m0.linear.weight"], expected, rtol=1e-4)


def test_modality_that_the_fusion_does_not_read_is_left_alone() -> None:
    model, batch = model_of(3, reads=["m0", "m2"]), world.batch_of({m: [1] * 4 for m in world.names(3)})
    assert set(procedure(3).scores(model, model(batch).tokens, batch)) == {"m0", "m2"}
    gradients(model, procedure(3), batch)


# ------------------------------------------------------------------------------------------------- noise


def test_noise_has_the_std_of_each_gradient_before_it_is_scaled() -> None:
    model, batch = unbalanced(), batch_where_zero_is_right(FULL)
    torch.manual_seed(0)
    plain = gradients(model, None, batch)
    scaled, noisy = (gradients(model, procedure(noise=n), batch) for n in (False, True))
    for m in FULL:
        name = f"encoders.{m}.linear.weight"
        added = noisy[name] - scaled[name]
        assert float(added.std() / plain[name].std()) == pytest.approx(1, rel=0.15)
        assert abs(float(added.mean())) < 0.2 * float(plain[name].std())


def test_noise_touches_encoder_matrices_only() -> None:
    model, batch = unbalanced(), batch_where_zero_is_right(FULL)
    before, after = gradients(model, None, batch), gradients(model, procedure(), batch)
    touched = {n for n in before if not torch.equal(before[n], after[n])}
    assert touched == {f"encoders.{m}.linear.weight" for m in FULL}


def test_matrix_of_one_element_gets_no_noise() -> None:
    model, batch = model_of(2), world.batch_of(FULL)
    single = nn.Parameter(torch.ones(1, 1))
    model.encoders["m0"].register_parameter("single", single)
    (step,) = procedure().steps(model, batch)
    step.loss.backward()
    single.grad = torch.full((1, 1), 2.0)
    assert step.after_backward is not None
    step.after_backward()
    assert float(single.grad) == pytest.approx(2 * by_hand(model, batch, 0.3)["m0"], rel=1e-4)


def test_noise_is_a_function_of_the_seed() -> None:
    model, batch = unbalanced(), batch_where_zero_is_right(FULL)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(gradients(model, procedure(), batch))
    assert same(found[0], found[1]) and not same(found[0], found[2])


# ------------------------------------------------------------------------------------- when, and for whom


@pytest.mark.parametrize(("epoch", "modulated"), [(0, True), (1, True), (2, False), (3, False)])
def test_until_switches_modulation_and_noise_off(epoch: int, modulated: bool) -> None:
    model, batch = unbalanced(), batch_where_zero_is_right(FULL)
    own = procedure(until=2)
    own.epoch_started(epoch, 1)
    assert same(gradients(model, own, batch), gradients(model, None, batch)) != modulated


def test_without_until_it_never_ends() -> None:
    model, batch = unbalanced(), batch_where_zero_is_right(FULL)
    own = procedure()
    own.epoch_started(10_000, 1)
    assert not same(gradients(model, own, batch), gradients(model, None, batch))


def test_loss_is_the_tasks_and_the_strategys() -> None:
    model, batch = model_of(2), world.batch_of(FULL)
    (step,) = procedure().steps(copy.deepcopy(model), batch)
    expected = world.task().loss(model(batch).logits, batch.target)
    assert torch.equal(step.loss, expected) and set(step.losses) == {"task"}


def test_negative_alpha_is_refused() -> None:
    with pytest.raises(InputError, match="alpha -0"):
        procedure(alpha=-0.1)


@pytest.mark.parametrize("task", [MultiLabel(3), Regression()], ids=["labels", "values"])
def test_task_without_a_target_class_is_refused(task: Any) -> None:
    with pytest.raises(InputError, match=type(task).__name__):
        OgmGe(("m0", "m1"), task)


def test_fusion_without_logits_of_single_modalities_is_refused() -> None:
    with pytest.raises(InputError, match="mean_logits"):
        procedure().check(model_of(2, Concat, hidden=4))


def test_fusion_that_tells_modalities_apart_is_taken() -> None:
    for fusion in (Concat, MeanLogits):
        procedure().check(model_of(2, fusion))
