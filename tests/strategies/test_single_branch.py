"""Single branch: equations against a hand-written reference, the orders of switching, and the statistics."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from mmx.builtin.fusions.mean_logits import MeanLogits
from mmx.contracts import Batch, Filled, Presence, Step, TokenMap, Tokens
from mmx.errors import InputError
from mmx.model import MultimodalModel
from mmx.tasks import MultiLabel, Regression
from mmx.testing import world
from mmx_strategies.single_branch import ModalitySwitching, SingleBranch, orthogonal_projection
from mmx_strategies.skip import Skip

WIDTH = world.WIDTH // 2
SOME = {"m0": [1, 1, 0, 1, 1], "m1": [1, 0, 1, 1, 1]}


def fusion_of(count: int = 2, **options: Any) -> SingleBranch:
    torch.manual_seed(0)
    return SingleBranch(
        world.names(count),
        WIDTH,
        world.task(),
        **{"hidden": 16, "dropout": 0.0, "normalise": True, **options},
    )


def tokens_of(presence: Mapping[str, Sequence[int]], seed: int = 0) -> dict[str, Tokens]:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for m, present in presence.items():
        valid = torch.tensor(present, dtype=torch.bool)[:, None].expand(-1, 2)
        values = torch.randn(len(present), 2, WIDTH, generator=generator)
        found[m] = Tokens(torch.where(valid[:, :, None], values, 0.0), valid)
    return found


def model_of(count: int = 2, fusion: Any = None) -> MultimodalModel:
    torch.manual_seed(0)
    names = world.names(count)
    head = fusion_of(count) if fusion is None else fusion
    return MultimodalModel({m: world.PlainEncoder() for m in names}, Skip(), head, WIDTH).train()


def normal(x: torch.Tensor) -> torch.Tensor:
    """Normalise columns by their own mean and variance, as a batch norm at its start does."""
    return (x - x.mean(dim=0)) / (x.var(dim=0, unbiased=False) + 1e-5).sqrt()


def branch_by_hand(fusion: SingleBranch, items: torch.Tensor) -> torch.Tensor:
    maps = [layer for layer in fusion.branches["all"] if isinstance(layer, torch.nn.Linear)]
    for layer in maps:
        items = normal(items @ layer.weight.T).clamp(min=0)
    return items / items.norm(dim=1, keepdim=True)


# ---------------------------------------------------------------------------------------------- the fusion


def test_training_passes_all_modalities_rows_through_one_branch_together() -> None:
    fusion, tokens = fusion_of().train(), tokens_of(SOME)
    rows = {m: [i for i, p in enumerate(present) if p] for m, present in SOME.items()}
    items = torch.cat([normal(tokens[m].values[rows[m], 0]) for m in SOME])
    z = branch_by_hand(fusion, items) @ fusion.head.weight.T + fusion.head.bias
    expected = torch.zeros(5, world.CLASSES)
    places = [(n, i) for n in SOME for i in rows[n]]
    for place, (m, row) in enumerate(places):
        expected[row] += z[place] / sum(SOME[n][row] for n in SOME)
        assert torch.allclose(fusion_of().train().modality_logits(tokens)[m][row], z[place], atol=1e-4)
    assert torch.allclose(fusion(tokens), expected, atol=1e-4)


def test_logits_are_the_mean_over_what_is_present() -> None:
    fusion = fusion_of(3).eval()
    tokens = tokens_of({"m0": [1, 1, 0], "m1": [1, 0, 0], "m2": [1, 1, 1]})
    z = fusion.modality_logits(tokens)
    expected = torch.stack([(z["m0"] + z["m1"] + z["m2"])[0] / 3, (z["m0"] + z["m2"])[1] / 2, z["m2"][2]])
    assert torch.allclose(fusion(tokens), expected, atol=1e-6)


def test_equal_tokens_of_any_modality_get_equal_logits() -> None:
    fusion, tokens = fusion_of().eval(), tokens_of({"m0": [1, 1]})["m0"]
    z = fusion.modality_logits({"m0": tokens, "m1": tokens})
    assert torch.allclose(z["m0"], z["m1"], atol=1e-6)
    own = fusion_of(shared=False).eval().modality_logits({"m0": tokens, "m1": tokens})
    assert not torch.allclose(own["m0"], own["m1"], atol=1e-3)


def test_shared_branch_has_no_more_weights_for_more_modalities() -> None:
    sizes = [sum(p.numel() for p in fusion_of(count).parameters()) for count in (1, 2, 3)]
    assert len(set(sizes)) == 1
    own = [sum(p.numel() for p in fusion_of(n, shared=False).parameters()) for n in (1, 2, 3)]
    assert own[2] - own[1] == own[1] - own[0] > 0


def test_row_without_any_modality_gets_zeros() -> None:
    nobody = tokens_of({"m0": [0, 0], "m1": [0, 0]})
    assert torch.equal(fusion_of()(nobody), torch.zeros(2, world.CLASSES))
    assert torch.equal(fusion_of()(tokens_of({"m0": [1, 0], "m1": [1, 0]}))[1], torch.zeros(world.CLASSES))


def test_a_single_vector_is_normalised_by_the_running_statistics() -> None:
    fusion = fusion_of().train()
    alone = tokens_of({"m0": [0, 1], "m1": [0, 0]})
    before = {n: b.clone() for n, b in fusion.named_buffers()}
    assert torch.allclose(fusion(alone), fusion_of().eval()(alone), atol=1e-6)
    assert all(torch.equal(b, before[n]) for n, b in fusion.named_buffers())


# ------------------------------------------------------------------------------------------------ the loss


def test_orthogonal_projection_is_that_of_the_reference() -> None:
    e, classes = torch.randn(7, 4, generator=torch.Generator().manual_seed(0)), [0, 1, 0, 2, 1, 0, 3]
    same, other = [], []
    for i in range(7):
        for j in range(7):
            cos = float(e[i] @ e[j]) / math.sqrt(float(e[i] @ e[i]) * float(e[j] @ e[j]))
            if i != j and classes[i] == classes[j]:
                same.append(cos)
            elif classes[i] != classes[j]:
                other.append(abs(cos))
    expected = 1 - sum(same) / len(same) + 0.7 * sum(other) / len(other)
    assert float(orthogonal_projection(e, torch.tensor(classes))) == pytest.approx(expected, rel=1e-5)


def test_classes_at_right_angles_cost_nothing() -> None:
    e = torch.tensor([[2.0, 0.0], [3.0, 0.0], [0.0, 0.5]])
    assert float(orthogonal_projection(e, torch.tensor([1, 1, 0]))) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("classes", "expected"), [([0, 0], 1.0), ([0, 1], 0.0), ([0], 0.0)])
def test_pairs_that_are_not_there_cost_nothing(classes: list[int], expected: float) -> None:
    e = torch.eye(2)[: len(classes)]
    assert float(orthogonal_projection(e, torch.tensor(classes))) == pytest.approx(expected)


def test_step_adds_the_projection_of_every_modalitys_rows() -> None:
    model, batch = model_of(), world.batch_of(SOME)
    (step,) = ModalitySwitching(tuple(SOME), world.task(), order="none", alpha=0.5).steps(model, batch)
    again = model_of()
    tokens = again(batch).tokens
    items = torch.cat([normal(tokens[m].values[tokens[m].valid[:, 0], 0]) for m in SOME])
    classes = torch.cat([batch.target[batch.presence[m]] for m in SOME])
    expected = 0.5 * orthogonal_projection(branch_by_hand(again.fusion, items), classes)
    found = {n: float(v.detach()) for n, v in step.losses.items()}
    assert found["orthogonal"] == pytest.approx(float(expected.detach()), rel=1e-3)
    assert float(step.loss.detach()) == pytest.approx(sum(found.values()))


# ----------------------------------------------------------------------------------------------- the turns


def shown_by(order: Any, batch: Batch, seed: int = 0, steps: int = 1, **options: Any) -> list[dict[str, Any]]:
    """Give what a model is shown in some steps: presence by sample."""
    model, seen = model_of(len(batch.presence), MeanLogits(tuple(batch.presence), WIDTH, world.task())), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    procedure = ModalitySwitching(tuple(batch.presence), world.task(), order=order, alpha=0.0, **options)
    procedure.epoch_started(0, steps)
    torch.manual_seed(seed)
    for _ in range(steps):
        list(procedure.steps(model, batch))
    return [
        {name: {m for m in b.presence if bool(b.presence[m][row])} for row, name in enumerate(b.ids)}
        for b in seen
    ]


COMPLETE = {m: [1] * 6 for m in world.names(2)}


def test_random_batches_show_one_alone_or_all_each_as_often() -> None:
    found = shown_by("random", world.batch_of(COMPLETE), steps=150)
    kinds = [frozenset(next(iter(batch.values()))) for batch in found]
    assert all(len(set(map(frozenset, batch.values()))) == 1 for batch in found)
    for kind in ({"m0"}, {"m1"}, {"m0", "m1"}):
        assert 35 < kinds.count(frozenset(kind)) < 65


@pytest.mark.parametrize(("together", "expected"), [(1.0, {2}), (0.0, {1})])
def test_probability_of_all_together_can_be_set(together: float, expected: set[int]) -> None:
    found = shown_by("random", world.batch_of(COMPLETE), steps=20, together=together)
    assert {len(kind) for batch in found for kind in batch.values()} == expected


def test_rows_that_have_nothing_of_what_is_shown_sit_out() -> None:
    found = shown_by("random", world.batch_of(SOME), steps=20, together=0.0)
    assert {frozenset(batch) for batch in found} == {
        frozenset(f"s{i}" for i in range(5) if SOME[m][i]) for m in SOME
    }


@pytest.mark.parametrize("order", ["items", "alternate"])
def test_each_row_shows_one_of_what_it_has(order: str) -> None:
    (found,) = shown_by(order, world.batch_of(SOME))
    assert len(found) == 5 and all(len(kind) == 1 for kind in found.values())
    assert found["s1"] == {"m0"} and found["s2"] == {"m1"}


def test_rows_alternate() -> None:
    (found,) = shown_by("alternate", world.batch_of({m: [1] * 4 for m in world.names(3)}))
    assert list(found.values()) == [{"m0"}, {"m1"}, {"m2"}, {"m0"}]


def test_each_modality_has_its_part_of_the_epoch() -> None:
    found = shown_by("halves", world.batch_of(COMPLETE), steps=6)
    assert [next(iter(batch.values())) for batch in found] == [{"m0"}] * 3 + [{"m1"}] * 3


def test_batch_without_the_modality_whose_turn_it_is_takes_no_step() -> None:
    assert len(shown_by("halves", world.batch_of({"m0": [0, 0], "m1": [1, 1]}), steps=4)) == 2


def test_switched_off_everything_is_shown() -> None:
    (found,) = shown_by("none", world.batch_of(SOME))
    assert found == {f"s{i}": {m for m in SOME if SOME[m][i]} for i in range(5)}


def test_strategys_losses_are_added() -> None:
    class Extra(Skip):
        def fill(self, tokens: TokenMap, presence: Presence, targets: TokenMap | None) -> Filled:
            return Filled(super().fill(tokens, presence, targets).tokens, {"extra": torch.tensor(5.0)})

    model = model_of()
    model.strategy = Extra()
    step: Step
    (step,) = ModalitySwitching(tuple(SOME), world.task()).steps(model, world.batch_of(SOME))
    assert list(step.losses) == ["task", "orthogonal", "extra"]
    assert float(step.loss.detach()) == pytest.approx(sum(float(v.detach()) for v in step.losses.values()))


def test_one_step_lowers_the_loss_that_it_is_of() -> None:
    model, procedure = model_of(), ModalitySwitching(tuple(SOME), world.task(), order="none")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(10):
        (step,) = procedure.steps(model, world.batch_of(SOME))
        optimizer.zero_grad()
        step.loss.backward()
        optimizer.step()
        losses.append(float(step.loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("task", [MultiLabel(3), Regression()], ids=["labels", "values"])
def test_projection_without_classes_is_refused(task: Any) -> None:
    with pytest.raises(InputError, match="alpha: 0"):
        ModalitySwitching(("m0", "m1"), task)
    ModalitySwitching(("m0", "m1"), task, alpha=0.0)


def test_projection_of_another_fusion_is_refused() -> None:
    model = model_of(fusion=MeanLogits(world.names(2), WIDTH, world.task()))
    with pytest.raises(InputError, match="single_branch"):
        ModalitySwitching(model.modalities, world.task()).check(model)
    ModalitySwitching(model.modalities, world.task(), alpha=0.0).check(model)


@pytest.mark.parametrize(("option", "value"), [("alpha", -1.0), ("spread", -0.1), ("together", 1.5)])
def test_options_out_of_range_are_refused(option: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{option} {value}"):
        ModalitySwitching(("m0",), world.task(), **{option: value})


@pytest.mark.parametrize(("option", "value"), [("hidden", 0), ("blocks", 0), ("dropout", 1.0)])
def test_sizes_out_of_range_are_refused(option: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{option} {value}"):
        fusion_of(**{option: value})


def test_length_of_e_is_one_where_asked_for() -> None:
    tokens = tokens_of(SOME)
    for normalise in (True, False):
        fusion, seen = fusion_of(normalise=normalise), []
        fusion.head.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        fusion(tokens)
        assert torch.allclose(seen[0].norm(dim=1), torch.ones(8)) == normalise
        assert F.relu(seen[0]).equal(seen[0])
