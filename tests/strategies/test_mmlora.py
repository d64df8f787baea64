"""MMLoRA, UME and UMT: what stage two starts from, what each stage moves, and what the teacher asks for."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmx.assemble import hand_over
from mmx.builtin.procedures.joint import Joint
from mmx.config import TrialSpec
from mmx.contracts import Batch, Model, Output, Step, Tokens
from mmx.errors import ConfigError, InputError
from mmx.model import MultimodalModel
from mmx.sweep import Plan
from mmx.sweep.estimate import seconds_left
from mmx.testing import world
from mmx.trial import Bench, Outcome, run_trial
from mmx.trial.phases import train_in_phases
from mmx_strategies.mmlora import Distillation
from mmx_strategies.skip import Skip

PlanToy = Callable[..., Plan]
Staged = tuple[TrialSpec, Bench]
State = Mapping[str, Tensor]

CPU = torch.device("cpu")
LATE = {"strategy": "skip", "fusion": "mean_logits", "missing.train.rate": 0.0}
M0: dict[str, Any] = {"modalities": ["m0"], "adapter": "full", "epochs": 3}
M1: dict[str, Any] = {**M0, "modalities": ["m1"]}
LORA: dict[str, Any] = {"adapter": {"name": "lora", "rank": 2}, "epochs": 3}
CHOSEN: dict[str, Any] = {"adapter": {"m0": {"name": "lora", "rank": 2}, "m1": "frozen"}, "epochs": 3}
PROBE: dict[str, Any] = {"adapter": "frozen", "epochs": 3}
THIRD = {"all": LORA, "one": CHOSEN, "none": PROBE}
each_third = pytest.mark.parametrize("third", THIRD.values(), ids=list(THIRD))
UNEVEN = {"encoders.m1": {"name": "mlp", "units": 24}, "missing.train.rate": 0.3}
"""Encoders of two widths, so that one has a projector, and rows that lack a modality."""
WORLDS: dict[str, dict[str, Any]] = {"even": {}, "uneven": UNEVEN}
in_each_world = pytest.mark.parametrize("changes", WORLDS.values(), ids=list(WORLDS))


def staged(plan_toy: PlanToy, *phases: Any, bench: Bench | None = None, **changes: Any) -> Staged:
    """Resolve a trial of these phases; its own bench, or the one given."""
    plan = plan_toy({**LATE, **changes, "training.phases": list(phases)})
    (cell,) = plan.cells
    return cell.spec, bench or plan.bench


def trained(trial: Staged) -> MultimodalModel:
    return train_in_phases(*trial, CPU)[0].eval()


def next_of(plan_toy: PlanToy, *phases: Any, **changes: Any) -> tuple[MultimodalModel, State, Staged]:
    """Train all phases but the last; build the last one's model as the engine does, and tell what it got."""
    spec, bench = staged(plan_toy, *phases, **changes)
    before = trained(staged(plan_toy, *phases[:-1], bench=bench, **changes))
    *_, now, then = spec.stages()
    state = {n: t.detach().clone() for n, t in hand_over(before, now, then).items()}
    return bench.model(then, state).eval(), state, (spec, bench)


def batch_of(trial: Staged, *modalities: str) -> Batch:
    """Take rows of the validation split of which only these modalities are there."""
    spec, bench = trial
    split = bench.split(spec, "val")
    there = {m: p if m in modalities else torch.zeros_like(p) for m, p in split.natural.items()}
    return split.batch(torch.arange(16), there)


def plain_names(state: State) -> dict[str, Tensor]:
    """Give the weights that are there with and without LoRA."""
    return {n.replace("base_layer.", ""): t for n, t in state.items() if "lora_" not in n}


