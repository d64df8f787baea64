"""Benchmarks keep up with what they measure: each can be imported, its model built; none is timed here."""

import runpy
from pathlib import Path

import pytest

from mmx.registry import Registry
from mmx.trial import Bench

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_benchmark_can_be_read_and_its_model_built(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    found = runpy.run_path(str(path), run_name="benchmark")
    assert found["__doc__"] and f"python benchmarks/{path.name}" in found["__doc__"]
    if "spec" in found:
        spec, bench = found["spec"](), Bench(Registry.load())
        assert bench.procedure(spec, bench.model(spec))
