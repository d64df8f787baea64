"""Phases: what they are made of, what one hands to the next, and what is told of them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from mmx.assemble import hand_over
from mmx.builtin.adapters.lora import Lora
from mmx.config import TrialSpec
from mmx.contracts import Adapter, Batch
from mmx.errors import ConfigError, TrialError
from mmx.sweep import Plan
from mmx.sweep.parameters import flat_parameters
from mmx.trial import Bench, run_trial
from mmx.trial.phases import train_in_phases

PlanToy = Callable[..., Plan]
CPU = torch.device("cpu")
UNI = [{"modalities": ["m0"], "epochs": 1}, {"modalities": ["m1"], "epochs": 2}]
LATE = {"strategy": "skip", "fusion": "mean_logits", "missing.train.rate": 0.0}


def only(plan: Plan) -> tuple[TrialSpec, Bench]:
    (cell,) = plan.cells
    return cell.spec, plan.bench


def up_to(spec: TrialSpec, count: int) -> TrialSpec:
    """Take the first phases of a trial."""
    return replace(spec, training=replace(spec.training, phases=spec.training.phases[:count]))


def batch_of(bench: Bench, spec: TrialSpec) -> Batch:
    split = bench.split(spec, "val")
    return split.batch(torch.arange(8), split.natural)


# ------------------------------------------------------------------------------------------- the file

FAULTS: dict[str, tuple[Any, str, str]] = {
    "no list": (3, "training.phases", "no list"),
    "no mapping": ([3], "training.phases.0", "no mapping"),
    "unknown key": ([{"epoch": 1}], "training.phases.0.epoch", "epochs"),
    "nested phases": ([{"phases": []}], "training.phases.0.phases", "the trial's"),
    "wrong type": ([{"epochs": "many"}], "training.phases.0.epochs", "whole number"),
    "wrong value": ([{"epochs": 0}], "training.phases.0.epochs", "at least 1"),
    "stranger": ([{"modalities": ["m7"]}], "training.phases.0.modalities", "m7"),
    "twice": ([{"modalities": ["m0", "m0"]}], "training.phases.0.modalities", "twice"),
    "unknown adapter": ([{"adapter": "lorra"}], "training.phases.0.adapter", "lora"),
    "adapter of one": ([{"adapter": {"m0": "full"}}], "training.phases.0.adapter", "m1"),
    "adapter of a stranger": (
        [{"adapter": {"m0": "full", "m1": "full", "m7": "full"}}],
        "training.phases.0.adapter.m7",
        "no encoder",
    ),
    "option": ([{"adapter": {"name": "lora", "rang": 2}}], "training.phases.0.adapter.rang", "rank"),
    "procedure": ([{"procedure": "jiont"}], "training.phases.0.procedure", "joint"),
    "first restarts": ([{"restart": True}], "training.phases.0.restart", "none before"),
    "restart type": ([{}, {"restart": "yes please"}], "training.phases.1.restart", "true or false"),
    "rate": ([{"rate": 2.0}], "training.phases.0.rate", "2.0"),
    "all fixed": (
        [{"adapter": "frozen", "fusion_adapter": "frozen"}],
        "training.phases.0",
        "nothing would train",
    ),
}


@pytest.mark.parametrize(("phases", "key", "told"), FAULTS.values(), ids=list(FAULTS))
def test_fault_of_a_phase_is_told_with_its_key(plan_toy: PlanToy, phases: Any, key: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_toy({**LATE, "training.phases": phases})
    assert key in str(caught.value) and told in str(caught.value)


def test_what_a_phase_leaves_open_is_as_in_the_trial(plan_toy: PlanToy) -> None:
    spec, _ = only(plan_toy({**LATE, "training.phases": [{"modalities": ["m0"]}, {"adapter": "lora"}]}))
    first, second = spec.stages()
    assert first == replace(
        spec,
        training=replace(spec.training, phases=()),
        missing=replace(spec.missing, train=replace(spec.missing.train, modalities=("m0",))),
    )
    assert {a.name for a in second.adapters.values()} == {"lora"}
    assert second.missing.train.modalities == ()


def test_a_trial_without_phases_is_its_own_stage(plan_toy: PlanToy) -> None:
    spec, _ = only(plan_toy())
    assert spec.stages() == (spec,)


def test_an_axis_reaches_into_a_phase(plan_toy: PlanToy) -> None:
    axes = {"training.phases.1.adapter.rank": [1, 3]}
    plan = plan_toy({**LATE, "training.phases": [UNI[0], {"adapter": "lora"}], "search": {"axes": axes}})
    ranks = [c.spec.stages()[1].adapters["m0"].options["rank"] for c in plan.cells]
    assert ranks == [1, 3]


def test_an_axis_to_a_phase_that_is_not_there_is_refused(plan_toy: PlanToy) -> None:
    axes = {"training.phases.4.adapter.rank": [1, 3]}
    with pytest.raises(ConfigError, match=r"training\.phases\.4.*no list"):
        plan_toy({**LATE, "training.phases": UNI, "search": {"axes": axes}})


def test_phases_are_part_of_the_point(plan_toy: PlanToy) -> None:
    points = {
        only(plan_toy({**LATE, "training.phases": phases}))[0].point
        for phases in ([], UNI, UNI[:1], UNI[::-1])
    }
    assert len(points) == 4


# --------------------------------------------------------------------------------------- what they see


def test_a_phase_sees_only_its_modalities(plan_toy: PlanToy, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmx.builtin.procedures.joint import Joint

    seen: list[tuple[bool, bool]] = []
    steps = Joint.steps

    def spying(self: Any, model: Any, batch: Batch) -> Any:
        seen.append((bool(batch.presence["m0"].any()), bool(batch.presence["m1"].any())))
        return steps(self, model, batch)

    monkeypatch.setattr(Joint, "steps", spying)
    spec, bench = only(plan_toy({**LATE, "training.phases": UNI}))
    train_in_phases(spec, bench, CPU)
    assert seen == [(True, False)] * 2 + [(False, True)] * 4


def test_rows_that_lack_what_a_phase_sees_are_left_out(
    plan_toy: PlanToy, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmx.builtin.procedures.joint import Joint

    rows: list[int] = []
    steps = Joint.steps

    def spying(self: Any, model: Any, batch: Batch) -> Any:
        assert bool(batch.presence["m0"].all())
        rows.append(len(batch.ids))
        return steps(self, model, batch)

    monkeypatch.setattr(Joint, "steps", spying)
    changes = {**LATE, "training.phases": UNI[:1], "missing.train.rate": 0.5}
    spec, bench = only(plan_toy(changes))
    train_in_phases(spec, bench, CPU)
    assert 0 < sum(rows) < 32


def test_what_training_sees_can_be_set_without_phases(plan_toy: PlanToy) -> None:
    spec, bench = only(plan_toy({**LATE, "missing.train.modalities": ["m0"]}))
    before = bench.model(spec).state_dict()
    model, _ = train_in_phases(spec, bench, CPU)
    changed = {n.split(".")[1] for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {"m0", "heads"}


PATTERNS = {
    "complete": ({"missing.train.rate": 0.0}, {"m0", "m1"}),
    "one": ({"missing.train.modalities": ["m1"], "missing.train.rate": 0.4}, {"m1"}),
    "mixed": ({"missing.train.rate": 0.4}, None),
    "mixed by one": ({"missing.train.rate": {"m0": 0.4, "m1": 0.0}}, None),
}


@pytest.mark.parametrize(("changes", "pattern"), PATTERNS.values(), ids=list(PATTERNS))
def test_the_pattern_of_training_is_known_where_all_rows_share_one(
    plan_toy: PlanToy, changes: dict[str, Any], pattern: set[str] | None
) -> None:
    spec, _ = only(plan_toy({**LATE, **changes}))
    assert spec.missing.train.pattern(("m0", "m1")) == pattern


# ------------------------------------------------------------------------------------- what is handed on


def test_a_replaced_adapter_is_folded_into_the_weights(plan_toy: PlanToy) -> None:
    phases = [{"adapter": "lora", "epochs": 2}, {"adapter": "full"}]
    spec, bench = only(plan_toy({**LATE, "training.phases": phases}))
    model, _ = train_in_phases(up_to(spec, 1), bench, CPU)
    batch = batch_of(bench, spec)
    with torch.no_grad():
        before = model.eval()(batch).logits
        state = hand_over(model, *spec.stages())
        after = bench.model(spec.stages()[1], state).eval()(batch).logits
    assert torch.allclose(before, after, atol=1e-5)
    assert not any("lora" in name for name in state)


def test_the_same_adapter_starts_anew_on_folded_weights(plan_toy: PlanToy) -> None:
    phases = [{"adapter": "lora", "epochs": 2}, {"adapter": "lora", "modalities": ["m0"]}]
    spec, bench = only(plan_toy({**LATE, "training.phases": phases}))
    model, _ = train_in_phases(up_to(spec, 1), bench, CPU)
    batch = batch_of(bench, spec)
    with torch.no_grad():
        before = model.eval()(batch).logits
        again = bench.model(spec.stages()[1], hand_over(model, *spec.stages()))
        assert torch.allclose(again.eval()(batch).logits, before, atol=1e-5)
    assert not any(bool(t.any()) for name, t in again.state_dict().items() if "lora_B" in name)


def test_an_adapter_by_pattern_goes_on_with_its_sets(plan_toy: PlanToy) -> None:
    phases = [
        {},
        {"adapter": "scale_shift", "modalities": ["m0"]},
        {"adapter": "scale_shift", "modalities": ["m1"]},
    ]
    spec, bench = only(plan_toy({**LATE, "training.phases": phases}))
    before = train_in_phases(up_to(spec, 2), bench, CPU)[0].state_dict()
    after = train_in_phases(spec, bench, CPU)[0].state_dict()
    changed = {n for n, t in after.items() if not torch.equal(t, before[n])}
    assert changed and all(
        (n.startswith("encoders.m1") and n.endswith(".m1")) or "heads.m1" in n for n in changed
    )


def test_an_adapter_by_pattern_cannot_be_replaced(plan_toy: PlanToy) -> None:
    phases = [{}, {"adapter": "scale_shift", "modalities": ["m0"]}, {"adapter": "lora"}]
    with pytest.raises(ConfigError, match=r"training\.phases\.2.*write the same adapter again"):
        plan_toy({**LATE, "training.phases": phases})


STRATEGIES = {
    "modality_dropout": "hides modalities",
    "mean_fill": "statistics of its own",
    "mask_token": "hides",
}


@pytest.mark.parametrize(("strategy", "reason"), STRATEGIES.items(), ids=list(STRATEGIES))
def test_an_adapter_by_pattern_needs_a_strategy_that_leaves_other_patterns_alone(
    plan_toy: PlanToy, strategy: str, reason: str
) -> None:
    phases = [{}, {"adapter": "scale_shift", "modalities": ["m0"]}]
    with pytest.raises(ConfigError, match=reason):
        plan_toy({**LATE, "strategy": strategy, "training.phases": phases})


def test_natural_absence_makes_patterns_differ(plan_toy: PlanToy) -> None:
    natural = {"dataset.natural_missing": 0.4}
    assert only(plan_toy({**LATE}))[1].pattern(only(plan_toy(LATE))[0]) == {"m0", "m1"}
    spec, bench = only(plan_toy({**LATE, **natural}))
    assert bench.pattern(spec) is None
    spec, bench = only(plan_toy({**LATE, **natural, "missing.train.modalities": ["m0"]}))
    assert bench.pattern(spec) == {"m0"}


def test_training_that_nothing_reaches_is_told(plan_toy: PlanToy) -> None:
    reading = {"fusion": {"name": "mean_logits", "reads": ["m0"]}}
    spec, bench = only(plan_toy({**LATE, **reading, "training.phases": [{"modalities": ["m1"]}]}))
    with pytest.raises(TrialError, match="reaches anything that trains"):
        run_trial(spec, bench, CPU)


def test_a_phases_settings_are_logged_even_where_they_are_zero(plan_toy: PlanToy) -> None:
    from mmx.sweep.parameters import flat_parameters

    spec, _ = only(
        plan_toy({**LATE, "missing.train.rate": 0.3, "training.phases": [{"rate": 0.0, "warmup": 0.0}, {}]})
    )
    flat = flat_parameters(spec)
    assert flat["training.phases.0"] == "rate=0.0 warmup=0.0"
    assert flat["training.phases.1"] == "as the trial"


def test_loader_processes_of_a_phase_are_no_part_of_the_point(plan_toy: PlanToy) -> None:
    points = {
        only(plan_toy({**LATE, "training.phases": [{"loader_workers": n}, {}]}))[0].point for n in (0, 1)
    }
    assert len(points) == 1


def test_an_axis_inside_a_phase_has_a_column(plan_toy: PlanToy) -> None:
    from mmx.report.standings import axes_of

    axes = {"training.phases.1.adapter.rank": [1, 3]}
    plan = plan_toy({**LATE, "training.phases": [UNI[0], {"adapter": "lora"}], "search": {"axes": axes}})
    assert axes_of(plan.sweep.search, []) == ["training.phases.1"]


def test_an_axis_that_no_phase_uses_is_refused(plan_toy: PlanToy) -> None:
    phases = [{"adapter": "full"}, {"adapter": "lora"}]
    axes = {"adapter.rank": [1, 2]}
    with pytest.raises(ConfigError, match="come to the same trial"):
        plan_toy({**LATE, "adapter": "lora", "training.phases": phases, "search": {"axes": axes}})


def test_a_frozen_fusion_keeps_its_head_and_projectors(plan_toy: PlanToy) -> None:
    encoders = {"m0": {"name": "mlp", "units": 8}, "m1": {"name": "mlp", "units": 16}}
    phases = [{}, {"fusion_adapter": "frozen"}]
    spec, bench = only(plan_toy({**LATE, "encoders": encoders, "training.phases": phases}))
    model = bench.model(spec.stages()[1])
    trainable = {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    assert isinstance(model.projectors["m0"], nn.Linear) and trainable == {"encoders"}


# ------------------------------------------------------------------------------------------ what is told


SKIP_THEN_TOKENS = [{"strategy": "skip"}, {"strategy": "mask_token"}, {}]


def test_a_phase_may_have_a_strategy_of_its_own_which_then_starts_anew(plan_toy: PlanToy) -> None:
    plan = plan_toy({"strategy": "mask_token", "training.phases": SKIP_THEN_TOKENS})
    spec = plan.cells[0].spec
    assert [s.strategy.name for s in spec.stages()] == ["skip", "mask_token", "mask_token"]
    first, second, third = spec.stages()
    model = plan.bench.model(first)
    state = hand_over(model, first, second)
    fresh = plan.bench.model(second, state)
    anew = plan.bench.model(second).strategy.state_dict()
    assert anew and all(torch.equal(t, anew[n]) for n, t in fresh.strategy.state_dict().items())
    with torch.no_grad():
        for parameter in fresh.strategy.parameters():
            parameter.add_(1.0)
    kept = plan.bench.model(third, hand_over(fresh, second, third)).strategy.state_dict()
    assert all(torch.equal(t, kept[n]) for n, t in fresh.strategy.state_dict().items())


def test_the_strategy_of_the_last_phase_is_logged_and_trains(plan_toy: PlanToy) -> None:
    plan = plan_toy({"training.phases": [{"strategy": "skip"}, {"strategy": "mask_token"}]})
    spec = plan.cells[0].spec
    assert flat_parameters(spec)["strategy"] == "mask_token"
    outcome = run_trial(spec, plan.bench, torch.device("cpu"))
    assert any(name.startswith("strategy.") for name in outcome.state)


def test_phases_without_a_strategy_of_their_own_change_no_point(plan_toy: PlanToy) -> None:
    content = plan_toy({"training.phases": [{}]}).cells[0].spec.numbers()
    assert "strategy" not in content["training"]["phases"][0]


def test_epochs_go_on_counting_from_phase_to_phase(plan_toy: PlanToy) -> None:
    spec, bench = only(plan_toy({**LATE, "training.phases": UNI}))
    told: list[int] = []
    outcome = run_trial(spec, bench, CPU, lambda epoch, figures: told.append(epoch))
    assert told == [0, 1, 2] == list(outcome.metrics["train/loss"])


def test_each_phase_tells_its_size_and_the_trial_the_largest(plan_toy: PlanToy) -> None:
    phases = [{"adapter": "full", "epochs": 1}, {"adapter": {"name": "lora", "rank": 1}, "epochs": 1}]
    spec, bench = only(plan_toy({**LATE, "training.phases": phases}))
    outcome = run_trial(spec, bench, CPU)
    sizes = outcome.metrics["phase/trainable_params"]
    assert list(sizes) == [0, 1] and sizes[1] < sizes[0]
    assert outcome.last()["cost/trainable_params"] == sizes[0]
    total = outcome.last()["cost/total_params"]
    assert outcome.metrics["phase/trainable_share"][1] == pytest.approx(sizes[1] / total)


def test_a_trial_without_phases_tells_of_none(plan_toy: PlanToy) -> None:
    spec, bench = only(plan_toy())
    assert not any(name.startswith("phase/") for name in run_trial(spec, bench, CPU).metrics)


def test_the_stored_state_rebuilds_the_last_phases_model(plan_toy: PlanToy) -> None:
    spec, bench = only(plan_toy({**LATE, "training.phases": [*UNI, {"adapter": "lora", "epochs": 1}]}))
    outcome = run_trial(spec, bench, CPU)
    assert outcome.predictions is not None
    model = bench.model(spec.stages()[-1])
    model.load_state_dict(dict(outcome.state))
    split = bench.split(spec, "test")
    batch = split.batch(torch.arange(len(split)), split.natural)
    with torch.no_grad():
        logits = model.eval()(batch).logits
    expected = outcome.predictions.outputs[frozenset({"m0", "m1"})]
    assert abs(split.task.outputs(logits).numpy() - expected).max() < 1e-5


# ------------------------------------------------------------------------------------------- calibration


def test_an_adapter_that_asks_sees_summed_gradients_before_training(
    plan_toy: PlanToy, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, bench = only(plan_toy({**LATE, "adapter": "lora"}))
    seen: list[bool] = []
    build = bench.model

    class Asking(Adapter):
        calibration_batches = 1

        def __init__(self, encoder: nn.Module) -> None:
            self.encoder = encoder

        def apply(self, module: nn.Module) -> None: ...

        def calibrate(self) -> None:
            grads = [p.grad for p in self.encoder.parameters() if p.requires_grad]
            seen.append(any(g is not None and bool(g.any()) for g in grads))

    def building(*arguments: Any) -> Any:
        model = build(*arguments)
        model.adapters["m0"] = Asking(model.encoders["m0"])
        return model

    monkeypatch.setattr(bench, "model", building)
    train_in_phases(spec, bench, CPU)
    assert seen == [True]


def test_calibration_changes_no_number_where_nothing_is_chosen(
    plan_toy: PlanToy, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, bench = only(plan_toy({**LATE, "adapter": "lora"}))
    plain = run_trial(spec, bench, CPU).last()
    monkeypatch.setattr(Lora, "calibration_batches", 2)
    asked = run_trial(spec, bench, CPU).last()
    assert all(asked[n] == v for n, v in plain.items() if not n.startswith("cost/"))


def test_what_no_phase_uses_is_no_part_of_the_point(plan_toy: PlanToy) -> None:
    phases = [{**UNI[0], "adapter": "full"}, {"adapter": "lora"}]
    specs = [
        only(plan_toy({**LATE, "adapter": name, "training.phases": phases}))[0]
        for name in ("frozen", "bitfit")
    ]
    assert specs[0].point == specs[1].point


def test_the_adapter_of_the_last_phase_is_logged(plan_toy: PlanToy) -> None:
    from mmx.sweep.parameters import flat_parameters

    spec, _ = only(plan_toy({**LATE, "training.phases": [{}, {"adapter": "lora", "procedure": "qmf"}]}))
    flat = flat_parameters(spec)
    assert (flat["adapter"], flat["procedure"]) == ("lora", "qmf")


def test_a_phase_that_cannot_be_kept_harms_nothing(
    plan_toy: PlanToy, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mmx.trial.phases

    def full(*arguments: Any, **named: Any) -> None:
        raise OSError(28, "No space left on device")

    spec, bench = only(plan_toy({**LATE, "training.phases": UNI}))
    expected = run_trial(spec, bench, CPU).last()
    other = only(plan_toy({**LATE, "training.phases": UNI}))[1]
    monkeypatch.setattr(mmx.trial.phases, "save_file", full)
    found = run_trial(spec, other, CPU).last()
    assert all(found[n] == v for n, v in expected.items() if not n.startswith(("cost/", "phase/train")))


def test_head_only_trains_the_fusions_head_and_nothing_else(plan_toy: PlanToy) -> None:
    changes = {
        "strategy": "skip",
        "fusion": "transformer",
        "adapter": "head_only",
        "fusion_adapter": "head_only",
    }
    spec, bench = only(plan_toy(changes))
    trains = {n for n, p in bench.model(spec).named_parameters() if p.requires_grad}
    assert {n for n in trains if not n.startswith("projectors")} == {"fusion.head.weight", "fusion.head.bias"}
