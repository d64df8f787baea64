"""Each trial's plots: what is drawn, and that a plot that cannot be drawn loses no trial."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmx.contracts import TrialLog
from mmx.evaluate import Predictions
from mmx.protocols import all_patterns
from mmx.report import trial_plots
from mmx.report.trial_plots import confusion, draw_confusion, draw_curves, draw_patterns, write_trial_plots
from mmx.sweep import Plan
from mmx.tasks import MultiLabel, Regression, SingleLabel, Task
from mmx.trial import Outcome


def outcome_of(task: Task, modalities: tuple[str, ...] = ("a", "b")) -> Outcome:
    generator = np.random.default_rng(0)
    targets: Any = generator.integers(0, task.out, 30)
    if not isinstance(task, SingleLabel):
        targets = generator.integers(0, 2, (30, task.out)).astype(float)
    outputs = {p: generator.random((30, task.out)) for p in all_patterns(modalities)}
    natural = {m: torch.ones(30, dtype=torch.bool) for m in modalities}
    natural["b"][:10] = False
    for pattern, values in outputs.items():
        if "b" in pattern:
            values[:10] = np.nan
    ids = [f"s{i}" for i in range(30)]
    found = Outcome(predictions=Predictions(ids, targets, natural, outputs, modalities))
    for target in ("any", "a"):
        for percent in (0, 50, 100):
            found.set(f"robustness/{task.scores[0].name}_missing_{target}", 0.9 - percent / 200, percent)
    return found


@pytest.mark.parametrize(
    ("task", "names"),
    [
        (SingleLabel(4), {"curve.png", "patterns.png", "confusion.png"}),
        (SingleLabel(100), {"curve.png", "patterns.png"}),
        (MultiLabel(3), {"curve.png", "patterns.png"}),
        (Regression(1), {"curve.png", "patterns.png"}),
    ],
)
def test_plots_are_written_for_every_task(tmp_path: Path, task: Task, names: set[str]) -> None:
    paths = write_trial_plots(tmp_path, outcome_of(task), task)
    assert {p.name for p in paths} == names
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in paths)


def test_curves_show_each_target_over_percent_missing() -> None:
    (axis,) = draw_curves(outcome_of(SingleLabel(4)).metrics, SingleLabel(4)).axes
    assert [line.get_label() for line in axis.lines] == ["any modality", "only a"]
    np.testing.assert_allclose(axis.lines[0].get_xydata(), [[0, 0.9], [50, 0.65], [100, 0.4]])


def test_no_curve_is_drawn_where_none_was_measured() -> None:
    assert draw_curves({"summary/clean": {0: 1.0}}, SingleLabel(4)) is None


def test_bars_are_the_patterns_scores_over_the_samples_that_have_them() -> None:
    found = outcome_of(SingleLabel(4))
    predictions = found.predictions
    assert predictions is not None
    (axis,) = draw_patterns(predictions, SingleLabel(4)).axes
    wanted = [frozenset("ab"), frozenset("a"), frozenset("b")]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["a.b  (n=20)", "a  (n=30)", "b  (n=20)"]
    score = SingleLabel(4).scores[0]
    np.testing.assert_allclose(
        [b.get_width() for b in axis.patches], [predictions.score(p, score) for p in wanted]
    )


def test_rows_of_a_confusion_are_shares_of_the_true_class() -> None:
    predictions = outcome_of(SingleLabel(4)).predictions
    assert predictions is not None
    shares = confusion(predictions, frozenset("a"), 4)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    targets, chosen = predictions.targets, predictions.outputs[frozenset("a")].argmax(axis=1)
    assert shares[2, 1] == np.mean(chosen[targets == 2] == 1)


def test_confusion_of_many_patterns_shows_those_with_most_present() -> None:
    modalities = ("a", "b", "c", "d")
    figure = draw_confusion(outcome_of(SingleLabel(3), modalities).predictions, SingleLabel(3))
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert len(titles) == trial_plots.PANELS and titles[0] == "a.b.c.d" and all("." in t for t in titles)


class Kept(TrialLog):
    """Notes the names of files."""

    def __init__(self) -> None:
        self.run_id, self.names = "run", set[str]()

    def metrics(self, values: Any, step: int = 0) -> None:
        """Nothing."""

    def artifact(self, path: Path) -> None:
        """Note the name."""
        self.names.add(path.name)

    def end(self, state: str, reason: str, tags: Any) -> None:
        """Nothing."""


@pytest.mark.parametrize("plots", [True, False])
def test_plots_are_drawn_where_the_sweep_says_so(plan_toy: Callable[..., Plan], plots: bool) -> None:
    from mmx.sweep.artifacts import keep_trial

    log = Kept()
    keep_trial(log, plan_toy().cells[0].spec, outcome_of(SingleLabel(4)), SingleLabel(4), {}, plots)
    assert ({"curve.png", "patterns.png", "confusion.png"} <= log.names) == plots
    assert {"spec.json", "predictions.parquet", "environment.json"} <= log.names


def test_plot_that_cannot_be_drawn_is_told_and_loses_nothing(
    plan_toy: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmx.sweep import artifacts

    def fail(*given: Any) -> None:
        raise ValueError("no such score")

    monkeypatch.setattr(artifacts, "write_trial_plots", fail)
    log = Kept()
    with pytest.warns(UserWarning, match="could not be drawn: no such score"):
        artifacts.keep_trial(log, plan_toy().cells[0].spec, outcome_of(SingleLabel(4)), SingleLabel(4), {})
    assert "predictions.parquet" in log.names
