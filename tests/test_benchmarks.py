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


def test_the_pipeline_is_measured_with_every_source_of_data(tmp_path: Path) -> None:
    found = runpy.run_path(str(FOLDER / "pipeline.py"), run_name="benchmark")
    found["FILES"]["train"] = 4
    found["write_files"](tmp_path)
    epochs = found["measure"](Bench(Registry.load()), tmp_path, 0)
    assert len(epochs) == 4 and all(0 < e.waited < e.seconds for e in epochs.values())
