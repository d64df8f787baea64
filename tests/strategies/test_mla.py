"""MLA against references in plain torch: turns through one head, its projected gradient, entropy weights."""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from mmx.builtin.adapters.lora import Lora
from mmx.builtin.fusions.mean_logits import MeanLogits
from mmx.contracts import Batch, Encoder, Fusion, Step, Tokens
from mmx.errors import InputError
from mmx.model import MultimodalModel
from mmx.tasks import MultiLabel, Regression, SingleLabel
from mmx.testing import world
from mmx_strategies.mla import Alternating, EntropyFusion, GradientProjection
from mmx_strategies.skip import Skip

WIDTH = 6
RATE = 0.1
TASK = SingleLabel(classes=world.CLASSES)


class Toy(Encoder):
    """One token: the tanh of a linear map."""

    kind: ClassVar[str] = "vector"
    lora_targets: ClassVar[str] = "linear"

    def __init__(self) -> None:
        super().__init__()
        self.width = WIDTH
        self.linear = nn.Linear(world.FEATURES, WIDTH)

    def forward(self, raw: Tensor, prompts: Any = None) -> Tokens:
        values = torch.tanh(self.linear(raw))[:, None]
        return Tokens(values, torch.ones(values.shape[:2], dtype=torch.bool))


def model_of(count: int = 2, fusion: Fusion | None = None) -> MultimodalModel:
    torch.manual_seed(0)
    names = world.names(count)
    return MultimodalModel(
        {m: Toy() for m in names}, Skip(), fusion or EntropyFusion(names, WIDTH, TASK), WIDTH
    ).train()


def batches_of(count: int, absent_value: float = 0.0) -> list[Batch]:
    """Make batches of which some rows lack something, and of which the last lacks the last modality."""
    names = world.names(count)
    some = {m: [1, int(i == 0), int(i == 1), int(i > 0), 1] for i, m in enumerate(names)}
    gone = {m: [int(m != names[-1])] * 5 for m in names}
    cases = [some, {m: [1] * 5 for m in names}, some, gone]
    return [world.batch_of(case, absent_value, seed) for seed, case in enumerate(cases)]


def take(model: nn.Module, step: Step) -> None:
    """Take a step by plain gradient descent, as the engine would."""
    for p in model.parameters():
        p.grad = None
    step.loss.backward()
    if step.after_backward is not None:
        step.after_backward()
    with torch.no_grad():
        for p in model.parameters():
            if p.grad is not None:
                p.sub_(RATE * p.grad)


def train(model: MultimodalModel, procedure: Alternating, batches: list[Batch], epochs: int = 2) -> None:
    for epoch in range(epochs):
        procedure.epoch_started(epoch, len(batches))
        for batch in batches:
            for step in procedure.steps(model, batch):
                take(model, step)


# ------------------------------------------------------------------------------------- an own reference

Project = Callable[[Tensor, Tensor, float], Tensor]
"""Takes the gradient of the head's weight, the mean of the head's inputs and alpha; gives a gradient."""


class Reference:
    """MLA in plain torch: weights by name, one gradient step a modality and batch."""

    def __init__(self, model: MultimodalModel) -> None:
        self.names = model.modalities
        self.weights = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}

    def hidden(self, m: str, raw: Tensor) -> Tensor:
        return torch.tanh(
            raw @ self.weights[f"encoders.{m}.linear.weight"].T + self.weights[f"encoders.{m}.linear.bias"]
        )

    def turn(self, m: str, batch: Batch, project: Project, alpha: float) -> None:
        rows = [i for i, there in enumerate(batch.presence[m].tolist()) if there]
        if not rows:
            return
        h = self.hidden(m, batch.inputs[m][rows])
        z = h @ self.weights["fusion.head.weight"].T + self.weights["fusion.head.bias"]
        own = [f"encoders.{m}.linear.weight", f"encoders.{m}.linear.bias"]
        names = [*own, "fusion.head.weight", "fusion.head.bias"]
        loss = -z.log_softmax(dim=1)[range(len(rows)), batch.target[rows]].mean()
        grads = list(torch.autograd.grad(loss, [self.weights[n] for n in names]))
        grads[2] = project(grads[2], h.detach().mean(dim=0), alpha)
        for name, grad in zip(names, grads, strict=True):
            self.weights[name] = (self.weights[name] - RATE * grad).detach().requires_grad_()

    def train(self, batches: list[Batch], start: Callable[[int], Project], epochs: int = 2) -> None:
        for epoch in range(epochs):
            project = start(epoch)
            for i, batch in enumerate(batches):
                for m in self.names:
                    self.turn(m, batch, project, 0.1 * 0.1 ** (i / len(batches)))


