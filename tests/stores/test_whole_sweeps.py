"""Whole sweeps on stores that are servers: several workers, secrets, a server that goes and comes back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow import MlflowClient

from mmx.cli.app import app
from mmx.errors import StoreError
from mmx.sweep import Limits, Plan, Result, open_tracker, plan_facts, run_sweep
from mmx.sweep.spool import Spooling

SEARCH = {"axes": {"strategy.name": ["skip", "zero_fill"]}, "seeds": [0, 1]}


class Acting:
    """A watcher that does something once, after the first epoch of the n-th trial."""

    def __init__(self, act: Callable[[], None] = lambda: None, trial: int = 1) -> None:
        self.act = act
        self.trial = trial
        self.started = 0
        self.messages: list[str] = []
        self.ended: list[tuple[str, str]] = []

    def sweep_started(self, total: int, done: int) -> None: ...

    def told(self, message: str) -> None:
        """Note it."""
        self.messages.append(message)

    def trial_started(self, worker: int, title: str, epochs: int, key: tuple[str, int]) -> None:
        """Count it."""
        self.started += 1

    def epoch_ended(self, worker: int, epoch: int, figures: dict[str, float]) -> None:
        """Act."""
        if self.started == self.trial and epoch == 0:
            self.act()

    def trial_ended(
        self, worker: int, title: str, state: str, reason: str, figures: dict[str, float]
    ) -> None:
        """Note it."""
        self.ended.append((state, reason))


def run(plan: Plan, watcher: Acting) -> Result:
    tracker = open_tracker(plan.registry, plan.sweep.store.tracking)
    return run_sweep(plan, tracker, "cpu", watcher, Limits())


def all_runs(address: str) -> list[Any]:
    client = MlflowClient(tracking_uri=address)
    return client.search_runs([client.get_experiment_by_name("toy").experiment_id])


def trials(address: str) -> list[Any]:
    return [r for r in all_runs(address) if r.data.tags["mmx.role"] == "trial"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let MLflow's client give a dead server up at once."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(Spooling.__init__, "__defaults__", (0.2,))


def test_two_workers_share_a_sweep_on_postgresql_and_no_secret_is_kept(
    stores: Path,
    plan_toy: Callable[..., Plan],
    tracking_database: str,
    study_database: str,
    password: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    places = {"tracking": tracking_database, "study": study_database}
    plan = plan_toy({"store": places, "search": SEARCH, "run": {"workers": 2}})
    watcher = Acting()
    assert run(plan, watcher).counts["done"] == 4
    found = trials(tracking_database)
    assert sorted(r.info.status for r in found) == ["FINISHED"] * 4
    assert len({r.data.tags["mmx.worker"] for r in found}) == 2
    study = optuna.load_study(study_name="toy", storage=study_database)
    assert [t.state.name for t in study.get_trials() if t.state.name != "FAIL"] == ["COMPLETE"] * 4
    secrets = (password, tracking_database.partition("://")[2].partition("@")[0].partition(":")[2])
    kept = str([r.to_dictionary() for r in all_runs(tracking_database)]) + str(study.get_trials())
    told = "".join(capfd.readouterr()) + "".join(watcher.messages)
    files = [p for p in stores.rglob("*") if p.is_file() and p.suffix != ".db"]
    assert any(p.name == "resolved.yaml" for p in files) or files
    for secret in secrets:
        assert secret not in kept and secret not in told
        assert not [p for p in files if secret.encode() in p.read_bytes()]


def test_server_that_goes_away_during_a_trial_loses_nothing(
    stores: Path, plan_toy: Callable[..., Plan], mlflow_server: Any, quick: None
) -> None:
    places = {"tracking": mlflow_server.address, "study": f"sqlite:///{stores}/optuna.db"}
    plan = plan_toy({"name": "toy", "store": places, "search": SEARCH})
    acts = iter([mlflow_server.stop, mlflow_server.start])
    leaves = Acting(lambda: next(acts)(), trial=2)
    plain_ended = leaves.trial_ended

    def comes_back(*told: Any) -> None:
        plain_ended(*told)
        if len(leaves.ended) == 2:
            mlflow_server.start()

    leaves.trial_ended = comes_back  # type: ignore[method-assign]
    assert run(plan, leaves).counts["done"] == 4
    found = trials(mlflow_server.address)
    assert [r.info.status for r in found] == ["FINISHED"] * 4
    history = MlflowClient(tracking_uri=mlflow_server.address).get_metric_history
    assert {len(history(r.info.run_id, "val/loss")) for r in found} == {2}
    assert len({frozenset(r.data.metrics) for r in found}) == 1


def test_results_of_a_server_that_stays_away_are_sent_later(
    stores: Path,
    plan_toy: Callable[..., Plan],
    mlflow_server: Any,
    quick: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"tracking": mlflow_server.address, "study": f"sqlite:///{stores}/optuna.db"}
    plan = plan_toy({"name": "later", "store": places, "search": SEARCH})
    watcher = Acting(mlflow_server.stop)
    with pytest.raises(StoreError, match="reached"):
        run(plan, watcher)
    assert [state for state, _ in watcher.ended] == ["done"] * 4
    mlflow_server.start()
    capsys.readouterr()
    assert app(["sync", "--store", mlflow_server.address], standalone_mode=False) == 0
    assert "4 trial" in capsys.readouterr().out
    tracker = open_tracker(plan.registry, mlflow_server.address)
    assert plan_facts(plan, tracker.records("later"))["counts"]["done"] == 4
    again = Acting()
    assert run(plan, again).counts["done"] == 4 and again.started == 0
