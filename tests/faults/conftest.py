"""Small sweeps, and the process that forks what disturbs them."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from disturbed import PLUGIN, SMALL, Make, Place, Zygote


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """The process that forks commands."""
    made = Zygote()
    yield made
    made.close()


@pytest.fixture(scope="session")
def place_at(zygote: Zygote, blank_stores: Path, toy: Callable[..., dict[str, Any]]) -> Make:
    """Put a small sweep, with changes by dotted path, and empty stores into a folder."""

    def make(folder: Path, changes: Mapping[str, Any] | None = None) -> Place:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("mlflow.db", "optuna.db"):
            shutil.copy(blank_stores / name, folder / name)
        content = json.dumps(toy({**SMALL, **(changes or {})}))
        (folder / "sweep.yaml").write_text(content, encoding="utf-8")
        (folder / "moody.py").write_text(PLUGIN, encoding="utf-8")
        return Place(folder, zygote)

    return make


@pytest.fixture
def place(place_at: Make, tmp_path: Path) -> Make:
    """Put a small sweep, with changes by dotted path, into this test's folder, or one in it."""
    return lambda changes=None, name="": place_at(tmp_path / name, changes)


@pytest.fixture(scope="session")
def undisturbed(place_at: Make, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Run a sweep to its end without disturbance, once for all tests."""
    known: dict[str, Place] = {}

    def run(changes: Mapping[str, Any] | None = None) -> Place:
        key = json.dumps(changes, sort_keys=True)
        if key not in known:
            found = place_at(tmp_path_factory.mktemp("undisturbed"), changes)
            found.go()
            assert found.run(["trace"]) == 0, found.said()
            known[key] = found
        return known[key]

    return run