def unprojected(grad: Tensor, mean: Tensor, alpha: float) -> Tensor:
    return grad


def textbook(update: str) -> Project:
    """OWM: q = P h / (α + hᵀ P h), P ← P − q hᵀ P, and the gradient G ← G Pᵀ."""
    state = {"P": torch.eye(WIDTH), "count": torch.zeros(())}

    def enter(h: Tensor, alpha: float) -> None:
        matrix = state["P"]
        q = (matrix @ h[:, None]) / (alpha + h[None] @ matrix @ h[:, None])
        state["P"] = matrix - q @ h[None] @ matrix

    def project(grad: Tensor, mean: Tensor, alpha: float) -> Tensor:
        first = int(state["count"]) == 0
        state["count"] += 1
        if update == "before":
            if first:
                return grad
            enter(mean, alpha)
            return grad @ state["P"].T
        found = grad @ state["P"].T
        enter(mean, alpha)
        return found

    return project


def assert_same_weights(model: MultimodalModel, reference: Reference) -> None:
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), reference.weights[name].detach(), msg=name)


@pytest.mark.parametrize("count", [2, 3])
def test_without_projection_training_equals_the_reference(count: int) -> None:
    model, batches = model_of(count), batches_of(count)
    reference = Reference(model)
    reference.train(batches, lambda epoch: unprojected)
    train(model, Alternating(model.modalities, TASK, projection="off"), batches)
    assert_same_weights(model, reference)


@pytest.mark.parametrize("reset", ["epoch", "never"])
@pytest.mark.parametrize("update", ["after", "before"])
@pytest.mark.parametrize("count", [2, 3])
def test_with_projection_training_equals_the_reference(count: int, update: Any, reset: Any) -> None:
    model, batches = model_of(count), batches_of(count)
    reference = Reference(model)
    kept = textbook(update)
    reference.train(batches, lambda epoch: textbook(update) if reset == "epoch" else kept)
    train(model, Alternating(model.modalities, TASK, reset=reset, update=update), batches)
    assert_same_weights(model, reference)


# ----------------------------------------------------------------------------------------- the projection


@pytest.mark.parametrize("update", ["after", "before"])
def test_projected_gradient_of_the_heads_weight_equals_the_reference(update: Any) -> None:
    torch.manual_seed(0)
    projection, reference = GradientProjection(update), textbook(update)
    weight = nn.Parameter(torch.zeros(world.CLASSES, WIDTH))
    for i in range(6):
        grad, mean = torch.randn(world.CLASSES, WIDTH), torch.randn(WIDTH)
        weight.grad = grad.clone()
        projection.apply(weight, mean, i / 6)
        torch.testing.assert_close(weight.grad, reference(grad, mean, 0.1 ** (1 + i / 6)))


@pytest.mark.parametrize("update", ["after", "before"])
def test_first_step_of_the_head_is_not_projected(update: Any) -> None:
    weight = nn.Parameter(torch.zeros(world.CLASSES, WIDTH))
    grad = torch.randn(world.CLASSES, WIDTH)
    weight.grad = grad.clone()
    GradientProjection(update).apply(weight, torch.randn(WIDTH), 0.0)
    assert torch.equal(weight.grad, grad)


