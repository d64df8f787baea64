"""Every score against scikit-learn, or a value by hand; what is not defined is NaN."""

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from mmx.errors import InputError
from mmx.scores import Score
from mmx.tasks import MultiLabel, Regression, SingleLabel, Task

few = settings(deadline=None, max_examples=40)
EVERY_SCORE = [
    (task, score)
    for task in (SingleLabel(3), MultiLabel(3), Regression())
    for score in (*task.scores, *task.more_scores)
]
every_score = pytest.mark.parametrize(
    ("task", "score"), EVERY_SCORE, ids=[f"{type(t).__name__}-{s.name}" for t, s in EVERY_SCORE]
)


def drawn(task: Task, rows: int, seed: int) -> tuple[Any, Any]:
    """Draw outputs and targets, not independent of each other."""
    random = np.random.default_rng(seed)
    if isinstance(task, SingleLabel):
        targets = random.integers(task.out, size=rows)
        logits = random.normal(size=(rows, task.out)) + np.eye(task.out)[targets]
        return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), targets
    if isinstance(task, MultiLabel):
        labels = (random.random((rows, task.out)) < 0.4).astype(np.float32)
        return 1 / (1 + np.exp(-random.normal(size=labels.shape) - labels)), labels
    values = random.uniform(-3, 3, size=(rows, 1))
    return values + random.normal(size=(rows, 1)), values


def expected(task: Task, name: str, outputs: Any, targets: Any) -> float:
    """Ask scikit-learn."""
    chosen = outputs.argmax(axis=1) if isinstance(task, SingleLabel) else outputs > 0.5
    f1 = {"zero_division": 0} | ({"labels": range(task.out)} if isinstance(task, SingleLabel) else {})
    truth = np.eye(task.out)[targets] if isinstance(task, SingleLabel) else targets
    by_name = {
        "accuracy": lambda: sk.accuracy_score(targets, chosen),
        "balanced_accuracy": lambda: sk.balanced_accuracy_score(targets, chosen),
        "macro_f1": lambda: sk.f1_score(targets, chosen, average="macro", **f1),
        "micro_f1": lambda: sk.f1_score(targets, chosen, average="micro", **f1),
        "weighted_f1": lambda: sk.f1_score(targets, chosen, average="weighted", **f1),
        "auroc": lambda: sk.roc_auc_score(truth, outputs, average="macro"),
        "average_precision": lambda: sk.average_precision_score(truth, outputs, average="macro"),
        "mean_average_precision": lambda: sk.average_precision_score(truth, outputs, average="macro"),
        "mae": lambda: sk.mean_absolute_error(targets, outputs),
    }
    return float(by_name[name]())


SCIKIT = [(t, s) for t, s in EVERY_SCORE if not s.name.startswith(("expected_", "acc2", "acc7", "pearson"))]


@pytest.mark.parametrize(("task", "score"), SCIKIT, ids=[f"{type(t).__name__}-{s.name}" for t, s in SCIKIT])
@given(rows=st.integers(2, 80), seed=st.integers(0, 10_000), ties=st.booleans())
@few
def test_score_is_scikit_learns(task: Task, score: Score, rows: int, seed: int, ties: bool) -> None:
    outputs, targets = drawn(task, rows, seed)
    outputs = np.round(outputs, 1) if ties else outputs
    truth = np.eye(task.out)[targets] if isinstance(task, SingleLabel) else targets
    ranked = score.name in ("auroc", "average_precision", "mean_average_precision")
    if ranked and not (truth.any(axis=0) & ~truth.all(axis=0)).all():
        return  # some class is of one kind: scikit-learn warns, and mmx leaves it out
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = expected(task, score.name, outputs, targets)
    assert score(outputs, targets) == pytest.approx(wanted, abs=1e-12)


@every_score
@given(seed=st.integers(0, 10_000))
@few
def test_score_does_not_depend_on_the_order_of_samples(task: Task, score: Score, seed: int) -> None:
    outputs, targets = drawn(task, 30, seed)
    order = np.random.default_rng(seed).permutation(30)
    assert score(outputs[order], targets[order]) == pytest.approx(score(outputs, targets), nan_ok=True)


@every_score
@given(rows=st.integers(1, 30), seed=st.integers(0, 10_000))
@few
def test_score_keeps_its_bounds(task: Task, score: Score, rows: int, seed: int) -> None:
    found = score(*drawn(task, rows, seed))
    lowest, highest = {"pearson": (-1, 1), "mae": (0, np.inf)}.get(score.name, (0, 1))
    assert np.isnan(found) or lowest - 1e-9 <= found <= highest + 1e-9


@every_score
def test_score_of_no_sample_is_not_defined(task: Task, score: Score) -> None:
    outputs, targets = drawn(task, 4, 0)
    assert np.isnan(score(outputs[:0], targets[:0]))


