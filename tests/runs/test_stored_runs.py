"""What a finished run left is found again, and is what the run had."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mmx import tasks
from mmx.builtin.trackers.mlflow import Mlflow
from mmx.config import read_trial
from mmx.contracts import TrialRecord
from mmx.errors import ConfigError, InputError, MmxError
from mmx.evaluate import Predictions, predict_patterns
from mmx.protocols import all_patterns
from mmx.runs import StoredRun, open_run
from mmx.runs.predictions import read_predictions, write_predictions
from mmx.sweep import Plan


@pytest.fixture(scope="module")
def run(finished: Any) -> StoredRun:
    return open_run(finished.tracker, finished.tracker.records("toy")[0].run_id)


def test_run_is_found_by_id_by_title_and_by_how_they_begin(finished: Any, run: StoredRun) -> None:
    title = run.record.title
    for name in (run.run_id, run.run_id[:12], title, title[:5], title[:-1]):
        assert open_run(finished.tracker, name).run_id == run.run_id
    assert run.sweep == "toy" and run.record.title.startswith("t000") and run.record.masks


@pytest.mark.parametrize("name", ["nothing", "0000dead", "0" * 32, "it's", "%"])
def test_run_that_is_not_there_is_told(finished: Any, name: str) -> None:
    with pytest.raises(InputError, match="is no trial of sqlite"):
        open_run(finished.tracker, name)


def test_parent_run_is_no_trial(finished: Any) -> None:
    parent = finished.tracker.open_sweep("toy", {})
    with pytest.raises(InputError, match="is no trial"):
        open_run(finished.tracker, parent)


def test_file_that_a_run_has_not_is_told(run: StoredRun) -> None:
    with pytest.raises(InputError, match=r"has no file 'nothing\.txt'"):
        run.file("nothing.txt")


def test_spec_comes_back(finished: Any, run: StoredRun) -> None:
    assert run.spec.point == run.record.point and run.spec.seed == run.record.seed
    assert replace(run.spec, seed=0) in [cell.spec for cell in finished.plan.cells]


def test_spec_with_phases_comes_back(plan_toy: Callable[..., Plan]) -> None:
    phases = [
        {"procedure": "alternating", "adapter": "full", "epochs": 1},
        {"rate": {"m0": 0.5}, "modalities": ["m0"], "restart": True},
    ]
    spec = plan_toy({"training.phases": phases, "fusion": "entropy"}).cells[0].spec
    assert read_trial(json.loads(json.dumps(spec.to_dict())), "spec.json") == spec


def test_spec_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"spec\.json: "):
        read_trial({"dataset": 3}, "spec.json")


def test_predictions_are_those_of_the_model_with_the_trained_weights(finished: Any) -> None:
    for record in finished.tracker.records("toy"):
        run = open_run(finished.tracker, record.run_id)
        stored, task, split = run.stored
        bench = finished.plan.bench
        now = predict_patterns(run.model(bench), bench.split(run.spec, split), torch.device("cpu"))
        assert split == "test" and task == bench.dataset(run.spec.dataset).task
        assert list(stored.ids) == list(now.ids) and stored.modalities == now.modalities
        np.testing.assert_array_equal(stored.targets, now.targets)
        for pattern in now.outputs:
            np.testing.assert_array_equal(stored.outputs[pattern], now.outputs[pattern])
        for m in now.natural:
            assert torch.equal(stored.natural[m], now.natural[m])


@pytest.mark.parametrize("task", [tasks.SingleLabel(3), tasks.MultiLabel(3), tasks.Regression(3)])
def test_predictions_with_natural_absence_come_back(tmp_path: Path, task: tasks.Task) -> None:
    generator = np.random.default_rng(0)
    natural = {m: torch.tensor(generator.random(20) > 0.4) for m in ("b", "a")}
    natural["b"] |= ~natural["a"]
    outputs = {}
    for pattern in all_patterns(("b", "a")):
        has = np.all([natural[m].numpy() for m in pattern], axis=0)
        outputs[pattern] = np.where(has[:, None], generator.random((20, 3)), np.nan)
    targets = generator.integers(0, 2, (20, 3)) if isinstance(task, tasks.MultiLabel) else np.arange(20) % 3
    if isinstance(task, tasks.Regression):
        targets = generator.random((20, 3))
    before = Predictions([f"s{i}" for i in range(20)], targets, natural, outputs, ("b", "a"))
    write_predictions(tmp_path / "p.parquet", before, task, "val")
    after, kind, split = read_predictions(tmp_path / "p.parquet")
    assert (kind, split, after.modalities) == (task, "val", ("b", "a"))
    order = [list(before.ids).index(i) for i in after.ids]
    np.testing.assert_array_equal(after.targets, targets[order])
    for pattern, values in outputs.items():
        np.testing.assert_array_equal(after.outputs[pattern], values[order])
    for m, has in natural.items():
        assert torch.equal(after.natural[m], has[order])


def test_weights_of_another_model_are_refused(
    finished: Any, run: StoredRun, plan_toy: Callable[..., Plan]
) -> None:
    from mmx.runs import trained_model

    other = plan_toy({"fusion": "concat"})
    with pytest.raises(InputError, match="do not fit the model"):
        trained_model(other.cells[0].spec, other.bench, run.file("trained.safetensors"))


def test_run_keeps_what_its_numbers_hang_on(finished: Any, run: StoredRun) -> None:
    found = run.environment
    assert {"command", "python", "platform", "device", "threads", "data", "plugins", "packages"} <= set(found)
    assert found["data"] == finished.plan.bench.data_digest(run.spec)
    assert {"kind": "dataset", "name": "toy_world", "distribution": "mmx"}.items() <= next(
        p for p in found["plugins"] if p["kind"] == "dataset"
    ).items()
    assert found["packages"]["torch"] == torch.__version__.partition("+")[0] or "torch" in found["packages"]


def test_passwords_of_the_command_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmx.runs.environment import command

    secret = "postgresql://me:secret@host/db"  # noqa: S105 made up
    given = ["run", "s.yaml", "--store", secret, f"store.study={secret}", "dataset.token=secret"]
    monkeypatch.setattr("sys.argv", ["mmx", *given])
    assert "secret" not in " ".join(command()) and "host/db" in " ".join(command())


def test_data_are_logged_as_inputs_with_their_digests(finished: Any, run: StoredRun) -> None:
    inputs = MlflowClient(tracking_uri=finished.address).get_run(run.run_id).inputs.dataset_inputs
    told = {i.tags[0].value: i.dataset for i in inputs}
    assert set(told) == {"training", "validation", "test"}
    split = finished.plan.bench.split(run.spec, "test")
    assert told["test"].digest == split.digest and told["test"].name == "toy_world"
    assert json.loads(told["test"].profile)["samples"] == 40


def test_several_that_begin_so_are_listed(finished: Any) -> None:
    told = r"'t000' is one of 6; give more of the id: \w{8} \(t000\d-.+, toy\)"
    with pytest.raises(InputError, match=told):
        open_run(finished.tracker, "t000")


@pytest.mark.parametrize(
    "told",
    [
        "UNIQUE constraint failed: datasets.digest",
        "duplicate key value violates unique constraint",
        "1062 Duplicate entry",
    ],
)
def test_workers_that_log_the_same_data_at_the_same_moment_both_succeed(
    stores: Path, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Mlflow(f"sqlite:///{stores}/mlflow.db")
    tracker.open_sweep("toy", {})
    log = tracker.open_trial("t", TrialRecord("", "point", 0, "running"))
    plain, calls = tracker.client.log_inputs, []

    def race(*given: Any) -> None:
        calls.append(given)
        if len(calls) == 1:
            raise MlflowException(told)
        plain(*given)

    monkeypatch.setattr(tracker.client, "log_inputs", race)
    log.data("digits", "train", "abc", {"samples": 3})
    assert len(tracker.client.get_run(log.run_id).inputs.dataset_inputs) == 1
    monkeypatch.setattr(
        tracker.client, "log_inputs", lambda *given: (_ for _ in ()).throw(MlflowException("no"))
    )
    with pytest.raises(MmxError, match="no"):
        log.data("digits", "val", "abc", {})