@pytest.mark.parametrize("update", ["after", "before"])
def test_projection_changes_the_gradient_of_the_heads_weight_and_of_nothing_else(update: Any) -> None:
    model = model_of()
    procedure = Alternating(model.modalities, TASK, update=update)
    procedure.epoch_started(0, 1)
    changed: list[set[str]] = []
    for step in procedure.steps(model, batches_of(2)[0]):
        model.zero_grad(set_to_none=True)
        step.loss.backward()
        before = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        assert step.after_backward is not None
        step.after_backward()
        after = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        assert before.keys() == after.keys()
        changed.append({n for n in after if not torch.equal(before[n], after[n])})
    assert changed == [set(), {"fusion.head.weight"}]


def test_step_after_a_modalitys_turn_hardly_changes_the_answer_to_its_mean() -> None:
    projection = GradientProjection()
    weight = nn.Parameter(torch.zeros(world.CLASSES, WIDTH))
    mean = torch.ones(WIDTH)
    projection.learn(mean, 1.0)
    weight.grad = torch.randn(world.CLASSES, WIDTH)
    raw = (weight.grad @ mean).abs()
    projection.project(weight)
    assert bool(((weight.grad @ mean).abs() < 0.01 * raw).all())


def test_projection_stays_in_full_precision_under_autocast() -> None:
    torch.manual_seed(0)
    found = []
    for enabled in (False, True):
        projection, weight = GradientProjection(), nn.Parameter(torch.zeros(world.CLASSES, WIDTH))
        for i in range(4):
            weight.grad = torch.sin(torch.arange(18.0) + i).reshape(weight.shape)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                projection.apply(weight, torch.cos(torch.arange(6.0) * i), 0.5)
        found.append(weight.grad)
    assert torch.equal(found[0], found[1])


def released_rule(layer: nn.Module, matrix: Tensor) -> None:
    """Do what the released plugin does with a layer's gradients, in own words: by name."""
    for name, parameter in layer.named_parameters():
        if name == "module.weight" and parameter.grad is not None:
            parameter.grad = parameter.grad @ matrix.T


def test_released_projection_never_runs_and_the_textbook_one_does() -> None:
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, world.CLASSES)
    projection = GradientProjection()
    projection.learn(torch.randn(WIDTH), 0.0)
    assert projection.matrix is not None
    head(torch.randn(4, WIDTH)).square().sum().backward()
    assert head.weight.grad is not None
    grad = head.weight.grad.clone()
    released_rule(head, projection.matrix)
    assert torch.equal(head.weight.grad, grad)
    projection.project(head.weight)
    assert not torch.allclose(head.weight.grad, grad)


