"""Tasks; scores of small examples; Shapley's axioms; what is told about a curve."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmx.metrics import area, shapley, summarise
from mmx.scores import Score
from mmx.tasks import MultiLabel, Regression, SingleLabel, Task

few = settings(deadline=None, max_examples=40)


def test_correlation_of_a_constant_is_not_defined() -> None:
    assert np.isnan(Regression().score("pearson")(np.ones((4, 1)), np.arange(4.0)))


def test_macro_f1_counts_a_class_that_is_neither_there_nor_predicted_as_zero() -> None:
    outputs, targets = np.eye(3)[[0, 1]], np.array([0, 1])
    assert SingleLabel(3).score("macro_f1")(outputs, targets) == pytest.approx(2 / 3)


def test_auroc_leaves_out_classes_of_one_kind_and_is_nan_without_any() -> None:
    auroc = SingleLabel(3).score("auroc")
    outputs = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.7, 0.3, 0.0]])
    assert auroc(outputs, np.array([0, 1, 0])) == pytest.approx(1.0)
    assert np.isnan(auroc(outputs, np.array([1, 1, 1])))


def test_regression_scores_by_hand() -> None:
    outputs, targets = np.array([[1.0], [2.0], [4.0]]), np.array([[2.0], [2.0], [1.0]])
    task = Regression()
    assert task.score("mae")(outputs, targets) == pytest.approx(4 / 3)
    expected = np.corrcoef(outputs[:, 0], targets[:, 0])[0, 1]
    assert task.score("pearson")(outputs, targets) == pytest.approx(expected)
    assert not task.score("mae").higher_is_better and task.scores[0].name == "mae"


TASKS: list[tuple[Task, list[Any]]] = [
    (SingleLabel(3), [0, 2, 1, 1]),
    (MultiLabel(2), [[0, 1], [1, 1], [0, 0], [1, 0]]),
    (Regression(), [0.5, 1.0, -2.0, 7.0]),
    (Regression(outputs=2), [[0.5, 1.0], [1.0, 0.0], [-2.0, 1.0], [7.0, 0.0]]),
]
every_task = pytest.mark.parametrize(("task", "raw"), TASKS, ids=lambda v: str(v)[:14])


@every_task
def test_loss_is_the_mean_of_the_samples_losses_and_has_gradient(task: Task, raw: list[Any]) -> None:
    logits = torch.randn(4, task.out, requires_grad=True)
    target = task.targets(raw)
    loss = task.loss(logits, target)
    assert float(loss.detach()) == pytest.approx(float(task.losses(logits, target).mean().detach()))
    loss.backward()
    assert bool((logits.grad != 0).any())


@every_task
def test_every_score_takes_what_the_task_stores(task: Task, raw: list[Any]) -> None:
    outputs = task.outputs(torch.randn(4, task.out)).numpy()
    targets = task.targets(raw).numpy()
    for score in (*task.scores, *task.more_scores):
        found = score.compute(outputs, targets)
        assert np.shape(found) == ((4,) if score.per_sample else ())


@every_task
def test_constant_baseline_is_one_answer_for_everybody(task: Task, raw: list[Any]) -> None:
    constant = task.constant(task.targets(raw).numpy())
    assert constant.shape == (4, task.out) and np.ptp(constant, axis=0).max() == 0


def test_constant_of_classes_is_their_frequency() -> None:
    constant = SingleLabel(3).constant(np.array([0, 1, 1, 1]))
    assert constant[0].tolist() == [0.25, 0.75, 0.0]
    assert SingleLabel(3).score("accuracy")(constant, np.array([0, 1, 1, 1])) == 0.75


def test_constant_of_labels_is_their_frequency() -> None:
    assert MultiLabel(2).constant(np.array([[0, 1], [1, 1.0]]))[0].tolist() == [0.5, 1.0]


@given(values=st.lists(st.floats(-10, 10), min_size=1, max_size=9), other=st.floats(-10, 10))
@few
def test_constant_of_values_has_the_least_absolute_error(values: list[float], other: float) -> None:
    targets = np.array(values)
    mae = Regression().score("mae")
    best = mae(Regression().constant(targets), targets)
    assert best <= mae(np.full((len(values), 1), other), targets) + 1e-9


# ------------------------------------------------------------------------------------------------ curves

CURVE = {0.0: 0.9, 0.5: 0.6, 1.0: 0.3}
PATTERNS = {frozenset("a"): 0.2, frozenset("b"): 0.4, frozenset("ab"): 0.9}


def test_summary_of_a_curve_by_hand() -> None:
    found = summarise(CURVE, PATTERNS, "accuracy", higher_is_better=True)
    assert found == pytest.approx(
        {"robust_accuracy": 0.6, "worst": 0.2, "clean": 0.9, "retention": 0.6 / 0.9, "drop_at_50": 0.3}
    )


def test_worst_pattern_of_an_error_is_the_largest() -> None:
    assert summarise(CURVE, PATTERNS, "mae", higher_is_better=False)["worst"] == 0.9


@pytest.mark.parametrize(
    ("rates", "absent"),
    [([0.5, 1.0], {"clean", "retention", "drop_at_50"}), ([0.0, 1.0], {"drop_at_50"}), ([0.0, 0.5], set())],
)
def test_summary_leaves_out_what_the_curve_cannot_tell(rates: list[float], absent: set[str]) -> None:
    found = summarise({r: CURVE[r] for r in rates}, PATTERNS, "accuracy", higher_is_better=True)
    assert {"clean", "retention", "drop_at_50"} - set(found) == absent


def test_summary_without_a_curve_has_no_robust_figure() -> None:
    assert summarise({}, PATTERNS, "accuracy", higher_is_better=True) == {"worst": 0.2}


def test_retention_of_a_score_of_zero_is_left_out() -> None:
    assert "retention" not in summarise({0.0: 0.0}, {}, "accuracy", higher_is_better=True)


def test_area_by_hand() -> None:
    # Trapezoids of widths 0.2, 0.3 and 0.5.
    curve = {0.5: 0.4, 0.0: 0.9, 1.0: 0.2, 0.2: 0.7}
    assert area(curve) == pytest.approx(0.2 * 0.8 + 0.3 * 0.55 + 0.5 * 0.3)


def test_area_is_divided_by_the_range_of_the_rates() -> None:
    assert area({0.2: 0.4, 0.4: 0.6}) == pytest.approx(0.5)


@given(rates=st.sets(st.floats(0, 1), min_size=2, max_size=6), value=st.floats(-3, 3))
@few
def test_area_of_a_level_curve_is_its_level(rates: set[float], value: float) -> None:
    assert area(dict.fromkeys(rates, value)) == pytest.approx(value)


def test_area_of_one_rate_is_not_defined() -> None:
    assert np.isnan(area({0.5: 1.0}))


# ----------------------------------------------------------------------------------------------- Shapley


@st.composite
def games(draw: Any, minimum: int = 1) -> tuple[tuple[str, ...], dict[frozenset[str], float]]:
    """Draw a score for every subset of one to four modalities."""
    names = tuple("abcd"[: draw(st.integers(minimum, 4))])
    subsets = [frozenset(c) for size in range(len(names) + 1) for c in combinations(names, size)]
    return names, {s: draw(st.floats(-1, 1)) for s in subsets}


@given(game=games())
@few
def test_shapley_values_add_up_to_all_minus_none(game: Any) -> None:
    names, values = game
    total = sum(shapley(values, names).values())
    assert total == pytest.approx(values[frozenset(names)] - values[frozenset()], abs=1e-9)


@given(game=games(minimum=2))
@few
def test_shapley_gives_equals_the_same(game: Any) -> None:
    names, values = game
    swap = {names[0]: names[1], names[1]: names[0]}
    even = {s: (v + values[frozenset(swap.get(m, m) for m in s)]) / 2 for s, v in values.items()}
    found = shapley(even, names)
    assert found[names[0]] == pytest.approx(found[names[1]], abs=1e-9)


@given(game=games(minimum=2))
@few
def test_shapley_gives_nothing_to_who_adds_nothing(game: Any) -> None:
    names, values = game
    null = {s: values[s - {names[0]}] for s in values}
    assert shapley(null, names)[names[0]] == pytest.approx(0, abs=1e-9)


def test_shapley_by_hand() -> None:
    values = {frozenset(): 0.1, frozenset("a"): 0.5, frozenset("b"): 0.3, frozenset("ab"): 0.9}
    assert shapley(values, ("a", "b")) == pytest.approx({"a": 0.5, "b": 0.3})


def test_score_is_the_mean_of_what_it_computes() -> None:
    assert Score("x", lambda o, t: np.array([0.0, 1.0]))(np.zeros((2, 1)), np.zeros(2)) == 0.5