@every_score
def test_score_warns_of_nothing_where_a_class_is_missing(task: Task, score: Score) -> None:
    outputs, targets = drawn(task, 6, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score(outputs, np.zeros_like(targets))


@every_score
def test_perfect_outputs_have_the_best_score(task: Task, score: Score) -> None:
    _, targets = drawn(task, 40, 0)
    outputs = np.eye(task.out)[targets] if isinstance(task, SingleLabel) else targets
    assert score(outputs, targets) == pytest.approx(1.0 if score.higher_is_better else 0.0)


@pytest.mark.parametrize("name", ["auroc", "average_precision"])
def test_ranking_of_one_class_only_is_not_defined(name: str) -> None:
    outputs, _ = drawn(SingleLabel(3), 5, 0)
    assert np.isnan(SingleLabel(3).score(name)(outputs, np.full(5, 1)))


@pytest.mark.parametrize("name", ["auroc", "mean_average_precision"])
def test_ranking_leaves_out_a_label_that_nobody_has(name: str) -> None:
    outputs, targets = drawn(MultiLabel(3), 30, 0)
    targets[:, 1] = 0
    kept = MultiLabel(2).score(name)(outputs[:, [0, 2]], targets[:, [0, 2]])
    assert MultiLabel(3).score(name)(outputs, targets) == pytest.approx(kept)
    assert np.isnan(MultiLabel(3).score(name)(outputs, np.zeros_like(targets)))


def test_average_precision_by_hand() -> None:
    # By falling output: true, false, true. Precision 1 at recall 1/2, 2/3 at recall 1.
    outputs, targets = np.array([[0.9], [0.8], [0.7]]), np.array([[1.0], [0.0], [1.0]])
    found = MultiLabel(1).score("mean_average_precision")(outputs, targets)
    assert found == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_balanced_accuracy_counts_classes_with_samples_alike() -> None:
    outputs = np.eye(3)[[0, 0, 0, 2, 1]]
    assert SingleLabel(3).score("balanced_accuracy")(outputs, np.array([0, 0, 0, 1, 1])) == 0.75


def test_calibration_error_by_hand() -> None:
    # Two bins: confidences 0.81 and 0.85 with one hit, 0.51 without.
    outputs = np.array([[0.81, 0.19], [0.15, 0.85], [0.51, 0.49]])
    wanted = 2 / 3 * abs(0.5 - 0.83) + 1 / 3 * abs(0 - 0.51)
    error = SingleLabel(2).score("expected_calibration_error")
    assert error(outputs, np.array([0, 0, 1])) == pytest.approx(wanted) and not error.higher_is_better


def test_bins_of_the_calibration_error_hold_their_upper_edge() -> None:
    # 0.8 = 12/15 ends a bin; 0.81 begins the next: a hit and a miss do not cancel out.
    error = SingleLabel(2).score("expected_calibration_error")
    outputs, targets = np.array([[0.8, 0.2], [0.19, 0.81]]), np.array([0, 0])
    assert error(outputs, targets) == pytest.approx(0.5 * 0.2 + 0.5 * 0.81)


@given(classes=st.integers(2, 20))
@few
def test_outputs_that_say_the_frequencies_are_calibrated(classes: int) -> None:
    targets = np.arange(classes)
    outputs = np.full((classes, classes), 1 / classes)
    found = SingleLabel(classes).score("expected_calibration_error")(outputs, targets)
    assert found == pytest.approx(0, abs=1e-12)


SENTIMENT = (
    np.array([-0.2, 0.0, 0.4, 2.6, -3.7, 0.1])[:, None],
    np.array([-1.0, 0.0, -0.2, 3.0, -3.0, 0.0])[:, None],
)


def test_zero_counts_as_non_negative_in_one_reading_of_acc_2() -> None:
    # Outputs − + + + − +, targets − + − + − +, where + is zero or above.
    assert Regression().score("acc2_non_negative")(*SENTIMENT) == pytest.approx(5 / 6)


def test_targets_of_zero_are_left_out_in_the_other_reading_of_acc_2() -> None:
    assert Regression().score("acc2_positive")(*SENTIMENT) == pytest.approx(3 / 4)


def test_acc_2_of_neutral_targets_alone_is_not_defined() -> None:
    assert np.isnan(Regression().score("acc2_positive")(np.ones((3, 1)), np.zeros((3, 1))))


def test_acc_7_clips_and_rounds() -> None:
    # Outputs round to 0 0 0 3 −3 0, targets to −1 0 0 3 −3 0.
    assert Regression().score("acc7")(*SENTIMENT) == pytest.approx(5 / 6)


def test_acc_7_of_targets_beyond_its_scale_is_not_defined() -> None:
    assert np.isnan(Regression().score("acc7")(np.ones((2, 1)), np.array([[1.0], [40.0]])))


def test_sentiment_is_told_of_a_single_output_only() -> None:
    assert [s.name for s in Regression().more_scores] == ["acc2_non_negative", "acc2_positive", "acc7"]
    assert Regression(outputs=2).more_scores == ()


def test_pearson_is_scipys() -> None:
    from scipy.stats import pearsonr

    outputs, targets = drawn(Regression(), 30, 0)
    wanted = pearsonr(outputs[:, 0], targets[:, 0]).statistic
    assert Regression().score("pearson")(outputs, targets) == pytest.approx(wanted)


@pytest.mark.parametrize("task", [SingleLabel(3), MultiLabel(3), Regression()], ids=repr)
def test_names_of_a_tasks_scores_differ(task: Task) -> None:
    names = [s.name for s in (*task.scores, *task.more_scores)]
    assert len(set(names)) == len(names) and [task.score(name).name for name in names] == names


def test_unknown_score_is_told_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match=r"no score 'balanced_acuracy'\. Did you mean 'balanced_accuracy'\?"):
        SingleLabel(2).score("balanced_acuracy")


def test_task_of_a_stranger_has_no_more_scores() -> None:
    class Own(SingleLabel):
        more_scores = Task.more_scores

    assert Own(2).more_scores == () and Own(2).score("auroc").name == "auroc"
