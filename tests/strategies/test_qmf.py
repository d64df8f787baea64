"""QMF: the weighted sum of logits, the losses against a hand-written reference, and the histories."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mmx.builtin.fusions.concat import Concat
from mmx.builtin.fusions.mean_logits import MeanLogits
from mmx.contracts import Batch, Filled, Presence, Step, TokenMap, Tokens
from mmx.errors import InputError
from mmx.model import MultimodalModel
from mmx.tasks import MultiLabel, Regression
from mmx.testing import world
from mmx_strategies.modality_dropout import ModalityDropout
from mmx_strategies.qmf import ConfidenceFusion, LossHistory, Qmf, confidence, ranking_loss
from mmx_strategies.skip import Skip

WIDTH = world.WIDTH // 2
SOME = {"m0": [1, 1, 0, 1, 1], "m1": [1, 0, 1, 1, 1]}


def model_of(count: int, fusion: Any = ConfidenceFusion, seed: int = 0, **options: Any) -> MultimodalModel:
    torch.manual_seed(seed)
    names = world.names(count)
    head = fusion(names, WIDTH, world.task(), **options)
    return MultimodalModel({m: world.PlainEncoder() for m in names}, Skip(), head, WIDTH).train()


def take(batch: Batch, rows: Sequence[int]) -> Batch:
    index = torch.tensor(rows, dtype=torch.long)
    return Batch(
        {m: x[index] for m, x in batch.inputs.items()},
        {m: p[index] for m, p in batch.presence.items()},
        batch.target[index],
        [batch.ids[i] for i in rows],
    )


def step_of(procedure: Qmf, model: MultimodalModel, batch: Batch) -> Step:
    """Take the batch's step, all but the optimiser's part."""
    (step,) = procedure.steps(model, batch)
    model.zero_grad(set_to_none=True)
    step.loss.backward()
    assert step.after_backward is not None
    step.after_backward()
    return step


def cross_entropy(z: Sequence[float], y: int) -> float:
    return math.log(sum(math.exp(v) for v in z)) - z[y]


def energy(z: Sequence[float]) -> float:
    return math.log(sum(math.exp(v) for v in z)) / 10


def rank_by_hand(c: Sequence[float], h: Sequence[float | None]) -> float:
    """Give R of rows in order; a history of None is one that is not there."""
    found = []
    for i in range(len(c)):
        j = (i + 1) % len(c)
        hi, hj = h[i], h[j]
        if hi is None or hj is None or hi == hj:
            continue
        first, second = (i, j) if hi < hj else (j, i)  # the first has lost less: it must be surer
        found.append(max(0.0, abs(hi - hj) - (c[first] - c[second])))
    return sum(found) / len(found) if found else 0.0


def by_hand(
    model: MultimodalModel, batch: Batch, history: dict[str, dict[str, float]], weight: float
) -> dict[str, float]:
    """Give the parts of the loss by loops over rows, and add to the history."""
    parts, fused, ranks = {}, [[0.0] * world.CLASSES for _ in batch.ids], 0.0
    for m in model.modalities:
        losses, sure, past = {}, [], []
        sums = history.setdefault(m, {})
        low, high = min(sums.values(), default=0.0), max(sums.values(), default=0.0)
        for row, name in enumerate(batch.ids):
            if not bool(batch.presence[m][row]):
                continue
            hidden = model.encoders[m](batch.inputs[m][row : row + 1])[0][0, 0]
            z = (model.fusion.heads[m].weight @ hidden + model.fusion.heads[m].bias).tolist()
            fused[row] = [f + energy(z) * v for f, v in zip(fused[row], z, strict=True)]
            losses[name] = cross_entropy(z, int(batch.target[row]))
            sure.append(energy(z))
            past.append((sums[name] - low) / (high - low) if name in sums and high > low else None)
        if losses:
            parts[f"task_{m}"] = sum(losses.values()) / len(losses)
            ranks += rank_by_hand(sure, past)
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0.0) + loss
    own = [cross_entropy(z, int(y)) for z, y in zip(fused, batch.target, strict=True)]
    return {"task": sum(own) / len(own), **parts, "rank": weight * ranks}


# ---------------------------------------------------------------------------------------------- the fusion


def tokens_of(presence: Mapping[str, Sequence[int]], seed: int = 0) -> dict[str, Tokens]:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for m, present in presence.items():
        valid = torch.tensor(present, dtype=torch.bool)[:, None].expand(-1, 2)
        values = torch.randn(len(present), 2, WIDTH, generator=generator)
        found[m] = Tokens(torch.where(valid[:, :, None], values, 0.0), valid)
    return found


def fusion_of(count: int = 2) -> ConfidenceFusion:
    torch.manual_seed(0)
    return ConfidenceFusion(world.names(count), WIDTH, world.task())


def test_fused_logits_are_the_sum_weighed_by_confidence() -> None:
    fusion, tokens = fusion_of(), tokens_of(SOME)
    found = fusion(tokens)
    for row in range(len(found)):
        expected = torch.zeros(world.CLASSES)
        for m in SOME:
            if SOME[m][row]:
                z = fusion.heads[m](tokens[m].values[row, 0])
                expected = expected + energy(z.tolist()) * z
        assert torch.allclose(found[row], expected, atol=1e-6)


def test_gradient_of_the_fused_logits_does_not_pass_the_confidence() -> None:
    fusion, tokens = fusion_of(1), tokens_of({"m0": [1, 1]})
    fusion(tokens).sum().backward()
    z = fusion.heads["m0"](tokens["m0"].values[:, 0])
    expected = confidence(z).sum().expand(world.CLASSES)
    assert torch.allclose(fusion.heads["m0"].bias.grad, expected.detach())


def test_row_without_any_modality_gets_zeros() -> None:
    assert torch.equal(fusion_of()(tokens_of({"m0": [1, 0], "m1": [0, 0]}))[1], torch.zeros(world.CLASSES))


def test_head_of_a_modality_that_nobody_has_is_not_touched() -> None:
    fusion, tokens = fusion_of(), tokens_of({"m0": [1, 1], "m1": [0, 0]})
    tokens["m1"] = Tokens(torch.zeros(2, 0, WIDTH), torch.zeros(2, 0, dtype=torch.bool))
    fusion(tokens).sum().backward()
    assert fusion.heads["m1"].weight.grad is None and fusion.heads["m0"].weight.grad is not None


def test_logits_of_single_modalities_are_their_heads_own() -> None:
    fusion, tokens = fusion_of(), tokens_of(SOME)
    assert fusion.tells_modalities_apart
    for m, z in fusion.modality_logits(tokens).items():
        present = torch.tensor(SOME[m], dtype=torch.bool)
        assert torch.equal(z[~present], torch.zeros_like(z[~present]))
        assert torch.allclose(z[present], fusion.heads[m](tokens[m].values[present, 0]))


# ------------------------------------------------------------------------------------------------ the loss


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_losses_are_those_of_the_reference_over_several_batches(data: st.DataObject) -> None:
    count, seed = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 99))
    some = st.lists(st.integers(0, 1), min_size=6, max_size=6)
    presence = {m: data.draw(some) for m in world.names(count)}
    assume(any(any(p) for p in presence.values()))
    whole = world.batch_of(presence, seed=seed)
    model, weight = model_of(count, seed=seed), data.draw(st.sampled_from([0.0, 0.1, 1.0]))
    procedure = Qmf(world.names(count), world.task(), rank_weight=weight)
    history: dict[str, dict[str, float]] = {}
    for _ in range(4):
        rows = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=6, unique=True))
        batch = take(whole, rows)
        expected = by_hand(model, batch, history, weight)
        if not any(bool(p.any()) for p in batch.presence.values()):
            continue  # nothing that has gradient
        step = step_of(procedure, model, batch)
        found = {n: float(v.detach()) for n, v in step.losses.items()}
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert list(found) == list(expected)
        assert float(step.loss.detach()) == pytest.approx(sum(expected.values()), rel=1e-4)


def test_first_pass_has_no_ranking_loss() -> None:
    procedure, model, batch = Qmf(tuple(SOME), world.task()), model_of(2), world.batch_of(SOME)
    assert float(step_of(procedure, model, batch).losses["rank"]) == 0
    assert float(step_of(procedure, model, batch).losses["rank"].detach()) > 0


def test_history_is_not_touched_before_the_backward_pass_is_done() -> None:
    procedure, model = Qmf(tuple(SOME), world.task()), model_of(2)
    for step in procedure.steps(model, world.batch_of(SOME)):
        step.loss.backward()  # as calibration does, which takes no step
    assert not any(h.places for h in procedure.histories.values())


def test_strategys_losses_are_added() -> None:
    class Extra(Skip):
        def fill(self, tokens: TokenMap, presence: Presence, targets: TokenMap | None) -> Filled:
            return Filled(super().fill(tokens, presence, targets).tokens, {"extra": torch.tensor(5.0)})

    model, batch = model_of(2), world.batch_of(SOME)
    (plain,) = Qmf(tuple(SOME), world.task()).steps(model, batch)
    model.strategy = Extra()
    (step,) = Qmf(tuple(SOME), world.task()).steps(model, batch)
    assert float((step.loss - plain.loss).detach()) == pytest.approx(5, rel=1e-5)
    assert list(step.losses) == ["task", "task_m0", "task_m1", "rank", "extra"]


def test_rows_in_which_a_modality_was_hidden_do_not_count() -> None:
    procedure, model = Qmf(tuple(SOME), world.task()), model_of(2)
    model.strategy = ModalityDropout(tuple(SOME), rate=0.7)
    batch = world.batch_of({m: [1] * 8 for m in SOME})
    torch.manual_seed(0)
    valid = model(batch).tokens["m0"].valid[:, 0]
    torch.manual_seed(0)
    step_of(procedure, model, batch)
    kept = {batch.ids[i] for i in valid.nonzero()[:, 0].tolist()}
    assert 0 < len(kept) < 8 and set(procedure.histories["m0"].places) == kept


def test_it_trains_other_fusions_that_tell_modalities_apart() -> None:
    for fusion in (MeanLogits, Concat):
        procedure, model = Qmf(tuple(SOME), world.task()), model_of(2, fusion)
        procedure.check(model)
        assert {"task_m0", "task_m1"} < set(step_of(procedure, model, world.batch_of(SOME)).losses)


# --------------------------------------------------------------------------------------------- the ranking


@given(st.lists(st.tuples(st.floats(-1, 1), st.none() | st.floats(0, 1)), max_size=7))
@settings(deadline=None)
def test_ranking_loss_is_that_of_the_reference(rows: list[tuple[float, float | None]]) -> None:
    sure = [c for c, _ in rows]
    past = [None if h is None else float(torch.tensor(h)) for _, h in rows]
    found = ranking_loss(
        torch.tensor(sure),
        torch.tensor([h or 0.0 for h in past]),
        torch.tensor([h is not None for h in past], dtype=torch.bool),
    )
    assert float(found) == pytest.approx(rank_by_hand(sure, past), rel=1e-4, abs=1e-5)


def rank(confidences: Sequence[float], history: Sequence[float]) -> float:
    seen = torch.ones(len(history), dtype=torch.bool)
    return float(ranking_loss(torch.tensor(confidences), torch.tensor(history), seen))


def test_lower_loss_with_lower_confidence_is_what_costs() -> None:
    history = [0.2, 0.8]
    right, wrong = rank([0.9, 0.1], history), rank([0.1, 0.9], history)
    assert right == 0 and wrong == pytest.approx(0.6 + 0.8)


def test_confidences_must_differ_by_as_much_as_the_histories() -> None:
    assert rank([0.5, 0.5], [0.2, 0.8]) == pytest.approx(0.6)
    assert rank([0.7, 0.5], [0.2, 0.8]) == pytest.approx(0.4)


def test_samples_with_the_same_history_cost_nothing() -> None:
    assert rank([0.1, 0.9, 0.4], [0.5, 0.5, 0.5]) == 0


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_rows_cost_nothing(count: int) -> None:
    assert rank([0.3] * count, [0.5] * count) == 0


def test_gradient_raises_the_confidence_of_what_has_lost_less() -> None:
    confidences = torch.tensor([0.1, 0.9], requires_grad=True)
    ranking_loss(confidences, torch.tensor([0.2, 0.8]), torch.tensor([True, True])).backward()
    assert confidences.grad is not None and confidences.grad.tolist() == pytest.approx([-1, 1])


def test_ranking_reaches_the_encoder_through_the_confidence() -> None:
    procedure, model = Qmf(tuple(SOME), world.task()), model_of(2)
    batch = world.batch_of(SOME)
    step_of(procedure, model, batch)
    (step,) = procedure.steps(model, batch)
    model.zero_grad(set_to_none=True)
    step.losses["rank"].backward()
    assert all(bool((model.encoders[m].linear.weight.grad != 0).any()) for m in SOME)


# --------------------------------------------------------------------------------------------- the history


def test_history_accumulates_and_scales_over_all_samples() -> None:
    history = LossHistory()
    history.add(["a", "b"], torch.tensor([1.0, 2.0]))
    history.add(["c", "a"], torch.tensor([5.0, 1.5]))  # a 2.5, b 2, c 5
    scaled, seen = history.look_up(["a", "d", "c", "b"])
    assert scaled.tolist() == pytest.approx([0.5 / 3, 0, 1, 0]) and seen.tolist() == [True, False, True, True]


def test_history_of_equal_losses_is_zero() -> None:
    history = LossHistory()
    history.add(["a", "b"], torch.tensor([2.0, 2.0]))
    assert history.look_up(["a", "b"])[0].tolist() == [0, 0]


def test_empty_history_has_seen_nobody() -> None:
    scaled, seen = LossHistory().look_up(["a", "b"])
    assert scaled.tolist() == [0, 0] and not bool(seen.any())


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("task", [MultiLabel(3), Regression()], ids=["labels", "values"])
def test_task_without_classes_is_refused(task: Any) -> None:
    with pytest.raises(InputError, match="fusion 'confidence'"):
        ConfidenceFusion(("m0", "m1"), WIDTH, task)
    with pytest.raises(InputError, match="procedure 'qmf'"):
        Qmf(("m0", "m1"), task)


def test_negative_weight_is_refused() -> None:
    with pytest.raises(InputError, match="rank_weight -1"):
        Qmf(("m0", "m1"), world.task(), rank_weight=-1.0)


def test_fusion_without_logits_of_single_modalities_is_refused() -> None:
    with pytest.raises(InputError, match="confidence"):
        Qmf(("m0", "m1"), world.task()).check(model_of(2, Concat, hidden=4))
