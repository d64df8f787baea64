"""The line and its data: who is encoded, where initial weights come from, and what a split refuses."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmx.config import ComponentSpec
from mmx.contracts import Dataset, Sample, Tokens
from mmx.data import Split, shuffled
from mmx.errors import DataError, InputError
from mmx.model import MultimodalModel
from mmx.registry import Offer, Registry
from mmx.sweep import Plan
from mmx.tasks import SingleLabel
from mmx.testing import world
from mmx.types import restrict

PlanToy = Callable[..., Plan]
STRATEGIES = [o for o in Registry.load().offers if o.kind == "strategy"]
every_strategy = pytest.mark.parametrize("offer", STRATEGIES, ids=lambda o: o.component.name)

# ------------------------------------------------------------------------------------------------- model


def assembled(registry: Registry, offer: Offer, count: int = 2) -> MultimodalModel:
    return world.assemble(registry, offer, registry.find("fusion", "transformer"), count)


def rows_seen(model: MultimodalModel, presence: dict[str, list[int]]) -> dict[str, list[int]]:
    """Run a batch, and tell with how many rows each encoder was called."""
    seen: dict[str, list[int]] = {m: [] for m in model.modalities}
    hooks = [
        encoder.register_forward_hook(lambda e, given, out, m=m: seen[m].append(len(given[0])))
        for m, encoder in model.encoders.items()
    ]
    model(world.batch_of(presence, absent_value=float("nan")))
    for hook in hooks:
        hook.remove()
    return seen


@every_strategy
def test_encoder_is_called_with_present_rows_only(registry: Registry, offer: Offer) -> None:
    model = assembled(registry, offer).eval()
    assert rows_seen(model, {"m0": [1, 1, 0, 1], "m1": [0, 1, 1, 0]}) == {"m0": [3], "m1": [2]}


@every_strategy
@pytest.mark.parametrize("training", [True, False])
def test_encoder_of_a_modality_that_nobody_has_is_not_called(
    registry: Registry, offer: Offer, training: bool
) -> None:
    model = assembled(registry, offer).train(training)
    assert rows_seen(model, {"m0": [1, 1], "m1": [0, 0]}) == {"m0": [2], "m1": []}


@pytest.mark.parametrize("part", ["encoders", "fusion"])
def test_initial_weights_of_a_part_do_not_hang_on_the_strategy(plan_toy: PlanToy, part: str) -> None:
    states = []
    for strategy in ("skip", "mask_token", "mean_fill"):
        plan = plan_toy({"strategy": strategy})
        states.append(getattr(plan.bench.model(plan.cells[0].spec), part).state_dict())
    assert all(torch.equal(t, other[n]) for other in states for n, t in states[0].items())


def test_initial_weights_of_an_encoder_do_not_hang_on_the_others(plan_toy: PlanToy) -> None:
    plan = plan_toy()
    spec = plan.cells[0].spec
    deeper = replace(spec, encoders={"m0": ComponentSpec("mlp", {"depth": 3}), "m1": spec.encoders["m1"]})
    first, second = (plan.bench.model(s).encoders["m1"].state_dict() for s in (spec, deeper))
    assert all(torch.equal(t, second[n]) for n, t in first.items())


def test_two_encoders_of_one_kind_start_differently(plan_toy: PlanToy) -> None:
    plan = plan_toy()
    encoders = plan.bench.model(plan.cells[0].spec).encoders
    assert not torch.equal(encoders["m0"].layers[0].weight, encoders["m1"].layers[0].weight)  # type: ignore[union-attr,index]


def test_another_seed_gives_other_initial_weights(plan_toy: PlanToy) -> None:
    plan = plan_toy()
    spec = plan.cells[0].spec
    first, second = (plan.bench.model(replace(spec, seed=s)).encoders["m0"] for s in (0, 1))
    assert not torch.equal(first.layers[0].weight, second.layers[0].weight)  # type: ignore[union-attr,index]


def test_model_of_one_modality_of_the_dataset_can_be_built(
    plan_toy: PlanToy, toy: Any, registry: Any
) -> None:
    import json

    from mmx.config import read_sweep
    from mmx.sweep import plan_sweep

    data = toy({"missing.eval.targets": ["any"]})
    del data["encoders"]["m1"]
    plan = plan_sweep(read_sweep(json.dumps(data), "sweep.yaml"), registry)
    assert plan.bench.model(plan.cells[0].spec).modalities == ("m0",)


def test_encoder_for_another_kind_of_input_is_refused(plan_toy: PlanToy) -> None:
    with pytest.raises(InputError, match=r"encoders\.m0: 'tiny_vit' reads image, but 'm0' is vector"):
        plan_toy({"encoders.m0": "tiny_vit"})


def test_restricting_takes_absent_tokens_away() -> None:
    tokens = {"m0": Tokens(torch.ones(2, 3, 4), torch.ones(2, 3, dtype=torch.bool))}
    left = restrict(tokens, {"m0": torch.tensor([True, False])})["m0"]
    assert torch.equal(left.values[0], torch.ones(3, 4)) and float(left.values[1].abs().sum()) == 0
    assert left.valid.sum(dim=1).tolist() == [3, 0]


def test_restricting_drops_even_what_is_no_number() -> None:
    tokens = {"m0": Tokens(torch.full((1, 1, 2), float("nan")), torch.ones(1, 1, dtype=torch.bool))}
    left = restrict(tokens, {"m0": torch.tensor([False])})["m0"]
    assert float(left.values.abs().sum()) == 0


# -------------------------------------------------------------------------------------------------- data


class Listed(Dataset):
    """Samples as they are given."""

    def __init__(self, samples: Sequence[Sample], in_memory: bool = False) -> None:
        self.modalities = {"a": "vector", "b": "vector"}
        self.task = SingleLabel(2)
        self.in_memory = in_memory
        self.samples = samples

    def split(self, name: str) -> Sequence[Sample]:
        """Give them, whatever the name."""
        return self.samples


class Catalogued(list[Sample]):
    """Samples that tell their contents without being read."""

    @property
    def contents(self) -> list[tuple[str, tuple[str, ...]]]:
        """Ids and modalities."""
        return [(s.id, tuple(s.inputs)) for s in list.__iter__(self)]

    def __iter__(self) -> Any:
        raise AssertionError("read from end to end")


def sample(i: int, **inputs: Any) -> Sample:
    return Sample(
        f"s{i}", inputs or {"a": torch.full((2,), float(i)), "b": torch.full((3,), -float(i))}, i % 2
    )


def lacking(count: int = 7) -> list[Sample]:
    """Make samples of which some lack a modality by nature."""
    found = [sample(i) for i in range(count)]
    found[1] = sample(1, a=torch.ones(2))
    found[4] = sample(4, b=torch.ones(3))
    return found


def split_of(samples: Sequence[Sample], in_memory: bool = False) -> Split:
    return Split(Listed(samples, in_memory), "train", ("a", "b"))


REFUSED: dict[str, tuple[list[Sample], str]] = {
    "empty": ([], "holds no samples"),
    "twice": ([sample(1), sample(2), sample(1)], "'s1' more than once"),
    "nothing": ([sample(0), sample(1, c=torch.ones(2))], r"'s1' of split 'train' has none"),
}


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("case", REFUSED)
def test_split_that_cannot_be_used_is_refused(case: str, in_memory: bool) -> None:
    samples, told = REFUSED[case]
    with pytest.raises(DataError, match=told):
        split_of(samples, in_memory)


@pytest.mark.parametrize("in_memory", [True, False])
def test_inputs_of_two_shapes_are_refused(in_memory: bool) -> None:
    samples = [sample(0), sample(1, a=torch.ones(5), b=torch.ones(3))]
    with pytest.raises(DataError, match=r"'a' of sample 's1' has shape \(5,\), others \(2,\)"):
        split = split_of(samples, in_memory)
        split.batch(torch.arange(2), split.natural)


def test_modality_that_no_sample_has_is_told() -> None:
    split = split_of([sample(0, a=torch.ones(2)), sample(1, a=torch.ones(2))])
    with pytest.raises(DataError, match="no sample of split 'train' has the modality 'b'"):
        split.example("b")


def same(first: Any, second: Any) -> bool:
    return (
        list(first.ids) == list(second.ids)
        and torch.equal(first.target, second.target)
        and all(torch.equal(first.inputs[m], second.inputs[m]) for m in ("a", "b"))
        and all(torch.equal(first.presence[m], second.presence[m]) for m in ("a", "b"))
    )


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("make", [list, Catalogued], ids=["list", "catalogue"])
def test_batches_are_the_same_wherever_the_data_lie(make: Any, workers: int) -> None:
    order, memory = shuffled(7, 0, 0), split_of(lacking(), in_memory=True)
    disk = split_of(make(lacking()))
    expected = list(memory.batches(order, 3, memory.natural))
    found = list(disk.batches(order, 3, disk.natural, workers))
    assert len(found) == len(expected) == 3
    assert all(same(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("in_memory", [True, False])
def test_natural_absence_is_read_off_the_samples(in_memory: bool) -> None:
    natural = split_of(lacking(), in_memory).natural
    assert natural["a"].tolist() == [True] * 4 + [False] + [True] * 2
    assert natural["b"].tolist() == [True, False] + [True] * 5


@pytest.mark.parametrize("in_memory", [True, False])
def test_rows_of_what_is_absent_by_nature_hold_zeros(in_memory: bool) -> None:
    split = split_of(lacking(), in_memory)
    batch = split.batch(torch.tensor([4, 5]), split.natural)
    assert batch.inputs["a"].tolist() == [[0.0, 0.0], [5.0, 5.0]]


@pytest.mark.parametrize("in_memory", [True, False])
def test_presence_of_a_batch_is_what_was_drawn_for_its_rows(in_memory: bool) -> None:
    split = split_of(lacking(), in_memory)
    drawn = {"a": torch.arange(7) < 3, "b": torch.arange(7) >= 3}
    batch = split.batch(torch.tensor([6, 0]), drawn)
    assert batch.presence["a"].tolist() == [False, True] and list(batch.ids) == ["s6", "s0"]


class Watched(dict[str, torch.Tensor]):
    """Inputs that note what is read of them: reading may mean decoding a film."""

    def __init__(self, name: str, read: list[str], **inputs: torch.Tensor) -> None:
        super().__init__(inputs)
        self.name, self.read = name, read

    def __getitem__(self, key: str) -> torch.Tensor:
        self.read.append(f"{self.name}.{key}")
        return super().__getitem__(key)


def test_inputs_of_rows_that_are_masked_are_not_read() -> None:
    read: list[str] = []
    samples = [
        Sample(f"s{i}", Watched(f"s{i}", read, a=torch.ones(2), b=torch.full((3,), 1.0 + i)), 0)
        for i in range(4)
    ]
    split = split_of(samples)
    drawn = {"a": torch.tensor([True, False, True, False]), "b": torch.tensor([False, True, True, False])}
    read.clear()
    (batch,) = split.batches(torch.arange(3), 3, drawn)
    assert sorted(read) == ["s0.a", "s1.b", "s2.a", "s2.b"]
    assert batch.inputs["b"].tolist() == [[0.0] * 3, [2.0] * 3, [3.0] * 3]


def test_shape_of_a_modality_that_a_batch_lacks_is_read_once() -> None:
    read: list[str] = []
    samples = [Sample(f"s{i}", Watched(f"s{i}", read, a=torch.ones(2), b=torch.ones(3)), 0) for i in range(4)]
    split = split_of(samples)
    drawn = {"a": torch.ones(4, dtype=torch.bool), "b": torch.zeros(4, dtype=torch.bool)}
    read.clear()
    for batch in split.batches(torch.arange(4), 1, drawn):
        assert batch.inputs["b"].shape == (1, 3)
    assert [name for name in read if name.endswith(".b")] == ["s0.b"]


def test_short_last_batch_can_be_dropped_but_never_the_only_one() -> None:
    split = split_of(lacking())
    sizes = [len(b.ids) for b in split.batches(torch.arange(7), 3, split.natural, drop_last=True)]
    assert sizes == [3, 3]
    assert [len(b.ids) for b in split.batches(torch.arange(7), 9, split.natural, drop_last=True)] == [7]


@pytest.mark.parametrize("in_memory", [True, False])
def test_targets_are_in_the_order_of_the_samples(in_memory: bool) -> None:
    assert split_of(lacking(), in_memory).targets.tolist() == [0, 1, 0, 1, 0, 1, 0]


@given(count=st.integers(1, 50), seed=st.integers(0, 99), epoch=st.integers(0, 99), noise=st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_order_of_rows_hangs_on_seed_and_epoch_alone(count: int, seed: int, epoch: int, noise: int) -> None:
    first = shuffled(count, seed, epoch)
    torch.manual_seed(noise)
    assert torch.equal(first, shuffled(count, seed, epoch))
    assert first.sort().values.tolist() == list(range(count))


def test_order_of_rows_differs_by_seed_and_by_epoch() -> None:
    orders = {tuple(shuffled(20, seed, epoch).tolist()) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


def test_modality_name_with_a_dot_is_refused(registry: Registry) -> None:
    from mmx import Component
    from mmx.trial import Bench

    found = Registry()
    found.offers = [Offer("dataset", Component("dotted", f"{__name__}:Dotted"), "tests", "1")]
    with pytest.raises(DataError, match=r"'a\.b'"):
        Bench(found).dataset(ComponentSpec("dotted"))


class Dotted(Listed):
    """Has a modality whose name would break dotted keys."""

    def __init__(self) -> None:
        super().__init__([sample(0)])
        self.modalities = {"a.b": "vector"}


@pytest.mark.parametrize("busy", [False, True], ids=["no GPU", "a GPU"])
def test_loaders_pin_memory_where_a_gpu_is_fed_and_only_there(
    busy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def loader(source: Any, **options: Any) -> list[Any]:
        asked.update(options)
        return [source[0]]

    monkeypatch.setattr("mmx.data.DataLoader", loader)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: busy)
    split = split_of([sample(0), sample(1)])
    batches = list(split.batches(torch.arange(2), 1, split.natural, workers=1))
    assert len(batches) == 1 and asked["pin_memory"] is busy


def test_a_batch_is_pinned_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    batch = world.batch_of({"m0": [1, 0], "m1": [1, 1]})
    pinned = batch.pin_memory()
    pairs = [*zip(batch.inputs.values(), pinned.inputs.values(), strict=True)]
    pairs += [
        *zip(batch.presence.values(), pinned.presence.values(), strict=True),
        (batch.target, pinned.target),
    ]
    assert all(torch.equal(a, b) and a is not b for a, b in pairs) and pinned.ids == batch.ids