def free_share(reset: Any) -> list[float]:
    """Feed the drifting noisy means of two modalities (512 wide, 210 an epoch, about CREMA-D's size) for five
    epochs; give trace(P)/width at the end of each.
    """
    width, updates = 512, 210
    procedure = Alternating(world.names(2), TASK, reset=reset)
    assert procedure.projection is not None
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(2, width, generator=generator) / math.sqrt(width)
    found = []
    for epoch in range(5):
        procedure.epoch_started(epoch, updates // 2)
        for i in range(updates):
            means += torch.randn(2, width, generator=generator) * 0.002
            noise = torch.randn(width, generator=generator) * 0.02
            procedure.projection.learn(means[i % 2] + noise, (i // 2) / (updates // 2))
        assert procedure.projection.matrix is not None
        found.append(float(procedure.projection.matrix.trace()) / width)
    return found


def test_projection_that_is_never_reset_freezes_the_head() -> None:
    shares = free_share("never")
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 0.15


def test_projection_that_is_reset_each_epoch_leaves_the_head_free() -> None:
    assert min(free_share("epoch")) > 0.4


# ------------------------------------------------------------------------------------------------- turns


def steps_of(
    batch: Batch, order: Sequence[str] | None = None, model: MultimodalModel | None = None
) -> list[Step]:
    model = model or model_of(len(batch.presence))
    return list(Alternating(model.modalities, TASK, order).steps(model, batch))


def test_each_modality_has_one_step_in_the_datasets_order() -> None:
    found = [list(step.losses) for step in steps_of(batches_of(3)[0])]
    assert found == [["task_m0"], ["task_m1"], ["task_m2"]]


def test_order_is_respected() -> None:
    found = [list(step.losses) for step in steps_of(batches_of(3)[0], ["m2", "m0", "m1"])]
    assert found == [["task_m2"], ["task_m0"], ["task_m1"]]


def test_modality_that_nobody_has_takes_no_step() -> None:
    assert [list(step.losses) for step in steps_of(batches_of(2)[-1])] == [["task_m0"]]


def test_step_moves_the_head_and_its_own_encoder_only() -> None:
    model = model_of()
    turns = Alternating(model.modalities, TASK).steps(model, batches_of(2)[0])
    for m, step in zip(model.modalities, turns, strict=True):
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        take(model, step)
        moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
        own = {f"encoders.{m}.linear.weight", f"encoders.{m}.linear.bias"}
        assert moved == {*own, "fusion.head.weight", "fusion.head.bias"}


def test_loss_of_a_modality_is_over_the_rows_that_have_it() -> None:
    model, batch = model_of(), batches_of(2)[0]
    for m, step in zip(model.modalities, steps_of(batch, model=model), strict=True):
        rows = batch.presence[m]
        z = model.fusion.modality_logits({n: model.encoders[n](x) for n, x in batch.inputs.items()})[m]
        torch.testing.assert_close(step.loss, F.cross_entropy(z[rows], batch.target[rows]))


def test_absent_inputs_change_no_weight() -> None:
    found = []
    for filler in (0.0, float("nan")):
        model = model_of(3)
        train(model, Alternating(model.modalities, TASK), batches_of(3, filler))
        found.append(list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_model_is_shown_one_modality_at_a_time_and_only_rows_that_have_it() -> None:
    model, batch, seen = model_of(3), batches_of(3)[0], []

    def look(module: nn.Module, arguments: tuple[Batch]) -> None:
        seen.append(arguments[0])

    model.register_forward_pre_hook(look)
    steps_of(batch, model=model)
    for m, shown in zip(model.modalities, seen, strict=True):
        rows = batch.presence[m].nonzero()[:, 0].tolist()
        assert shown.ids == [batch.ids[i] for i in rows]
        assert torch.equal(shown.target, batch.target[rows])
        assert torch.equal(shown.inputs[m], batch.inputs[m][rows])
        assert {n: set(p.tolist()) for n, p in shown.presence.items()} == {
            n: {n == m} for n in model.modalities
        }


def test_losses_of_the_strategy_count_in_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    whole = model.forward

    def forward(batch: Batch) -> Any:
        return whole(batch)._replace(losses={"extra": torch.tensor(2.0)})

    monkeypatch.setattr(model, "forward", forward)
    for m, step in zip(model.modalities, steps_of(batches_of(2)[0], model=model), strict=True):
        assert set(step.losses) == {f"task_{m}", "extra"}
        assert torch.equal(step.loss, step.losses[f"task_{m}"] + 2.0)


@pytest.mark.parametrize("order", [["m0"], ["m0", "m0"], ["m0", "m1", "m1"], ["m0", "sound"], []])
def test_order_that_does_not_name_each_modality_once_is_refused(order: list[str]) -> None:
    with pytest.raises(InputError, match="exactly once") as refusal:
        Alternating(("m0", "m1"), TASK, order)
    assert str(order) in str(refusal.value)


@pytest.mark.parametrize("fusion", ["other", "frozen", "adapted"])
def test_projection_is_refused_where_no_shared_head_trains(fusion: str) -> None:
    model = model_of(2, MeanLogits(world.names(2), WIDTH, TASK) if fusion == "other" else None)
    model.fusion.requires_grad_(fusion != "frozen")
    if fusion == "adapted":
        Lora(rank=1, targets=["head"]).apply(model.fusion)
    with pytest.raises(InputError, match="needs a fusion with one shared head"):
        Alternating(model.modalities, TASK).check(model)
    Alternating(model.modalities, TASK, projection="off").check(model)


def test_projection_is_accepted_where_the_shared_head_trains() -> None:
    model = model_of()
    Alternating(model.modalities, TASK).check(model)


def test_without_projection_any_fusion_can_be_trained_in_turns() -> None:
    model = model_of(2, MeanLogits(world.names(2), WIDTH, TASK))
    before = [p.detach().clone() for p in model.parameters()]
    train(model, Alternating(model.modalities, TASK, projection="off"), batches_of(2))
    assert all(not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


# ----------------------------------------------------------------------------------------------- entropy


def fusion_of(count: int = 2, **options: Any) -> EntropyFusion:
    torch.manual_seed(0)
    return EntropyFusion(world.names(count), WIDTH, TASK, **options)


def tokens_of(presence: dict[str, list[int]], scale: float = 1.0, seed: int = 0) -> dict[str, Tokens]:
    """Make two tokens a modality; where nobody has it, none."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for m, there in presence.items():
        kept = torch.tensor(there, dtype=torch.bool)[:, None].expand(-1, 2 if any(there) else 0)
        values = torch.randn(*kept.shape, WIDTH, generator=generator) * scale
        found[m] = Tokens(torch.where(kept[:, :, None], values, 0.0), kept)
    return found


def own_entropy(z: Tensor) -> Tensor:
    p = z.softmax(dim=1)
    return -(p * p.log()).sum(dim=1)


def test_fused_logits_are_those_of_the_modalities_weighed_by_minus_their_entropies() -> None:
    fusion, tokens = fusion_of(3), tokens_of({m: [1, 1, 1] for m in world.names(3)})
    z = torch.stack([fusion.head(tokens[m].values[:, 0]) for m in world.names(3)])
    expected = (-torch.stack([own_entropy(one) for one in z])).softmax(dim=0)
    torch.testing.assert_close(torch.stack(list(fusion.weights(tokens).values())), expected)
    torch.testing.assert_close(fusion(tokens), (expected[:, :, None] * z).sum(dim=0))


def test_weights_are_taken_over_the_modalities_that_a_row_has() -> None:
    fusion, tokens = fusion_of(3), tokens_of({"m0": [1, 1], "m1": [1, 0], "m2": [0, 1]})
    weights = torch.stack(list(fusion.weights(tokens).values()))
    z = {m: fusion.head(t.values[:, 0]) for m, t in tokens.items()}
    for row, pair in enumerate((("m0", "m1"), ("m0", "m2"))):
        expected = torch.stack([-own_entropy(z[m])[row] for m in pair]).softmax(dim=0)
        torch.testing.assert_close(weights[[int(m[1]) for m in pair], row], expected)
    assert weights[2, 0] == 0 and weights[1, 1] == 0


def test_surer_modality_weighs_more() -> None:
    fusion = fusion_of()
    tokens = tokens_of({"m0": [1] * 8, "m1": [1] * 8})
    with torch.no_grad():
        fusion.head.bias.zero_()
    tokens["m1"] = Tokens(tokens["m0"].values * 3, tokens["m0"].valid)
    weights = fusion.weights(tokens)
    assert bool((weights["m1"] > weights["m0"]).all())


@pytest.mark.parametrize("axis", ["sample", "batch"])
def test_modality_that_is_alone_speaks_for_itself_exactly(axis: Any) -> None:
    fusion, tokens = fusion_of(3, axis=axis), tokens_of({"m0": [1, 0, 0], "m1": [0, 1, 0], "m2": [0, 0, 1]})
    alone = fusion.modality_logits(tokens)
    fused = fusion(tokens)
    for row, m in enumerate(world.names(3)):
        assert torch.equal(fused[row], alone[m][row])
        assert torch.equal(fused[row], fusion.head(tokens[m].values[:, 0])[row])


def test_logits_of_a_modality_are_zero_where_it_is_absent() -> None:
    alone = fusion_of().modality_logits(tokens_of({"m0": [1, 0], "m1": [0, 0]}))
    assert bool((alone["m0"][0] != 0).any())
    assert not bool(alone["m0"][1].any()) and not bool(alone["m1"].any())


@pytest.mark.parametrize("axis", ["sample", "batch"])
def test_row_without_any_modality_gives_zeros_and_finite_gradients(axis: Any) -> None:
    fusion, tokens = fusion_of(axis=axis), tokens_of({"m0": [1, 0, 1], "m1": [1, 0, 0]})
    logits = fusion(tokens)
    assert not bool(logits[1].any())
    logits.square().sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in fusion.parameters() if p.grad is not None)


@pytest.mark.parametrize("axis", ["sample", "batch"])
def test_head_is_not_touched_where_nobody_has_anything(axis: Any) -> None:
    fusion = fusion_of(axis=axis)
    logits = fusion(tokens_of({"m0": [0, 0], "m1": [0, 0]}))
    assert logits.shape == (2, world.CLASSES) and not bool(logits.any()) and not logits.requires_grad


def released_weights(first: Tensor, second: Tensor) -> Tensor:
    """Do as the release does, in own words: softmax down the batch, one entropy a modality."""
    entropies = []
    for z in (first, second):
        down = z.exp() / z.exp().sum(dim=0, keepdim=True)
        entropies.append(-(down * down.log()).sum())
    gains = torch.stack([(max(entropies) - e).exp() for e in entropies])
    return gains / gains.sum()


def test_weights_over_the_batch_are_the_released_ones() -> None:
    fusion, tokens = fusion_of(axis="batch"), tokens_of({"m0": [1] * 5, "m1": [1] * 5})
    z = [fusion.head(tokens[m].values[:, 0]) for m in world.names(2)]
    expected = released_weights(*z)
    for m, share in zip(world.names(2), expected, strict=True):
        torch.testing.assert_close(fusion.weights(tokens)[m], share.expand(5))
    torch.testing.assert_close(fusion(tokens), expected[0] * z[0] + expected[1] * z[1])


def test_entropy_over_the_batch_is_of_the_rows_that_have_the_modality() -> None:
    fusion, tokens = fusion_of(axis="batch"), tokens_of({"m0": [1, 1, 1, 0], "m1": [1, 1, 1, 1]})
    z = [fusion.head(tokens[m].values[:, 0]) for m in world.names(2)]
    weights = fusion.weights(tokens)
    torch.testing.assert_close(weights["m0"][:3], released_weights(z[0][:3], z[1])[0].expand(3))
    assert weights["m0"][3] == 0 and weights["m1"][3] == 1


def test_row_depends_on_the_others_only_over_the_batch() -> None:
    presence = {"m0": [1] * 4, "m1": [1] * 4}
    tokens = tokens_of(presence)
    other = tokens_of(presence, seed=1)
    mixed = {m: Tokens(torch.cat([t.values[:1], other[m].values[1:]]), t.valid) for m, t in tokens.items()}
    for axis, same in (("sample", True), ("batch", False)):
        fusion = fusion_of(axis=axis)
        assert torch.allclose(fusion(tokens)[0], fusion(mixed)[0], atol=1e-6) == same


@given(data=st.data(), axis=st.sampled_from(["sample", "batch"]), scale=st.sampled_from([0.0, 1.0, 1e4]))
@settings(max_examples=60, deadline=None)
def test_weights_are_shares_of_what_is_there(data: st.DataObject, axis: Any, scale: float) -> None:
    count, rows = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    bits = st.lists(st.integers(0, 1), min_size=rows, max_size=rows)
    presence = {m: data.draw(bits) for m in world.names(count)}
    fusion, tokens = fusion_of(count, axis=axis), tokens_of(presence, scale)
    weights = torch.stack(list(fusion.weights(tokens).values()))
    there = torch.tensor(list(presence.values()), dtype=torch.bool)
    assert bool((weights >= 0).all()) and not bool(weights[~there].any())
    torch.testing.assert_close(weights.sum(dim=0), there.any(dim=0).float())
    logits = fusion(tokens)
    assert bool(torch.isfinite(logits).all())
    if there.any():
        logits.sum().backward()
        assert all(bool(torch.isfinite(p.grad).all()) for p in fusion.parameters() if p.grad is not None)


@pytest.mark.parametrize("task", [MultiLabel(labels=3), Regression()], ids=["labels", "values"])
def test_task_without_class_probabilities_is_refused(task: Any) -> None:
    with pytest.raises(InputError, match="entropy is of class probabilities"):
        EntropyFusion(world.names(2), WIDTH, task)
