"""Sweeps with pruners and with two objectives, end to end and tiny."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow import MlflowClient

from mmx.contracts import TrialRecord
from mmx.sweep import Limits, Plan, Result, open_tracker, plan_facts, run_sweep

SIZES = {"epochs": 3, "batch_size": 16, "learning_rate": 0.01}
HOPELESS = {"name": "threshold", "lower": 2.0}
"""No accuracy reaches 2: every first seed is stopped after its first epoch."""
TUNE = {"training.learning_rate": {"low": 1e-3, "high": 1e-1, "log": True}}


class Silent:
    """Watches nothing but how many trials ended."""

    def __init__(self) -> None:
        self.ended = 0

    def sweep_started(self, total: int, done: int) -> None: ...
    def told(self, message: str) -> None: ...
    def trial_started(self, worker: int, title: str, epochs: int, key: tuple[str, int]) -> None: ...
    def epoch_ended(self, worker: int, epoch: int, figures: dict[str, float]) -> None: ...

    def trial_ended(
        self, worker: int, title: str, state: str, reason: str, figures: dict[str, float]
    ) -> None:
        """Count."""
        self.ended += 1


class Bed:
    """Runs toy sweeps in a folder of their own."""

    def __init__(self, folder: Path, plan_toy: Callable[..., Plan]) -> None:
        self.folder = folder
        self.plan_toy = plan_toy
        self.address = f"sqlite:///{folder}/mlflow.db"
        self.client = MlflowClient(tracking_uri=self.address)

    def run(self, search: dict[str, Any], plots: bool = False) -> int:
        """Run, and give how many trials ended."""
        self.plan = self.plan_toy({"training": SIZES, "search": search, "run": {"plots": plots}})
        self.tracker = open_tracker(self.plan.registry, self.address)
        silent = Silent()
        self.result: Result = run_sweep(self.plan, self.tracker, "cpu", silent, Limits())
        return silent.ended

    @property
    def records(self) -> list[TrialRecord]:
        """What the store holds."""
        return self.tracker.records("toy")

    @property
    def counts(self) -> dict[str, int]:
        """How many points are in which state."""
        return {s: n for s, n in plan_facts(self.plan, self.records)["counts"].items() if n}

    def states(self, study: str) -> list[str]:
        """States of a study's trials."""
        found = optuna.load_study(study_name=study, storage="sqlite:///optuna.db")
        return [t.state.name for t in found.get_trials()]

    def artifact(self, name: str) -> Path:
        """Fetch a file of the parent run."""
        experiment = self.client.get_experiment_by_name("toy")
        (parent,) = self.client.search_runs([experiment.experiment_id], "tags.`mmx.role` = 'sweep'")
        return Path(self.client.download_artifacts(parent.info.run_id, name, str(self.folder)))


@pytest.fixture
def bed(stores: Path, plan_toy: Callable[..., Plan]) -> Bed:
    return Bed(stores, plan_toy)


def test_pruned_trial_is_finished_with_its_reason_and_all_its_figures(bed: Bed) -> None:
    assert bed.run({"pruner": HOPELESS}) == 1
    (record,) = bed.records
    run = bed.client.get_run(record.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["mmx.state_reason"].startswith("pruned by threshold at epoch 0: val/accuracy")
    assert len(bed.tracker.history(record.run_id, "val/accuracy")) == 1
    assert {"summary/robust_accuracy", "selection/robust_accuracy", "summary/worst"} <= set(record.metrics)
    assert bed.states("toy") == ["PRUNED"]


def test_seeds_that_a_pruned_point_is_spared_are_not_missing(bed: Bed) -> None:
    search = {"axes": {"strategy.name": ["skip", "zero_fill"]}, "seeds": [0, 1], "pruner": HOPELESS}
    assert bed.run(search) == 2 and bed.counts == {"done": 2}
    assert bed.run(search) == 0


def test_tuned_points_are_pruned_and_count_against_the_budget(bed: Bed) -> None:
    search = {"tune": TUNE, "trials_per_cell": 3, "seeds": [0, 1], "pruner": HOPELESS}
    assert bed.run(search) == 3 and bed.counts == {"done": 3}
    assert bed.states(f"toy/{bed.plan.cells[0].id}") == ["PRUNED"] * 3
    assert bed.run(search) == 0


def test_point_that_passes_the_pruner_runs_all_its_seeds(bed: Bed) -> None:
    search = {"seeds": [0, 1, 2], "pruner": {"name": "threshold", "lower": 0.0}}
    assert bed.run(search) == 3
    assert [r.reason for r in bed.records] == [""] * 3


def test_pruned_points_rank_last_and_are_marked(bed: Bed) -> None:
    bed.run({"axes": {"training.learning_rate": [0.01, 1e-6]}, "pruner": {"name": "none"}})
    # Now the fast one's twin with a pruner that stops whatever is below 0.5 after the first epoch.
    rates = [0.01, 1e-6, 2e-6]
    bed.run({"axes": {"training.learning_rate": rates}, "pruner": {"name": "threshold", "lower": 0.999}})
    last = bed.result.standings[-1]
    assert last.pruned and last.params["training.learning_rate"] == "2e-06"
    with bed.artifact("leaderboard.csv").open(encoding="utf-8") as file:
        marks = [bool(row["pruned"]) for row in csv.DictReader(file)]
    assert marks == [False, False, True]


def test_wilcoxon_spares_the_seeds_of_a_point_that_loses_on_each(bed: Bed) -> None:
    choices = {"training.learning_rate": {"choices": [0.03, 1e-7]}}
    search = {
        "tune": choices,
        "trials_per_cell": 2,
        "seeds": [0, 1, 2, 3, 4, 5],
        "pruner": {"name": "wilcoxon"},
    }
    bed.run(search)
    worse = [r for r in bed.records if r.params["training.learning_rate"] == "1e-07"]
    better = [r for r in bed.records if r.params["training.learning_rate"] == "0.03"]
    assert len(better) == 6 and 4 <= len(worse) < 6
    assert any(r.reason.startswith("pruned by wilcoxon") for r in worse)
    assert bed.counts == {"done": len(better) + len(worse)}
    assert bed.run(search) == 0


def test_two_objectives_leave_the_front_as_a_plot_and_in_status(
    bed: Bed, capsys: pytest.CaptureFixture[str]
) -> None:
    from mmx.cli.app import app

    search = {
        "axes": {"strategy.name": ["skip", "zero_fill", "mask_token"]},
        "objective": {"summary/robust_accuracy": "maximize", "cost/trainable_params": "minimize"},
    }
    bed.run(search, plots=True)
    assert bed.artifact("pareto.png").read_bytes().startswith(b"\x89PNG")
    content = {**bed_file(bed), "search": search}
    (bed.folder / "sweep.yaml").write_text(json.dumps(content), encoding="utf-8")
    capsys.readouterr()
    app(["status", "sweep.yaml", "--json"], standalone_mode=False)
    told = json.loads(capsys.readouterr().out)
    assert 1 <= len(told["front"]) <= 3 and told["counts"]["done"] == 3


def bed_file(bed: Bed) -> dict[str, Any]:
    from mmx.sweep.artifacts import resolved

    return {k: v for k, v in resolved(bed.plan.sweep).items() if k != "search"}
