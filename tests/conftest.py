"""What the tests share: a toy sweep, plans of it, and stores that are made once and copied."""

import copy
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mmx.config import read_sweep, set_path
from mmx.contracts import Tracker
from mmx.registry import Registry
from mmx.sweep import Limits, Plan, open_tracker, plan_sweep, run_sweep

TOY: dict[str, Any] = {
    "schema": 1,
    "name": "toy",
    "dataset": {"name": "toy_world", "train_size": 32, "val_size": 24, "test_size": 40},
    "encoders": {"m0": "mlp", "m1": "mlp"},
    "adapter": "full",
    "strategy": "zero_fill",
    "fusion": "mean",
    "training": {"epochs": 2, "batch_size": 16, "learning_rate": 0.01},
    "missing": {
        "protocol": "per_modality",
        "train": {"rate": 0.3},
        "eval": {"rates": [0.0, 0.5, 1.0], "targets": ["any", "m0", "m1"]},
    },
}

Changes = Mapping[str, Any]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, or one process would end long after the others.

    Tests that are marked long run where MMX_LONG_TESTS is set (`make test-long`).
    """
    items.sort(key=lambda item: "real" not in item.path.parts)
    for item in items:
        if item.get_closest_marker("long") and not os.environ.get("MMX_LONG_TESTS"):
            item.add_marker(pytest.mark.skip(reason="takes long: make test-long"))


@pytest.fixture(scope="session")
def registry() -> Registry:
    """What is installed here."""
    return Registry.load()


@pytest.fixture(scope="session")
def toy() -> Callable[..., dict[str, Any]]:
    """Make the toy sweep's data, with changes by dotted path."""

    def make(changes: Changes | None = None) -> dict[str, Any]:
        data = copy.deepcopy(TOY)
        for path, value in (changes or {}).items():
            set_path(data, path.split("."), copy.deepcopy(value))
        data.setdefault("run", {}).setdefault("plots", False)  # they take longer than a toy trial
        return data

    return make


@pytest.fixture(scope="session")
def plan_toy(toy: Callable[..., dict[str, Any]], registry: Registry) -> Callable[..., Plan]:
    """Plan the toy sweep, with changes by dotted path."""

    def make(changes: Changes | None = None, found: Registry | None = None) -> Plan:
        return plan_sweep(read_sweep(json.dumps(toy(changes)), "sweep.yaml"), found or registry)

    return make


@pytest.fixture(scope="session")
def blank_stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an empty result store and an empty search store: their schemas take seconds."""
    import optuna

    from mmx.builtin.trackers.mlflow import Mlflow

    folder = tmp_path_factory.mktemp("stores")
    Mlflow(f"sqlite:///{folder}/mlflow.db")
    optuna.storages.get_storage(f"sqlite:///{folder}/optuna.db")
    return folder


@pytest.fixture
def stores(blank_stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enter a folder of its own, with empty stores where the commands look for them.

    The address is absolute, since MLflow keeps connections by address whatever the folder.
    """
    for name in ("mlflow.db", "optuna.db"):
        shutil.copy(blank_stores / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return tmp_path


@dataclass(frozen=True)
class Finished:
    """A toy sweep that has been run: three strategies, two seeds. Nobody changes its store."""

    folder: Path
    address: str
    plan: Plan

    @property
    def tracker(self) -> Tracker:
        """Its result store, opened anew."""
        return open_tracker(self.plan.registry, self.address)


class _Silent:
    """Is told how a sweep goes, and says nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *told: None


@pytest.fixture(scope="session")
def finished(
    blank_stores: Path, tmp_path_factory: pytest.TempPathFactory, plan_toy: Callable[..., Plan]
) -> Finished:
    """Run a toy sweep once for all tests that only look at results."""
    folder = tmp_path_factory.mktemp("finished")
    for name in ("mlflow.db", "optuna.db"):
        shutil.copy(blank_stores / name, folder / name)
    address = f"sqlite:///{folder}/mlflow.db"
    search = {"axes": {"strategy.name": ["zero_fill", "mask_token", "skip"]}, "seeds": [0, 1]}
    store = {"tracking": address, "study": f"sqlite:///{folder}/optuna.db"}
    plan = plan_toy({"search": search, "store": store, "run": {"folder": str(folder / ".mmx")}})
    run_sweep(plan, open_tracker(plan.registry, address), "cpu", _Silent(), Limits())  # type: ignore[arg-type]
    return Finished(folder, address, plan)
