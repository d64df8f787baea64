"""Pruners: what is refused before any work, what is stopped and what never, and how figures are counted."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from mmx.config import ComponentSpec, read_sweep
from mmx.contracts import TrialRecord
from mmx.errors import ConfigError, Fault
from mmx.report.standings import why_pruned
from mmx.sweep.checks import check_search
from mmx.sweep.pruning import (
    PRUNERS,
    PruningCallback,
    check_pruner,
    looks_at,
    pruner_of,
    seeds_looked_at,
)

TUNE = {"training.learning_rate": {"low": 0.001, "high": 0.1}}
VALID: dict[str, dict[str, Any]] = {
    "none": {},
    "median": {"n_startup_trials": 1},
    "percentile": {"percentile": 25, "n_startup_trials": 1},
    "successive_halving": {"min_resource": 1, "reduction_factor": 2},
    "hyperband": {"max_resource": 4, "reduction_factor": 2},
    "threshold": {"lower": 0.2},
    "patient": {"patience": 1, "wrapped_pruner": {"name": "median", "n_startup_trials": 1}},
    "wilcoxon": {"p_threshold": 0.2},
}
Check = Callable[..., list[Fault]]


@pytest.fixture(scope="module")
def check(toy: Callable[..., dict[str, Any]]) -> Check:
    """Check a sweep with what is given under `search`."""

    def run(pruner: Any, look: Callable[..., None] = check_pruner, **search: Any) -> list[Fault]:
        given = {"tune": TUNE, "seeds": list(range(10)), **search, "pruner": pruner}
        faults: list[Fault] = []
        look(read_sweep(json.dumps(toy({"search": given})), "sweep.yaml"), faults)
        return faults

    return run


def spec(name: str, **given: Any) -> ComponentSpec:
    return ComponentSpec(name, given or VALID[name])


def study_of(pruner: ComponentSpec, direction: str = "maximize") -> optuna.Study:
    sampler = optuna.samplers.RandomSampler(seed=0)
    return optuna.create_study(study_name="s", direction=direction, pruner=pruner_of(pruner), sampler=sampler)


def run(study: optuna.Study, values: Sequence[float], higher: bool = True, **more: Any) -> PruningCallback:
    """Run a trial with these figures, until it is pruned."""
    callback = PruningCallback(study.ask(), "val/x", higher, **more)
    for step, value in enumerate(values):
        if callback.told(step, {"val/x": value}):
            study.tell(callback.trial, state=TrialState.PRUNED)
            return callback
    study.tell(callback.trial, 0.0)
    return callback


# ----------------------------------------------------------------------------------- what can be written


@pytest.mark.parametrize("name", PRUNERS)
def test_pruner_is_built_by_its_name(name: str, check: Check) -> None:
    assert check({"name": name, **VALID[name]}) == []
    assert type(pruner_of(spec(name))) is PRUNERS[name]


def test_every_pruner_of_optuna_has_a_name() -> None:
    own = {cls.__name__ for cls in PRUNERS.values()} | {"BasePruner"}
    assert own == set(optuna.pruners.__all__)


@pytest.mark.parametrize(
    ("name", "seen"),
    {"none": "nothing", "median": "epochs", "patient": "epochs", "wilcoxon": "seeds"}.items(),
)
def test_pruner_tells_what_it_looks_at(name: str, seen: str) -> None:
    assert looks_at(spec(name)) == seen


WRONG: dict[str, tuple[Any, str, str]] = {
    "name": ("medain", "search.pruner.name", "Did you mean 'median'"),
    "option": ({"name": "median", "n_startup_trial": 3}, "search.pruner.n_startup_trial", "n_startup_trials"),
    "option of none": ({"name": "none", "seed": 0}, "search.pruner.seed", "takes none"),
    "type": ({"name": "median", "n_startup_trials": "two"}, "search.pruner.n_startup_trials", "'two'"),
    "truth": ({"name": "hyperband", "max_resource": True}, "search.pruner.max_resource", "True"),
    "missing": ("percentile", "search.pruner.percentile", "needs the option"),
    "missing patience": ("patient", "search.pruner.patience", "needs the option"),
    "no bound": ("threshold", "search.pruner", "lower or upper"),
    "value": ({"name": "percentile", "percentile": 120}, "search.pruner", "120"),
    "rungs": ({"name": "hyperband", "reduction_factor": 1}, "search.pruner", "reduction_factor"),
    "resource": ({"name": "hyperband", "min_resource": 0}, "search.pruner", "min_resource"),
    "resources": ({"name": "hyperband", "min_resource": 9, "max_resource": 3}, "max_resource", "fewer"),
    "inner name": ({"name": "patient", "patience": 1, "wrapped_pruner": "wilcoxon"}, "wrapped", "'wilcoxon'"),
    "inner form": ({"name": "patient", "patience": 1, "wrapped_pruner": 3}, "wrapped_pruner", "3"),
    "inner option": (
        {"name": "patient", "patience": 1, "wrapped_pruner": {"name": "median", "x": 1}},
        "search.pruner.wrapped_pruner.x",
        "no option 'x'",
    ),
}


@pytest.mark.parametrize(("pruner", "key", "told"), WRONG.values(), ids=WRONG)
def test_wrong_pruner_is_told_with_its_key(pruner: Any, key: str, told: str, check: Check) -> None:
    (fault,) = check(pruner)
    assert key in fault.key and told in fault.message


def test_all_faults_of_a_pruner_are_told_at_once(check: Check) -> None:
    keys = [f.key for f in check({"name": "median", "n_startup_trials": "two", "warmup": 1})]
    assert sorted(keys) == ["search.pruner.n_startup_trials", "search.pruner.warmup"]


def test_wrong_pruner_is_refused_when_a_sweep_is_planned(plan_toy: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=r"search\.pruner\.name: 'medain'"):
        plan_toy({"search": {"pruner": "medain"}})


WHOLE = st.one_of(st.integers(-2, 9), st.just("auto"), st.booleans())
OPTIONS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "median": dict.fromkeys(("n_startup_trials", "n_warmup_steps", "interval_steps", "n_min_trials"), WHOLE),
    "percentile": {"percentile": st.floats(), "interval_steps": WHOLE},
    "successive_halving": dict.fromkeys(
        ("min_resource", "reduction_factor", "min_early_stopping_rate", "bootstrap_count"), WHOLE
    ),
    "hyperband": dict.fromkeys(
        ("min_resource", "max_resource", "reduction_factor", "bootstrap_count"), WHOLE
    ),
    "threshold": {"lower": st.floats(), "upper": st.floats(), "interval_steps": WHOLE},
    "patient": {
        "patience": WHOLE,
        "min_delta": st.floats(),
        "wrapped_pruner": st.sampled_from(["none", "median"]),
    },
    "wilcoxon": {"p_threshold": st.floats(), "n_startup_steps": WHOLE},
}
ODD = st.one_of(st.floats(0, 1), st.sampled_from([math.nan, math.inf, -math.inf]))


@pytest.mark.parametrize("name", OPTIONS)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_what_is_accepted_never_raises_in_a_study_whatever_the_figures(
    name: str, data: st.DataObject, check: Check
) -> None:
    given = data.draw(st.fixed_dictionaries({}, optional=OPTIONS[name]))
    if not check({"name": name, **given}):
        study = study_of(ComponentSpec(name, given))
        for values in data.draw(st.lists(st.lists(ODD, max_size=5), max_size=6)):
            run(study, values)


# ------------------------------------------------------------------------------- what cannot be pruned by


def test_pruner_is_refused_with_two_objectives(check: Check) -> None:
    objective = {"summary/worst": "maximize", "cost/trainable_params": "minimize"}
    assert check("none", objective=objective) == []
    assert any("one objective" in f.message for f in check("median", objective=objective))


def test_pruner_is_refused_where_the_objective_is_a_cost(check: Check) -> None:
    (fault,) = check("median", objective={"cost/train_seconds": "minimize"})
    assert "'cost/train_seconds'" in fault.message


VARIED: dict[str, dict[str, Any]] = {
    "axis": {"axes": {"training.monitor": ["val/loss", "val/accuracy"]}},
    "axis of a phase": {"axes": {"training.phases.1.monitor": ["val/loss", "val/accuracy"]}},
    "method": {"methods": {"a": {"training.monitor": "val/loss"}, "b": {"strategy": "skip"}}},
    "phase of a method": {"methods": {"a": {"training.phases": [{}, {"monitor": "val/loss"}]}}},
}


@pytest.mark.parametrize("search", VARIED.values(), ids=VARIED)
def test_points_that_watch_different_figures_are_not_compared(search: Any, check: Check) -> None:
    assert any("different figures" in f.message for f in check("median", **search))
    assert check("wilcoxon", **search) == []


def test_wilcoxon_is_refused_where_nothing_is_tuned(check: Check) -> None:
    (fault,) = check("wilcoxon", tune={})
    assert "search.tune" in fault.message


@pytest.mark.parametrize(
    ("pruner", "needed"), [({}, 5), ({"p_threshold": 0.01}, 8), ({"n_startup_steps": 6}, 7)]
)
def test_wilcoxon_is_refused_below_the_seeds_that_it_names(pruner: Any, needed: int, check: Check) -> None:
    pruner = {"name": "wilcoxon", **pruner}
    (fault,) = check(pruner, seeds=list(range(needed - 1)))
    assert f"write {needed} or more" in fault.message
    assert check(pruner, seeds=list(range(needed))) == []


@pytest.mark.parametrize(
    ("pruner", "seeds", "told"),
    [({}, [-1, 0, 1, 2, 3], "from 0"), ({"p_threshold": 0}, [0, 1, 2, 3, 4], "no p is below")],
)
def test_what_wilcoxon_cannot_count_is_refused(pruner: Any, seeds: Any, told: str, check: Check) -> None:
    (fault,) = check({"name": "wilcoxon", **pruner}, seeds=seeds)
    assert told in fault.message


@settings(deadline=None)
@given(threshold=st.floats(0.001, 1.0))
def test_seeds_are_counted_as_the_signed_rank_test_counts(threshold: float) -> None:
    from scipy.stats import wilcoxon

    def smallest(seeds: int) -> float:
        worse = [-1.0 - n for n in range(seeds)]
        return float(wilcoxon(worse, alternative="less", zero_method="zsplit").pvalue)

    looked = seeds_looked_at(threshold, 0)
    assert smallest(looked) < threshold
    assert looked == 2 or smallest(looked - 1) >= threshold


def test_sampler_for_one_objective_is_refused_with_two(check: Check) -> None:
    objective = {"summary/worst": "maximize", "cost/trainable_params": "minimize"}
    (fault,) = check("none", check_search, objective=objective, sampler="cmaes")
    assert fault.key == "search.sampler.name"


def test_seed_of_a_sampler_is_a_whole_number(check: Check) -> None:
    (fault,) = check("none", check_search, sampler={"name": "tpe", "seed": True})
    assert fault.key == "search.sampler.seed"


# --------------------------------------------------------------------------------------- what is stopped

USUAL = [[0.5 + 0.05 * epoch + 0.01 * trial for epoch in range(5)] for trial in range(6)]
BAD = [0.19, 0.15, 0.1, 0.1, 0.1]
GOOD = [0.8, 0.85, 0.9, 0.95, 1.0]
BY_EPOCHS = [name for name in PRUNERS if looks_at(spec(name)) == "epochs"]


def turned(values: Sequence[float], higher: bool) -> list[float]:
    """Give figures of which less is better."""
    return list(values) if higher else [1 - v for v in values]


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.parametrize("higher", [True, False], ids=["score", "loss"])
@pytest.mark.parametrize("name", BY_EPOCHS)
def test_bad_trial_is_pruned_and_a_good_one_never(name: str, higher: bool, direction: str) -> None:
    given = {"upper": 0.8} if name == "threshold" and not higher else VALID[name]
    study = study_of(ComponentSpec(name, given), direction)
    for values in USUAL:
        run(study, turned(values, higher), higher)
    assert run(study, turned(GOOD, higher), higher).reason == ""
    assert run(study, turned(BAD, higher), higher).reason.startswith(f"pruned by {name} at epoch ")


@pytest.mark.parametrize(("inner", "stopped"), [({}, False), ({"wrapped_pruner": "none"}, True)], ids=str)
def test_patience_asks_the_median_too_unless_told_not_to(inner: dict[str, Any], stopped: bool) -> None:
    study = study_of(spec("patient", patience=1, **inner))
    for values in USUAL:
        run(study, values)
    assert bool(run(study, GOOD[::-1]).reason) is stopped


def test_none_stops_nothing() -> None:
    study = study_of(spec("none"))
    for values in USUAL:
        run(study, values)
    assert run(study, BAD).reason == ""


def test_reason_names_pruner_epoch_and_figure_as_it_was_logged() -> None:
    study = study_of(spec("median"), "minimize")
    run(study, GOOD)
    assert run(study, BAD, first_step=0).reason == "pruned by median at epoch 0: val/x 0.19"


def test_steps_begin_where_they_are_told_to() -> None:
    study = study_of(spec("median", n_startup_trials=1, n_warmup_steps=3))
    run(study, GOOD)
    assert run(study, BAD[2:], first_step=2).reason == "pruned by median at epoch 3: val/x 0.1"


def test_stopped_trial_stays_stopped() -> None:
    study = study_of(spec("median"))
    run(study, GOOD)
    callback = PruningCallback(study.ask(), "val/x", True)
    assert callback.told(0, {"val/x": 0.1}) and callback.told(1, {"val/x": 2.0})


def test_figure_that_is_not_there_is_taken_for_nan() -> None:
    study = study_of(spec("median"))
    run(study, GOOD)
    callback = PruningCallback(study.ask(), "val/x", True)
    assert callback.told(0, {}) and callback.reason.endswith("val/x nan")


def test_step_that_is_reported_again_keeps_its_value() -> None:
    study = study_of(spec("none"))
    callback = PruningCallback(study.ask(), "val/x", True)
    for value in (0.3, 0.9):
        callback.told(0, {"val/x": value})
    assert study.trials[0].intermediate_values == {0: 0.3}


def test_trial_that_others_have_ended_is_let_run() -> None:
    study = study_of(spec("median"))
    run(study, GOOD)
    callback = PruningCallback(study.ask(), "val/x", True)
    study.tell(callback.trial.number, state=TrialState.FAIL)
    assert not callback.told(0, {"val/x": 0.0})


# ----------------------------------------------------------------------------------------------- seeds


def run_seeds(study: optuna.Study, by_seed: Mapping[int, float]) -> PruningCallback:
    callback = PruningCallback(study.ask(), "selection/x", True, unit="seed")
    for seed, value in by_seed.items():
        if callback.told(seed, {"selection/x": value}):
            study.tell(callback.trial, state=TrialState.PRUNED)
            return callback
    study.tell(callback.trial, sum(by_seed.values()) / len(by_seed))
    return callback


HARDNESS = {0: 0.9, 1: 0.1, 2: 0.5, 3: 0.7, 4: 0.3}
"""What the best point reaches on each seed: they differ by more than points do."""


def test_wilcoxon_pairs_the_same_seeds_whatever_their_order() -> None:
    study = study_of(spec("wilcoxon", p_threshold=0.1))
    run_seeds(study, HARDNESS)
    worse = {seed: HARDNESS[seed] - 0.01 - 0.001 * seed for seed in (4, 3, 2, 1, 0)}
    assert run_seeds(study, worse).reason == "pruned by wilcoxon at seed 1: selection/x 0.089"


def test_wilcoxon_stops_no_point_that_is_better_on_some_seeds() -> None:
    study = study_of(spec("wilcoxon", p_threshold=0.1))
    run_seeds(study, HARDNESS)
    mixed = {seed: value + (0.05 if seed % 2 else -0.04) for seed, value in HARDNESS.items()}
    assert run_seeds(study, mixed).reason == ""


@pytest.mark.parametrize(
    ("reasons", "told"), [(("", "pruned by median"), "pruned by median"), (("", ""), "")]
)
def test_point_is_pruned_where_one_of_its_seeds_is(reasons: Sequence[str], told: str) -> None:
    records = [TrialRecord("run", "point", n, "done", reason) for n, reason in enumerate(reasons)]
    assert why_pruned(records) == told
