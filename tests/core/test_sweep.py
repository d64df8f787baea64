"""Whole sweeps, end to end and tiny: done once, retried, extended, and laid out as users rely on."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from mmx.cli.open import open_plan
from mmx.contracts import TrialRecord
from mmx.errors import InputError, MmxError
from mmx.sweep import Limits, Result, open_search, open_tracker, plan_facts, run_sweep

PLUGIN = """
from pathlib import Path

import torch
from mmx import Component, hookimpl
from mmx.contracts import Filled, Strategy

class Moody(Strategy):
    def __init__(self, seed: int, mood: str = "ready") -> None:
        super().__init__()
        self.seed, self.mood = seed, mood
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def fill(self, tokens, presence, targets):
        if self.training and not (Path(self.mood).exists() or Path(f"{self.mood}-{self.seed}").exists()):
            raise ValueError(f"not in the mood: no file {self.mood}")
        return Filled(tokens)

@hookimpl
def register_strategies():
    return [Component("moody", f"{__name__}:Moody")]
"""
MOODY = {"plugins": ["./moody.py"], "strategy": "moody"}
SIZES = {"epochs": 1, "batch_size": 16, "learning_rate": 0.01}


class Recorder:
    """Remembers how a sweep went."""

    def __init__(self) -> None:
        self.ended: list[tuple[str, str]] = []
        self.messages: list[str] = []

    def sweep_started(self, total: int, done: int) -> None: ...
    def told(self, message: str) -> None:
        """Note it."""
        self.messages.append(message)

    def trial_started(self, worker: int, title: str, epochs: int, key: tuple[str, int]) -> None: ...
    def epoch_ended(self, worker: int, epoch: int, figures: dict[str, float]) -> None: ...

    def trial_ended(
        self, worker: int, title: str, state: str, reason: str, figures: dict[str, float]
    ) -> None:
        """Note it."""
        self.ended.append((title, state))


class Sweep:
    """A sweep file in a folder of its own."""

    def __init__(self, folder: Path, make: Callable[..., dict[str, Any]]) -> None:
        self.folder = folder
        self.make = make
        self.address = f"sqlite:///{folder}/mlflow.db"
        self.client = MlflowClient(tracking_uri=self.address)
        (folder / "moody.py").write_text(PLUGIN, encoding="utf-8")
        self.result: Result | None = None

    def run(
        self,
        changes: dict[str, Any] | None = None,
        fresh: bool = False,
        max_trials: int | None = None,
        limits: Limits | None = None,
    ) -> list[str]:
        """Run, and give the states of what was run anew."""
        path = self.folder / "sweep.yaml"
        path.write_text(json.dumps(self.make({"training": SIZES, **(changes or {})})), encoding="utf-8")
        self.plan = open_plan(path)
        self.tracker = open_tracker(self.plan.registry, self.address)
        recorder = self.recorder = Recorder()
        limits = limits or Limits(max_trials)
        self.result = run_sweep(self.plan, self.tracker, "cpu", recorder, limits, fresh)
        self.titles = [title for title, _ in recorder.ended]
        return [state for _, state in recorder.ended]

    @property
    def records(self) -> list[TrialRecord]:
        """What the store holds."""
        return self.tracker.records("toy")

    @property
    def counts(self) -> dict[str, int]:
        """How many points are in which state."""
        return {s: n for s, n in plan_facts(self.plan, self.records)["counts"].items() if n}

    def runs(self, role: str) -> list[Any]:
        """All MLflow runs of a role, every attempt."""
        experiment = self.client.get_experiment_by_name("toy")
        return self.client.search_runs([experiment.experiment_id], f"tags.`mmx.role` = '{role}'")


@pytest.fixture
def sweep(stores: Path, toy: Callable[..., dict[str, Any]]) -> Sweep:
    return Sweep(stores, toy)


def axes(**values: Any) -> dict[str, Any]:
    return {"search": {"axes": {k.replace("__", "."): v for k, v in values.items()}, "seeds": [0]}}


def test_second_run_runs_nothing(sweep: Sweep) -> None:
    changes = {"search": {"axes": {"strategy.name": ["skip", "zero_fill"]}, "seeds": [0, 1]}}
    assert sweep.run(changes) == ["done"] * 4
    assert sweep.run(changes) == []
    assert sweep.counts == {"done": 4}


def test_value_that_is_added_to_an_axis_is_all_that_runs(sweep: Sweep) -> None:
    sweep.run(axes(strategy__name=["skip"]))
    assert sweep.run(axes(strategy__name=["zero_fill", "skip"])) == ["done"]
    assert "zero_fill" in sweep.titles[0]


def test_seed_that_is_added_is_all_that_runs(sweep: Sweep) -> None:
    sweep.run({"search": {"seeds": [0]}})
    assert sweep.run({"search": {"seeds": [0, 1]}}) == ["done"]
    assert sweep.titles[0].endswith("-s1")


def test_order_of_keys_in_the_file_runs_nothing_anew(sweep: Sweep) -> None:
    sweep.run()
    make = sweep.make
    sweep.make = lambda changes: dict(reversed(make(changes).items()))
    assert sweep.run() == []


def test_failed_trial_is_logged_with_its_reason_and_tried_again(sweep: Sweep) -> None:
    assert sweep.run(MOODY) == ["failed"]
    (record,) = sweep.records
    assert (record.state, record.attempt) == ("failed", 1)
    assert "not in the mood: no file ready" in record.reason
    (run,) = sweep.runs("trial")
    assert run.info.status == "FAILED" and "not in the mood" in run.data.tags["mmx.state_reason"]
    assert "traceback.txt" in {f.path for f in sweep.client.list_artifacts(run.info.run_id)}
    (sweep.folder / "ready").touch()
    assert sweep.run(MOODY) == ["done"]
    assert [(r.state, r.attempt) for r in sweep.records] == [("done", 2)]
    assert sweep.run(MOODY) == []


def test_failed_seed_alone_is_tried_again(sweep: Sweep) -> None:
    (sweep.folder / "ready-0").touch()
    changes = {**MOODY, "search": {"seeds": [0, 1]}}
    assert sweep.run(changes) == ["done", "failed"]
    (sweep.folder / "ready-1").touch()
    assert sweep.run(changes) == ["done"]


def test_retry_failed_tries_again_within_one_call(sweep: Sweep) -> None:
    assert sweep.run({**MOODY, "run": {"retry_failed": 2}}) == ["failed"] * 3
    assert [(r.state, r.attempt) for r in sweep.records] == [("failed", 3)]


def test_trial_that_killed_its_workers_is_given_up_for_all_workers_of_the_call_and_no_longer(
    sweep: Sweep,
) -> None:
    class Deadly(Limits):
        def may_begin(self, key: tuple[str, int]) -> str:  # type: ignore[override]
            self.begun += 1
            return "skip" if self.begun == 1 else "go"

    changes = axes(strategy__name=["zero_fill", "skip"])
    assert sweep.run(changes, limits=Deadly()) == ["done"]
    trials = open_search(sweep.plan).study("toy").get_trials()
    assert [t.user_attrs.get("mmx.end") for t in trials] == ["given up", None]
    assert sweep.run(changes) == ["done"]
    assert sweep.counts == {"done": 2}


def test_failure_does_not_end_the_sweep(sweep: Sweep) -> None:
    assert sweep.run({**MOODY, **axes(strategy__name=["moody", "skip"])}) == ["failed", "done"]
    assert sweep.counts == {"done": 1, "failed": 1}


def test_on_error_stop_ends_the_sweep_at_the_first_failure(sweep: Sweep) -> None:
    changes = {**MOODY, **axes(strategy__name=["moody", "skip"]), "run": {"on_error": "stop"}}
    assert sweep.run(changes) == ["failed"]
    assert sweep.counts == {"failed": 1, "missing": 1}


def test_failures_in_a_row_end_the_sweep(sweep: Sweep) -> None:
    changes = {**MOODY, "search": {"seeds": [0, 1, 2, 3]}, "run": {"max_consecutive_failures": 2}}
    assert sweep.run(changes) == ["failed", "failed"]


def test_max_trials_counts_the_new_trials_of_this_call(sweep: Sweep) -> None:
    changes = {"search": {"seeds": [0, 1, 2]}}
    assert sweep.run(changes, max_trials=0) == []
    assert sweep.run(changes, max_trials=2) == ["done"] * 2
    assert sweep.counts == {"done": 2, "missing": 1}
    assert sweep.run(changes, max_trials=2) == ["done"]


def test_fresh_runs_everything_again_and_retires_what_was_there(sweep: Sweep) -> None:
    sweep.run()
    assert sweep.run(fresh=True) == ["done"]
    assert sorted(r.data.tags.get("mmx.retired", "") for r in sweep.runs("trial")) == ["", "true"]
    assert len(sweep.records) == 1


def test_same_trial_gives_the_same_numbers_again(sweep: Sweep) -> None:
    sweep.run()
    first = sweep.records[0].metrics
    sweep.run(fresh=True)
    again = sweep.records[0].metrics
    assert {k: v for k, v in first.items() if not k.startswith("cost/")} == {
        k: v for k, v in again.items() if not k.startswith("cost/")
    }


# ------------------------------------------------------------------------------------------------ tuning

TUNE = {"training.learning_rate": {"low": 1e-3, "high": 1e-1, "log": True}}


def tuned(trials: int, **more: Any) -> dict[str, Any]:
    return {"search": {"tune": TUNE, "trials_per_cell": trials, **more}}


def rates(sweep: Sweep) -> list[str]:
    return [r.params["training.learning_rate"] for r in sweep.records]


def test_every_cell_gets_its_budget_and_a_second_run_nothing(sweep: Sweep) -> None:
    changes = tuned(3, axes={"strategy.name": ["skip", "zero_fill"]})
    assert sweep.run(changes) == ["done"] * 6
    cells = [r.cell for r in sweep.records]
    assert sorted(cells.count(c) for c in set(cells)) == [3, 3]
    assert sweep.counts == {"done": 6}
    assert sweep.run(changes) == []


def test_interrupted_tuning_goes_on_without_repeating_its_suggestions(sweep: Sweep) -> None:
    sweep.run(tuned(4), max_trials=2)
    assert sweep.run(tuned(4)) == ["done"] * 2
    assert len(set(rates(sweep))) == 4 and sweep.counts == {"done": 4}


def test_larger_budget_adds_only_what_is_missing(sweep: Sweep) -> None:
    sweep.run(tuned(2))
    assert sweep.run(tuned(3)) == ["done"]
    assert len(set(rates(sweep))) == 3


def test_tuned_trial_that_failed_is_tried_again_with_its_values(sweep: Sweep) -> None:
    changes = {**MOODY, **tuned(2)}
    assert sweep.run(changes) == ["failed"] * 2
    before = sorted(rates(sweep))
    (sweep.folder / "ready").touch()
    assert sweep.run(changes) == ["done"] * 2
    assert sorted(rates(sweep)) == before and sweep.counts == {"done": 2}


def test_tuned_trial_runs_all_its_seeds(sweep: Sweep) -> None:
    sweep.run(tuned(2, seeds=[0, 1]))
    points = [r.point for r in sweep.records]
    assert sorted(points.count(p) for p in set(points)) == [2, 2]
    assert len({r.cell for r in sweep.records}) == 1


def test_seed_that_is_added_to_a_tuned_sweep_is_run(sweep: Sweep) -> None:
    sweep.run(tuned(2, seeds=[0]))
    assert sweep.run(tuned(2, seeds=[0, 1])) == ["done"] * 2
    assert sweep.counts == {"done": 4}


def test_budget_above_what_there_is_to_choose_leaves_nothing_missing(sweep: Sweep) -> None:
    search = {"tune": {"training.warmup": {"choices": [0.1, 0.2]}}, "trials_per_cell": 4}
    sweep.run({"search": search})
    assert sweep.counts == {"done": 2}


def test_conditional_range_is_drawn_only_where_it_holds(sweep: Sweep) -> None:
    tune = {**TUNE, "strategy.momentum": {"low": 0.1, "high": 0.9, "when": {"strategy.name": "mean_fill"}}}
    sweep.run({"search": {"axes": {"strategy.name": ["skip", "mean_fill"]}, "tune": tune}})
    momenta = {r.params["strategy"]: r.params["strategy.momentum"] for r in sweep.records}
    assert momenta["skip"] == "none" and 0.1 <= float(momenta["mean_fill"]) <= 0.9


# ---------------------------------------------------------------------------------------- the objective


def test_best_is_picked_on_validation_and_never_on_test(sweep: Sweep) -> None:
    sweep.run(axes(strategy__name=["skip", "zero_fill", "mean_fill"]))
    result = sweep.result
    assert result is not None
    picked = [s.mean("selection/robust_accuracy") for s in result.standings]
    assert picked == sorted(picked, reverse=True)


def test_search_is_told_the_validation_figure(sweep: Sweep) -> None:
    import optuna

    sweep.run(tuned(2))
    found = [
        t.value
        for name in optuna.get_all_study_names("sqlite:///optuna.db")
        if "/" in name  # a cell's
        for t in optuna.load_study(study_name=name, storage="sqlite:///optuna.db").get_trials()
    ]
    selection = [r.metrics["selection/robust_accuracy"] for r in sweep.records]
    assert sorted(found) == pytest.approx(sorted(selection))


@pytest.mark.parametrize("figure", ["summary/worst", "summary/clean", "summary/robust_macro_f1"])
def test_every_summary_can_be_an_objective(sweep: Sweep, figure: str) -> None:
    assert sweep.run({"search": {"objective": {figure: "maximize"}}}) == ["done"]
    assert figure.replace("summary/", "selection/") in sweep.records[0].metrics


def test_two_objectives_can_be_searched(sweep: Sweep) -> None:
    objective = {"summary/robust_accuracy": "maximize", "cost/trainable_params": "minimize"}
    assert sweep.run(tuned(2, objective=objective)) == ["done"] * 2


def objective(direction: str) -> dict[str, Any]:
    return {"objective": {"summary/robust_accuracy": direction}}


def test_changed_direction_is_refused(sweep: Sweep) -> None:
    sweep.run({"search": objective("maximize")})
    with pytest.raises(InputError, match="was begun with"):
        sweep.run({"search": objective("minimize")})


def test_changed_direction_is_refused_before_any_work(sweep: Sweep) -> None:
    sweep.run({"search": objective("maximize")})
    with pytest.raises(InputError):
        sweep.run({**axes(strategy__name=["skip", "zero_fill"]), "search.objective": {
            "summary/robust_accuracy": "minimize"}})  # fmt: skip
    assert len(sweep.records) == 1


def test_tuning_for_another_figure_does_not_mix_its_values_with_the_old_ones(sweep: Sweep) -> None:
    sweep.run(tuned(2))
    with pytest.raises(InputError):
        sweep.run(tuned(3, objective={"summary/robust_macro_f1": "maximize"}))


# ----------------------------------------------------------------------------------- what users look at


@pytest.fixture(scope="module")
def shown(
    blank_stores: Path, tmp_path_factory: pytest.TempPathFactory, toy: Callable[..., dict[str, Any]]
) -> Any:
    """Run one sweep for all tests of the layout."""
    import shutil

    folder = tmp_path_factory.mktemp("shown")
    for name in ("mlflow.db", "optuna.db"):
        shutil.copy(blank_stores / name, folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        found = Sweep(folder, toy)
        search = {
            "axes": {
                "strategy.name": ["mask_token", "mean_fill"],
                "strategy.alignment": {"values": [0.2], "when": {"strategy.name": "mask_token"}},
                "adapter.rank": [2],
            },
            "seeds": [0, 1],
        }
        found.run(
            {
                "search": search,
                "adapter": {"name": "lora", "rank": 1},
                "store": {"study": "sqlite:///optuna.db"},
                "run": {"plots": True},
            }
        )
        yield found


def test_experiment_stands_beside_the_store_at_an_absolute_place(shown: Sweep) -> None:
    experiment = shown.client.get_experiment_by_name("toy")
    assert experiment.artifact_location.startswith(shown.folder.resolve().as_uri())
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_one_parent_holds_all_children(shown: Sweep) -> None:
    (parent,) = shown.runs("sweep")
    children = shown.runs("trial")
    assert len(children) == 4 and parent.info.status == "FINISHED"
    assert {c.data.tags["mlflow.parentRunId"] for c in children} == {parent.info.run_id}
    assert {c.info.status for c in children} == {"FINISHED"}


def test_children_carry_the_tags_that_make_them_found(shown: Sweep) -> None:
    for child in shown.runs("trial"):
        tags = child.data.tags
        assert {"mmx.point", "mmx.attempt", "mmx.mask_sha", "mmx.state_reason", "mmx.cell"} <= set(tags)
        assert tags["mmx.attempt"] == "1"


def test_seeds_share_a_point_and_all_share_the_evaluation_masks(shown: Sweep) -> None:
    tags = [c.data.tags for c in shown.runs("trial")]
    assert len({t["mmx.point"] for t in tags}) == 2
    assert len({t["mmx.mask_sha"] for t in tags}) == 1


def test_children_are_named_by_number_strategy_rank_and_seed(shown: Sweep) -> None:
    names = sorted(c.info.run_name for c in shown.runs("trial"))
    assert names == ["t0001-mask_token-r2-s0", "t0002-mask_token-r2-s1", "t0003-mean_fill-r2-s0",
                     "t0004-mean_fill-r2-s1"]  # fmt: skip


def test_children_have_the_same_parameters_with_none_where_unused(shown: Sweep) -> None:
    params = [c.data.params for c in shown.runs("trial")]
    assert len({frozenset(p) for p in params}) == 1
    wanted = {"dataset", "encoder.m0", "encoder.m1", "adapter", "adapter.rank", "strategy", "fusion",
              "procedure", "missing.protocol", "missing.train.rate", "seed", "training.learning_rate",
              "strategy.alignment", "strategy.momentum"}  # fmt: skip
    assert wanted <= set(params[0])
    alignments = {p["strategy"]: p["strategy.alignment"] for p in params}
    assert alignments == {"mask_token": "0.2", "mean_fill": "none"}


METRICS = {
    "train/loss", "val/loss", "val/accuracy", "robustness/accuracy_missing_any",
    "robustness/accuracy_missing_m0", "robustness/macro_f1_missing_any", "pattern/accuracy_has_m0",
    "pattern/accuracy_has_m0.m1", "summary/robust_accuracy", "summary/robust_macro_f1", "summary/clean",
    "summary/worst", "summary/drop_at_50", "summary/retention", "contribution/shapley_m0",
    "contribution/shapley_m1", "cost/trainable_params", "cost/total_params", "cost/train_seconds",
    "cost/eval_seconds", "cost/peak_memory_mb", "missing/realised_rate_m0", "selection/robust_accuracy",
}  # fmt: skip


def test_children_have_the_promised_metrics(shown: Sweep) -> None:
    for child in shown.runs("trial"):
        assert METRICS - set(child.data.metrics) == set()


def test_curves_go_by_whole_percent_and_single_values_by_none(shown: Sweep) -> None:
    run_id = shown.runs("trial")[0].info.run_id
    steps = {name: [m.step for m in shown.client.get_metric_history(run_id, name)] for name in METRICS}
    for name, found in steps.items():
        if name.startswith(("robustness/", "missing/")):
            assert sorted(found) == [0, 50, 100], name
        elif name.startswith(("summary/", "pattern/", "contribution/", "cost/", "selection/")):
            assert found == [0], name


def test_summary_is_the_mean_of_the_curve_that_is_shown(shown: Sweep) -> None:
    for child in shown.runs("trial"):
        curve = [
            m.value
            for m in shown.client.get_metric_history(child.info.run_id, "robustness/accuracy_missing_any")
        ]
        assert child.data.metrics["summary/robust_accuracy"] == pytest.approx(sum(curve) / len(curve))


def test_children_keep_their_files_and_no_pickle(shown: Sweep) -> None:
    for child in shown.runs("trial"):
        names = {f.path for f in shown.client.list_artifacts(child.info.run_id)}
        assert {"predictions.parquet", "trained.safetensors", "spec.json", "environment.json"} <= names
        assert {"curve.png", "patterns.png", "confusion.png"} <= names
        assert not any(n.endswith((".pkl", ".pt", ".pickle")) for n in names)


def test_predictions_hold_every_pattern_of_every_sample(shown: Sweep) -> None:
    import pyarrow.parquet as pq

    run_id = shown.runs("trial")[0].info.run_id
    table = pq.read_table(shown.client.download_artifacts(run_id, "predictions.parquet"))
    assert table.num_rows == 40 * 3
    assert set(table["pattern"].to_pylist()) == {"m0", "m1", "m0.m1"}


def test_parent_keeps_how_it_was_made(shown: Sweep) -> None:
    (parent,) = shown.runs("sweep")
    names = {f.path for f in shown.client.list_artifacts(parent.info.run_id)}
    assert {"resolved.yaml", "plan.json", "plugins.json", "environment.txt", "leaderboard.csv",
            "report.html", "curves.png", "lattice.png"} <= names  # fmt: skip
    resolved = Path(shown.client.download_artifacts(parent.info.run_id, "resolved.yaml")).read_text()
    assert "optuna.db" not in resolved and str(shown.folder) not in resolved


def test_killed_sweep_has_told_how_it_was_made(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> Any:
        raise SystemExit

    monkeypatch.setattr("mmx.sweep.close_sweep", killed)
    with pytest.raises(SystemExit):
        sweep.run()
    (parent,) = sweep.runs("sweep")
    names = {f.path for f in sweep.client.list_artifacts(parent.info.run_id)}
    assert {"resolved.yaml", "plan.json", "plugins.json", "environment.txt"} <= names
    plan = json.loads(Path(sweep.client.download_artifacts(parent.info.run_id, "plan.json")).read_text())
    assert [p["point"] for p in plan["points"]] == [r.point for r in sweep.records]


def test_leaderboard_has_a_row_a_point(shown: Sweep) -> None:
    (parent,) = shown.runs("sweep")
    path = shown.client.download_artifacts(parent.info.run_id, "leaderboard.csv")
    with Path(path).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {r["strategy"] for r in rows} == {"mask_token", "mean_fill"}
    assert [r["rank"] for r in rows] == ["1", "2"] and {r["seeds"] for r in rows} == {"2"}
    assert {r["strategy.alignment"] for r in rows} == {"0.2", "none"}


def test_parent_shows_the_best_curve_of_each_strategy(shown: Sweep) -> None:
    (parent,) = shown.runs("sweep")
    name = "best_by_strategy/mask_token_accuracy"
    found = {m.step: m.value for m in shown.client.get_metric_history(parent.info.run_id, name)}
    children = [c for c in shown.runs("trial") if c.data.params["strategy"] == "mask_token"]
    own = [
        m.value
        for c in children
        for m in shown.client.get_metric_history(c.info.run_id, "robustness/accuracy_missing_any")
        if m.step == 50
    ]
    assert sorted(found) == [0, 50, 100] and found[50] == pytest.approx(sum(own) / 2)


# ----------------------------------------------------------------------------------------------- stores


def test_store_that_is_a_folder_is_refused(sweep: Sweep) -> None:
    registry = sweep_registry()
    with pytest.raises(InputError, match="sqlite:///"):
        open_tracker(registry, "file:mlruns")


def test_password_of_a_store_is_in_no_message() -> None:
    with pytest.raises(MmxError) as caught:
        open_tracker(sweep_registry(), "postgresql://someone:secret@127.0.0.1:1/nothing")
    assert "secret" not in str(caught.value)


def sweep_registry() -> Any:
    from mmx.registry import Registry

    return Registry.load()


def test_run_of_a_worker_that_is_gone_is_ended_and_its_trial_run_again(sweep: Sweep) -> None:
    import socket

    changes = {"search": {"seeds": [0, 1]}}
    sweep.run(changes, max_trials=1)
    (run,) = sweep.runs("trial")
    sweep.client.set_tag(run.info.run_id, "mmx.worker", f"{socket.gethostname()}:999999999")
    sweep.client.set_tag(run.info.run_id, "mmx.claim", "toy#999")
    sweep.client.update_run(run.info.run_id, status="RUNNING")
    assert sweep.run(changes) == ["done", "done"]
    states = sorted(r.info.status for r in sweep.runs("trial"))
    assert states == ["FINISHED", "FINISHED", "KILLED"]
    assert any("is to be carried on" in message for message in sweep.recorder.messages)


def test_run_whose_worker_died_after_its_result_was_counted_is_only_ended(sweep: Sweep) -> None:
    import socket

    sweep.run()
    (run,) = sweep.runs("trial")
    sweep.client.set_tag(run.info.run_id, "mmx.worker", f"{socket.gethostname()}:999999999")
    sweep.client.update_run(run.info.run_id, status="RUNNING")
    assert sweep.run() == []
    (again,) = sweep.runs("trial")
    assert again.info.status == "FINISHED" and again.data.tags["mmx.mask_sha"]


def test_run_that_was_deleted_is_run_again(sweep: Sweep) -> None:
    sweep.run()
    (run,) = sweep.runs("trial")
    sweep.client.delete_run(run.info.run_id)
    assert sweep.run() == ["done"] and sweep.counts == {"done": 1}


# ------------------------------------------------------------------------------------------------ forks


def test_other_settings_make_a_fork_that_is_told_and_kept_apart(sweep: Sweep) -> None:
    sweep.run()
    assert sweep.run({"training": {**SIZES, "epochs": 2}}) == ["done"]
    assert "training.epochs: 1 before, 2 now" in sweep.recorder.messages[0]
    fork = sweep.plan.sweep.name
    assert fork.startswith("toy@") and len(sweep.tracker.records(fork)) == 1
    assert len(sweep.records) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"missing.protocol": "per_sample"},
        {"missing.eval.rates": [0.0, 0.3]},
        {"missing.seed": 1},
        {"dataset.train_size": 40},
        {"search.tune": {"training.warmup": {"low": 0.1, "high": 0.3}}},
    ],
    ids=str,
)
def test_whatever_matters_makes_a_fork(sweep: Sweep, changes: dict[str, Any]) -> None:
    sweep.run(max_trials=0)
    sweep.run(changes, max_trials=0)
    assert sweep.plan.sweep.name != "toy"


def test_settings_that_come_back_find_their_sweep_again(sweep: Sweep) -> None:
    other = {"training": {**SIZES, "epochs": 2}}
    sweep.run()
    sweep.run(other)
    assert sweep.run() == [] and sweep.plan.sweep.name == "toy"
    assert sweep.run(other) == [] and sweep.plan.sweep.name != "toy"


@pytest.mark.parametrize(
    "changes",
    [
        {"search": {"axes": {"strategy.name": ["zero_fill", "skip"]}}},
        {"search": {"axes": {"training.learning_rate": [0.01, 0.02]}}},
        {"search": {"axes": {"strategy": ["mean_fill"]}}},
        {"search": {"seeds": [0, 1]}},
        {"search": {"axes": {"training.phases": [[], [{"fusion_adapter": "frozen"}]]}}},
        {"run": {"retry_failed": 1, "workers": 1}},
        {"training": {**SIZES, "loader_workers": 1}},
    ],
    ids=str,
)
def test_extension_and_how_it_runs_make_no_fork(sweep: Sweep, changes: dict[str, Any]) -> None:
    sweep.run(max_trials=0)
    sweep.run(changes, max_trials=0)
    assert sweep.plan.sweep.name == "toy"


def test_method_that_is_added_makes_no_fork(sweep: Sweep) -> None:
    methods: dict[str, Any] = {"late": {}}
    sweep.run({"search.methods": methods}, max_trials=0)
    methods["adapted"] = {"training.phases": [{}, {"fusion_adapter": "scale_shift", "modalities": ["m0"]}]}
    sweep.run({"search.methods": methods}, max_trials=0)
    assert sweep.plan.sweep.name == "toy"


def test_data_that_changed_under_the_same_settings_are_refused(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmx.data import Split

    sweep.run()
    monkeypatch.setattr(Split, "digest", "other")
    with pytest.raises(InputError, match="are not those that the sweep 'toy' was begun with"):
        sweep.run()
    assert sweep.run(fresh=True) == ["done"]


def test_digest_of_data_tells_what_a_model_would_see(sweep: Sweep) -> None:
    sweep.run(max_trials=0)
    spec = sweep.plan.cells[0].spec
    digests = {sweep.plan.bench.split(spec, name).digest for name in ("train", "val", "test")}
    assert len(digests) == 3


def test_observers_are_told_of_starts_and_ends_and_hurt_nobody(sweep: Sweep) -> None:
    from mmx import hookimpl

    path = sweep.folder / "sweep.yaml"
    sweep.run({}, max_trials=0)
    plan = open_plan(path)
    told: list[Any] = []

    class Observer:
        @hookimpl
        def trial_started(self, spec: Any) -> None:
            told.append(spec["strategy"]["name"])

        @hookimpl
        def trial_ended(self, outcome: Any) -> None:
            told.append(outcome["state"])
            raise ValueError("observer is broken")

    plan.registry.add_plugin(Observer(), "observer", "mmx-observer", "1")
    with pytest.warns(UserWarning, match="observer is broken"):
        result = run_sweep(plan, sweep.tracker, "cpu", Recorder(), Limits())
    assert told == ["zero_fill", "done"] and result.counts["done"] == 1