def same(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(torch.equal(t, second[n]) for n, t in first.items())


def numbers(outcome: Outcome) -> dict[str, Any]:
    """Give what does not depend on the clock."""
    return {n: v for n, v in outcome.metrics.items() if not n.startswith("cost/") and "seconds" not in n}


# -------------------------------------------------------------------------------------------- stage one


@in_each_world
@pytest.mark.parametrize("seen", [M0, M1], ids=["m0", "m1"])
def test_a_uni_modal_phase_moves_nothing_of_the_other_modality(
    plan_toy: PlanToy, seen: dict[str, Any], changes: dict[str, Any]
) -> None:
    trial = staged(plan_toy, seen, **{**changes, "training.weight_decay": 0.5})
    before = {n: t.clone() for n, t in trial[1].model(trial[0].stages()[0]).state_dict().items()}
    after = trained(trial).state_dict()
    moved = {n for n, t in after.items() if not torch.equal(t, before[n])}
    (m,) = seen["modalities"]
    assert moved and {n.split(".")[-2 if "heads" in n or "projectors" in n else 1] for n in moved} == {m}


def test_the_order_of_uni_modal_phases_is_free(plan_toy: PlanToy) -> None:
    first, second = (trained(staged(plan_toy, *order)) for order in ((M0, M1), (M1, M0)))
    assert same(first.state_dict(), second.state_dict())


@in_each_world
def test_two_uni_modal_phases_are_the_mean_of_models_trained_alone(
    plan_toy: PlanToy, changes: dict[str, Any]
) -> None:
    trial = staged(plan_toy, M0, M1, **changes)
    together = trained(trial)
    alone = {m: trained(staged(plan_toy, phase, **changes)) for m, phase in (("m0", M0), ("m1", M1))}
    with torch.no_grad():
        parts = [model(batch_of(trial, m)).logits for m, model in alone.items()]
        assert torch.equal(together(batch_of(trial, "m0", "m1")).logits, (parts[0] + parts[1]) / 2)
        for m, part in zip(alone, parts, strict=True):
            assert torch.equal(together(batch_of(trial, m)).logits, part)
    assert not torch.allclose(parts[0], parts[1], atol=1e-2)


# -------------------------------------------------------------------------------------------- stage two


@in_each_world
@each_third
def test_stage_two_starts_as_ume(plan_toy: PlanToy, third: dict[str, Any], changes: dict[str, Any]) -> None:
    model, _, trial = next_of(plan_toy, M0, M1, third, **changes)
    alone = {m: trained(staged(plan_toy, phase, **changes)) for m, phase in (("m0", M0), ("m1", M1))}
    with torch.no_grad():
        parts = [one(batch_of(trial, m)).logits for m, one in alone.items()]
        start = model(batch_of(trial, "m0", "m1")).logits
    assert torch.allclose(start, (parts[0] + parts[1]) / 2, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", THIRD)
def test_stage_two_moves_lora_and_heads_and_nothing_else(plan_toy: PlanToy, name: str) -> None:
    start, stage_one, trial = next_of(plan_toy, M0, M1, THIRD[name])
    before, after = start.state_dict(), trained(trial).state_dict()
    moved = {n for n, t in after.items() if not torch.equal(t, before[n])}
    heads = {n for n in after if n.startswith("fusion.heads")}
    assert heads and moved == heads | {n for n in after if "lora_" in n}
    adapted = {"all": {"m0", "m1"}, "one": {"m0"}, "none": set()}[name]
    assert {n.split(".")[1] for n in moved - heads} == adapted
    kept = plain_names(after)
    assert kept.keys() == stage_one.keys()
    assert all(torch.equal(t, kept[n]) for n, t in stage_one.items() if n not in heads)


def test_stage_two_trains_a_share_and_tells_each_phases_size(plan_toy: PlanToy) -> None:
    outcome = run_trial(*staged(plan_toy, M0, M1, LORA), CPU)
    assert outcome.predictions is not None
    assert all(torch.isfinite(torch.from_numpy(p)).all() for p in outcome.predictions.outputs.values())
    assert all(bool(torch.isfinite(t).all()) for t in outcome.state.values())
    assert any("lora_B" in n and bool(t.any()) for n, t in outcome.state.items())
    last = outcome.last()
    for name in ("trainable_params", "total_params", "train_seconds", "eval_seconds", "peak_memory_mb"):
        assert last[f"cost/{name}"] > 0
    sizes = outcome.metrics["phase/trainable_params"]
    assert list(sizes) == [0, 1, 2] and sizes[0] == sizes[1] > sizes[2] > 0


def test_stage_one_is_trained_once_for_all_trials_of_a_bench(
    plan_toy: PlanToy, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmx.trial import phases

    calls: list[int] = []
    fit = phases.fit

    def counting(*given: Any, **named: Any) -> Any:
        calls.append(1)
        return fit(*given, **named)

    monkeypatch.setattr("mmx.trial.phases.fit", counting)
    fresh = [numbers(run_trial(*staged(plan_toy, M0, M1, third), CPU)) for third in (LORA, CHOSEN)]
    assert len(calls) == 6
    calls.clear()
    bench = plan_toy(LATE).bench
    shared = [
        numbers(run_trial(*staged(plan_toy, M0, M1, third, bench=bench), CPU)) for third in (LORA, CHOSEN)
    ]
    assert len(calls) == 4 and shared == fresh


def test_what_stage_one_depends_on_is_not_reused_across_it(
    plan_toy: PlanToy, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmx.trial import phases

    calls: list[int] = []
    fit = phases.fit
    monkeypatch.setattr("mmx.trial.phases.fit", lambda *given: (calls.append(1), fit(*given))[1])
    bench = plan_toy(LATE).bench
    for first in (M0, {**M0, "learning_rate": 0.001}):
        train_in_phases(*staged(plan_toy, first, M1, bench=bench), CPU)
    assert len(calls) == 4


# ------------------------------------------------------------------------------------------ distillation


class Fixed(nn.Module):
    """A model whose tokens are its parameters, and whose logits are a linear map of their sum."""

    def __init__(self, presence: Mapping[str, list[int]], seed: int, losses: bool = False) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.modalities = tuple(presence)
        self.encoders = nn.ModuleDict()
        self.values = nn.ParameterDict(
            {m: nn.Parameter(torch.randn(len(p), 2, world.WIDTH)) for m, p in presence.items()}
        )
        self.valid = {m: torch.tensor(p, dtype=torch.bool) for m, p in presence.items()}
        self.strategy: Any = Skip()
        self.fusion: Any = nn.Linear(world.WIDTH, world.CLASSES)
        self.adapters: dict[str, Any] = {}
        self.extra = losses

    def forward(self, batch: Batch) -> Output:
        """Give the tokens; absent rows hold values that nobody may read."""
        tokens = {}
        for m, valid in self.valid.items():
            values = torch.where(valid[:, None, None], self.values[m], float("nan"))
            tokens[m] = Tokens(values, valid[:, None].expand(-1, 2))
        total = torch.stack([torch.where(t.valid[:, :1], t.values[:, 0], 0.0) for t in tokens.values()])
        losses = {"own": self.values["m0"].square().mean() * 0 + 0.25} if self.extra else {}
        return Output(self.fusion(total.sum(dim=0)), losses, tokens, batch.presence)


SOME = {"m0": [1, 1, 0, 1, 1, 0], "m1": [1, 0, 1, 1, 1, 0], "m2": [0, 0, 0, 0, 0, 0]}
STUDENT = {**SOME, "m0": [1, 1, 0, 0, 1, 0]}
"""Row 3's m0 is there, and hidden from the student."""


def step_of(student: Model, teacher: Model, batch: Batch, weight: float = 10.0) -> Step:
    procedure = Distillation(tuple(batch.presence), world.task(), teacher, weight)
    (step,) = procedure.steps(student, batch)
    return step


def reference(student: Fixed, teacher: Fixed, presence: Mapping[str, list[int]]) -> float:
    """Add up the squared differences one number at a time."""
    total = 0.0
    for m, there in presence.items():
        found = []
        for row, here in enumerate(there):
            if here and bool(student.valid[m][row]) and bool(teacher.valid[m][row]):
                own, taught = student.values[m][row, 0].tolist(), teacher.values[m][row, 0].tolist()
                found += [(a - b) ** 2 for a, b in zip(own, taught, strict=True)]
        total += sum(found) / len(found) if found else 0.0
    return total


@pytest.mark.parametrize("weight", [10.0, 0.5])
def test_distillation_is_the_mean_squared_error_where_both_have_it(weight: float) -> None:
    student, teacher = Fixed(STUDENT, 0, losses=True), Fixed(SOME, 1)
    batch = world.batch_of(SOME, float("nan"))
    step = step_of(student, teacher, batch, weight)
    expected = weight * reference(student, teacher, SOME)
    assert expected > 0 and step.losses["distillation"].item() == pytest.approx(expected, rel=1e-5)
    task = world.task().loss(student(batch).logits, batch.target).item()
    assert set(step.losses) == {"task", "distillation", "own"}
    assert step.losses["task"].item() == pytest.approx(task)
    assert step.loss.item() == pytest.approx(task + expected + 0.25, rel=1e-5)


def test_what_stands_in_for_an_absent_modality_is_not_compared() -> None:
    student, teacher = Fixed({**SOME, "m0": [1] * 6}, 0), Fixed({**SOME, "m0": [1] * 6}, 1)
    step = step_of(student, teacher, world.batch_of(SOME))
    assert step.losses["distillation"].item() == pytest.approx(
        10 * reference(student, teacher, SOME), rel=1e-5
    )


def test_distillation_of_nothing_in_common_is_zero() -> None:
    student, teacher = Fixed({"m0": [1, 0], "m1": [0, 1]}, 0), Fixed({"m0": [0, 1], "m1": [1, 0]}, 1)
    step = step_of(student, teacher, world.batch_of({"m0": [1, 1], "m1": [1, 1]}))
    assert step.losses["distillation"].item() == 0 and torch.equal(step.loss, step.losses["task"])


def test_gradient_of_the_distillation_is_the_difference_and_reaches_the_student_alone() -> None:
    student, teacher = Fixed(STUDENT, 0), Fixed(SOME, 1)
    step_of(student, teacher, world.batch_of(SOME)).losses["distillation"].backward()
    assert all(p.grad is None for p in teacher.parameters())
    both = student.valid["m0"]
    difference = student.values["m0"].detach() - teacher.values["m0"].detach()
    expected = torch.zeros_like(difference)
    expected[both, 0] = 10 * 2 * difference[both, 0] / (int(both.sum()) * world.WIDTH)
    found = student.values["m0"].grad
    assert found is not None and torch.allclose(found, expected, atol=1e-6)
    assert student.fusion.weight.grad is None


def test_the_teacher_is_run_as_in_evaluation(plan_toy: PlanToy) -> None:
    teacher = trained(staged(plan_toy, M0)).train()
    Distillation(("m0", "m1"), world.task(), teacher)
    assert not any(module.training for module in teacher.modules())


def test_without_a_phase_before_it_distillation_is_refused(plan_toy: PlanToy) -> None:
    told = "learns from the phase before.*put uni-modal phases in front"
    with pytest.raises(InputError, match=told):
        Distillation(("m0",), world.task())
    with pytest.raises(ConfigError, match=told):
        plan_toy({**LATE, "procedure": "distillation"})
    with pytest.raises(ConfigError, match=told):
        staged(plan_toy, {**M0, "procedure": "distillation"}, M1)


def test_a_weight_below_zero_is_refused(plan_toy: PlanToy) -> None:
    with pytest.raises(ConfigError, match=r"weight -1\.0 is below 0"):
        staged(plan_toy, M0, {"procedure": {"name": "distillation", "weight": -1}})


def test_without_weight_the_gradients_are_those_of_joint_training(plan_toy: PlanToy) -> None:
    model, _, trial = next_of(plan_toy, M0, M1, {"adapter": "full"})
    teacher = trained(staged(plan_toy, M0, bench=trial[1]))
    batch, task = batch_of(trial, "m0", "m1"), trial[1].dataset(trial[0].dataset).task
    found = []
    for weight in (0.0, None, 10.0):
        torch.manual_seed(0)
        model.zero_grad(set_to_none=True)
        steps = Distillation(model.modalities, task, teacher, weight) if weight is not None else Joint(task)
        (step,) = steps.steps(model.train(), batch)
        step.loss.backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    nothing, joint, distilled = found
    assert same(nothing, joint) and not same(distilled, joint)


def test_without_weight_a_whole_phase_is_a_joint_one(plan_toy: PlanToy) -> None:
    changes = {"strategy": "mask_token", "missing.train.rate": 0.3}
    models = [
        trained(staged(plan_toy, M0, M1, {"adapter": "full", "epochs": 2, "procedure": p}, **changes))
        for p in ("joint", {"name": "distillation", "weight": 0.0})
    ]
    assert same(models[0].state_dict(), models[1].state_dict())


# ------------------------------------------------------------------------------------------ whole phases

UMT: dict[str, Any] = {"adapter": "full", "epochs": 3, "procedure": {"name": "distillation", "weight": 10.0}}


def spied(trial: Staged, monkeypatch: pytest.MonkeyPatch) -> list[tuple[State, MultimodalModel | None, bool]]:
    """Train; give each phase's state at its start, its teacher, and whether that was the student itself."""
    spec, bench = trial
    seen: list[tuple[State, MultimodalModel | None, bool]] = []
    build = bench.procedure

    def spying(stage: TrialSpec, model: MultimodalModel, teacher: MultimodalModel | None = None) -> Any:
        state = {n: t.clone() for n, t in model.state_dict().items()}
        seen.append((state, teacher, teacher is model))
        return build(stage, model, teacher)

    monkeypatch.setattr(bench, "procedure", spying)
    train_in_phases(spec, bench, CPU)
    return seen


@pytest.mark.parametrize("restart", [True, False])
def test_restarting_the_student_starts_it_anew_under_the_teacher_of_the_phase_before(
    plan_toy: PlanToy, monkeypatch: pytest.MonkeyPatch, restart: bool
) -> None:
    taught = trained(staged(plan_toy, M0, M1)).state_dict()
    spec, bench = staged(plan_toy, M0, M1, {**UMT, "restart": restart})
    initial = bench.model(spec.stages()[2]).state_dict()
    student, teacher, itself = spied((spec, bench), monkeypatch)[2]
    assert same(student, initial if restart else taught) and not same(initial, taught)
    assert teacher is not None and not itself and same(teacher.state_dict(), taught)


def test_training_the_student_leaves_its_teacher_as_it_was(
    plan_toy: PlanToy, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = staged(plan_toy, M0, M1, UMT)
    (_, teacher, _) = spied(trial, monkeypatch)[2]
    assert teacher is not None and not teacher.training
    assert same(teacher.state_dict(), trained(staged(plan_toy, M0, M1)).state_dict())


def test_the_student_ends_nearer_to_its_teacher_than_without(plan_toy: PlanToy) -> None:
    bench = plan_toy(LATE).bench
    teacher = trained(staged(plan_toy, M0, M1, bench=bench))
    distances = []
    for weight in (0.0, 10.0):
        last = {**UMT, "restart": True, "epochs": 12, "procedure": {"name": "distillation", "weight": weight}}
        trial = staged(plan_toy, M0, M1, last, bench=bench)
        student = trained(trial)
        batch = batch_of(trial, "m0", "m1")
        with torch.no_grad():
            pairs = [(student(batch).tokens[m].values, teacher(batch).tokens[m].values) for m in ("m0", "m1")]
        distances.append(sum(float((a - b).square().mean()) for a, b in pairs))
    assert distances[1] < 0.7 * distances[0]


def test_distillation_tells_its_loss_and_finishes(plan_toy: PlanToy) -> None:
    outcome = run_trial(
        *staged(plan_toy, M0, M1, {**UMT, "restart": True}, **{"missing.train.rate": 0.3}), CPU
    )
    told = outcome.metrics["train/distillation"]
    assert list(told) == [6, 7, 8] and told[8] < told[6]
    assert set(outcome.metrics["train/task"]) == set(range(9))


def test_a_plan_with_distillation_can_be_timed(plan_toy: PlanToy) -> None:
    plan = plan_toy({**LATE, "training.phases": [M0, M1, {**UMT, "restart": True}]})
    assert seconds_left(plan, []) > 0
