"""Methods: named bundles of settings, each a cell of its own, told by their names."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmx.config import read_sweep
from mmx.errors import ConfigError
from mmx.registry import Registry
from mmx.sweep import Limits, Plan, open_tracker, plan_sweep, run_sweep
from mmx.sweep.estimate import seconds_left

PlanToy = Callable[..., Plan]
METHODS = {
    "late": {"strategy": "skip", "fusion": "mean_logits"},
    "staged": {
        "strategy": "skip",
        "fusion": "mean_logits",
        "training.phases": [{"modalities": ["m0"], "epochs": 1}, {"adapter": "lora", "epochs": 1}],
    },
}


def search(**settings: Any) -> dict[str, Any]:
    return {"search": {"methods": METHODS, **settings}}


def test_each_method_is_a_cell_with_its_settings(plan_toy: PlanToy) -> None:
    plan = plan_toy(search())
    assert [c.raw.method for c in plan.cells] == ["late", "staged"]
    assert {c.spec.fusion.name for c in plan.cells} == {"mean_logits"}
    assert [len(c.spec.training.phases) for c in plan.cells] == [0, 2]


def test_methods_are_combined_with_axes(plan_toy: PlanToy) -> None:
    plan = plan_toy(search(axes={"missing.train.rate": [0.0, 0.5]}))
    assert [(c.raw.method, c.spec.missing.train.rate) for c in plan.cells] == [
        ("late", 0.0),
        ("late", 0.5),
        ("staged", 0.0),
        ("staged", 0.5),
    ]


def test_an_axis_may_hold_for_some_methods_only(plan_toy: PlanToy) -> None:
    axes = {"fusion.reads": {"values": [["m0"], ["m1"]], "when": {"fusion.name": "mean_logits"}}}
    plan = plan_toy({"search": {"methods": {**METHODS, "zeros": {"fusion": "concat"}}, "axes": axes}})
    assert [c.raw.method for c in plan.cells] == ["late", "late", "staged", "staged", "zeros"]


def test_a_methods_name_is_no_part_of_its_point(plan_toy: PlanToy) -> None:
    named = plan_toy({"search": {"methods": {"anything": METHODS["late"]}}})
    plain = plan_toy(METHODS["late"])
    assert named.cells[0].spec.point == plain.cells[0].spec.point


FAULTS: dict[str, tuple[Any, str, str]] = {
    "no mapping": ({"late": "skip"}, "search.methods.late", "no mapping"),
    "no part of a trial": ({"late": {"strategie": "skip"}}, "search.methods.late.strategie", "strategy"),
    "unknown component": ({"late": {"strategy": "skipp"}}, "search.methods.late: strategy", "skip"),
    "unknown option": (
        {"late": {"fusion": {"name": "concat", "hiden": 3}}},
        "search.methods.late: fusion.hiden",
        "hidden",
    ),
    "parts that do not fit": (
        {"late": {"encoders": {"m0": "tiny_vit", "m1": "mlp"}}},
        "search.methods.late",
        "reads image",
    ),
    "no methods": (["late"], "search.methods", "no mapping"),
}


@pytest.mark.parametrize(("methods", "key", "told"), FAULTS.values(), ids=list(FAULTS))
def test_fault_of_a_method_is_told_with_its_name(
    plan_toy: PlanToy, methods: Any, key: str, told: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_toy({"search": {"methods": methods}})
    assert key in str(caught.value) and told in str(caught.value)


def test_what_an_axis_sets_a_method_may_not_set_too(plan_toy: PlanToy) -> None:
    with pytest.raises(ConfigError, match=r"search\.methods\.late\.strategy.*axis"):
        plan_toy({"search": {"methods": METHODS, "axes": {"strategy": ["skip", "zero_fill"]}}})


def test_two_names_for_one_method_are_refused(plan_toy: PlanToy) -> None:
    with pytest.raises(ConfigError, match=r"'late'.*'again'.*come to the same trial"):
        plan_toy({"search": {"methods": {"late": METHODS["late"], "again": METHODS["late"]}}})


SECTIONS = {"training": {"epochs": 3}, "missing": {"train": {"rate": 0.1}}, "missing.train": {"rate": 0.1}}


@pytest.mark.parametrize("path", SECTIONS)
def test_a_method_sets_settings_one_by_one(plan_toy: PlanToy, path: str) -> None:
    with pytest.raises(ConfigError, match=f"would replace all of '{path}'; write {path}\\."):
        plan_toy({"search": {"methods": {"late": {path: SECTIONS[path]}}}})


OVERRIDDEN = {
    "the same": "fusion=concat",
    "below": "fusion.reads=[m0]",
    "a phase": "training.phases.0.epochs=3",
    "in phases": "training.epochs=3",
}


@pytest.mark.parametrize("override", OVERRIDDEN.values(), ids=list(OVERRIDDEN))
def test_an_override_of_what_methods_set_is_refused(
    toy: Callable[..., dict[str, Any]], override: str
) -> None:
    with pytest.raises(ConfigError, match=r"would not hold for every method: .*staged.* set it themselves"):
        read_sweep(json.dumps(toy(search())), "sweep.yaml", [override])


def test_a_methods_own_setting_can_be_overridden(toy: Callable[..., dict[str, Any]]) -> None:
    override = "search.methods.late.training.epochs=7"
    sweep = read_sweep(json.dumps(toy(search())), "sweep.yaml", [override])
    assert sweep.search.methods["late"] == {**METHODS["late"], "training.epochs": 7}


def test_an_override_of_a_place_that_is_not_there_is_told(toy: Callable[..., dict[str, Any]]) -> None:
    data = toy({"training.phases": [{"epochs": 1}]})
    for place in ("5", "x"):
        with pytest.raises(ConfigError, match=rf"training\.phases\.{place}\.epochs: place '{place}'"):
            read_sweep(json.dumps(data), "sweep.yaml", [f"training.phases.{place}.epochs=2"])


def test_time_is_estimated_for_each_method(plan_toy: PlanToy) -> None:
    plan = plan_toy(search())
    alone = plan_toy({"search": {"methods": {"late": METHODS["late"]}}})
    assert seconds_left(plan, []) > 0 and seconds_left(alone, []) > 0


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory,
    toy: Callable[..., dict[str, Any]],
    registry: Registry,
    blank_stores: Path,
) -> Any:
    import shutil

    folder = tmp_path_factory.mktemp("methods")
    for name in ("mlflow.db", "optuna.db"):
        shutil.copy(blank_stores / name, folder / name)
    data = toy({**search(seeds=[0, 1]), "store": {"study": f"sqlite:///{folder}/optuna.db"}})
    plan = plan_sweep(read_sweep(json.dumps(data), "sweep.yaml"), registry)
    tracker = open_tracker(registry, f"sqlite:///{folder}/mlflow.db")
    titles: list[str] = []

    class Noting:
        def sweep_started(self, total: int, done: int) -> None: ...
        def told(self, message: str) -> None: ...
        def trial_started(self, worker: int, title: str, epochs: int, key: Any) -> None:
            titles.append(title)

        def epoch_ended(self, worker: int, epoch: int, figures: Any) -> None: ...
        def trial_ended(self, worker: int, title: str, state: str, reason: str, figures: Any) -> None: ...

    result = run_sweep(plan, tracker, "cpu", Noting(), Limits())
    return result, tracker, titles


def test_trials_are_named_by_their_method(finished: Any) -> None:
    assert [t.split("-")[1] for t in finished[2]] == ["late", "late", "staged", "staged"]


def test_every_trial_logs_its_method(finished: Any) -> None:
    records = finished[1].records("toy")
    assert {r.params["method"] for r in records} == {"late", "staged"}
    assert len({tuple(sorted(r.params)) for r in records}) == 1


def test_phases_are_logged_in_a_line_each(finished: Any) -> None:
    record = next(r for r in finished[1].records("toy") if r.params["method"] == "staged")
    assert record.params["training.phases.0"] == "modalities=m0 epochs=1"
    assert "adapters=lora" in record.params["training.phases.1"]


def test_the_best_of_each_method_is_kept_as_a_curve(finished: Any) -> None:
    from mmx.report.standings import best_by_strategy

    assert set(best_by_strategy(finished[0].standings)) == {"late", "staged"}


def test_the_leaderboard_uses_the_names_of_the_file_as_it_is_now(
    finished: Any, toy: Callable[..., dict[str, Any]], registry: Registry, tmp_path: Path
) -> None:
    _, tracker, _ = finished
    renamed = {"bar": METHODS["late"], "two_stages": METHODS["staged"]}
    data = toy(
        {"search": {"methods": renamed, "seeds": [0, 1]}, "store": {"study": f"sqlite:///{tmp_path}/o.db"}}
    )
    plan = plan_sweep(read_sweep(json.dumps(data), "sweep.yaml"), registry)

    class Silent:
        def sweep_started(self, total: int, done: int) -> None:
            assert total == done == 4

        def told(self, message: str) -> None: ...
        def trial_started(self, worker: int, title: str, epochs: int, key: Any) -> None: ...
        def epoch_ended(self, worker: int, epoch: int, figures: Any) -> None: ...
        def trial_ended(self, worker: int, title: str, state: str, reason: str, figures: Any) -> None: ...

    result = run_sweep(plan, tracker, "cpu", Silent(), Limits())
    assert {s.params["method"] for s in result.standings} == {"bar", "two_stages"}
