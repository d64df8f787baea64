"""What the tests of reports share: a finished sweep, and sides of comparisons that are made up."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmx.report.comparison import Comparison, Measured, compare
from mmx.report.content import Report, report_on
from mmx.report.results import Results
from mmx.scores import Array, Score
from mmx.sweep.close import results_of

MEAN = Score("accuracy", lambda outputs, targets: outputs[:, 0], per_sample=True)
WHOLE = Score("median", lambda outputs, targets: float(np.median(outputs[:, 0])))


@pytest.fixture(scope="session")
def results(finished: Any) -> Results:
    """Gather what the finished toy sweep left."""
    tracker = finished.tracker
    return results_of(finished.plan, tracker, tracker.records("toy"))


@pytest.fixture(scope="session")
def report(results: Results) -> Report:
    """Report on the finished toy sweep."""
    return report_on(results)


def side(values: Array, score: Score = MEAN, ids: str = "s") -> list[Measured]:
    """Make one side of a comparison of its values (seeds, samples), at one rate."""
    names = [f"{ids}{n:05}" for n in range(values.shape[1])]
    shaped = values[:, None] if score.per_sample else values[:, None, :, None]
    return [Measured(names, np.zeros(values.shape[1]), (0.5,), own, score) for own in shaped]


@pytest.fixture(scope="session")
def compared() -> Callable[..., Comparison]:
    """Compare two sides that are given by their values (seeds, samples)."""

    def make(one: Array, other: Array, score: Score = MEAN, **more: Any) -> Comparison:
        return compare(Comparison("one", "other", **more), side(one, score), side(other, score))

    return make


@pytest.fixture
def here(finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enter an empty folder from which the commands see the finished sweep's store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", finished.address)
    return tmp_path
