"""A run says how it was made and what differs now; run again, it gives the same numbers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmx.cli.app import app
from mmx.cli.open import open_plan
from mmx.errors import InputError
from mmx.runs import StoredRun, open_run
from mmx.runs import repro as repro_module
from mmx.runs.repro import Difference, differences, masks_now, sweep_of
from mmx.trial import Bench

CPU = torch.device("cpu")


@pytest.fixture
def run(finished: Any) -> StoredRun:
    return open_run(finished.tracker, finished.tracker.records("toy")[0].run_id)


@pytest.fixture
def mmx_repro(
    finished: Any, run: StoredRun, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    def call(*options: str, name: str = "") -> tuple[int, str]:
        given = ["repro", name or run.run_id, "--store", finished.address, "--device", "cpu", *options]
        code = app(given, standalone_mode=False)
        return code, capsys.readouterr().out

    return call


def test_nothing_differs_where_nothing_has_changed(run: StoredRun, finished: Any) -> None:
    assert differences(run, Bench(finished.plan.registry), CPU) == []


def test_masks_are_drawn_again_as_they_were(run: StoredRun, finished: Any) -> None:
    assert masks_now(run, Bench(finished.plan.registry)) == run.record.masks != ""


@pytest.mark.parametrize(
    ("path", "value", "what"),
    [
        (("packages", "torch"), "1.0", "torch"),
        (("packages", "peft"), None, "peft"),
        (("threads",), 7, "threads"),
        (("data",), "other", "data"),
        (("code",), "other", "code"),
        (("python",), "2.7", "python"),
        (("variables", "MKL_NUM_THREADS"), "3", "MKL_NUM_THREADS"),
    ],
)
def test_what_has_changed_is_named(
    run: StoredRun,
    finished: Any,
    path: tuple[str, ...],
    value: Any,
    what: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    place = run.environment
    for key in path[:-1]:
        place = place[key]
    before = place.pop(path[-1], "not set")
    if value is not None:
        place[path[-1]] = value
    (found,) = differences(run, Bench(finished.plan.registry), CPU)
    assert found == Difference(what, "not installed" if value is None else str(value), str(before))


def test_run_again_gives_every_figure_to_the_last_bit(mmx_repro: Callable[..., tuple[int, str]]) -> None:
    code, told = mmx_repro("--run")
    assert code == 0 and "every figure is the same to the last bit" in told


def test_figures_that_come_out_otherwise_are_listed(
    mmx_repro: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = repro_module.run_trial

    def disturbed(*given: Any) -> Any:
        outcome = plain(*given)
        outcome.set("summary/clean", outcome.last()["summary/clean"] + 0.25)
        outcome.set("summary/new", 1.0)
        return outcome

    monkeypatch.setattr(repro_module, "run_trial", disturbed)
    code, told = mmx_repro("--run")
    assert code == 1 and "2 figure(s) came out otherwise" in told and "summary/clean: by 0.25 at most" in told


def test_every_figure_of_the_run_is_compared(
    run: StoredRun, finished: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmx.trial import Outcome

    monkeypatch.setattr(repro_module, "run_trial", lambda *given: Outcome())
    found = repro_module.run_again(run, Bench(finished.plan.registry), CPU, lambda epoch, figures: None)
    measured = [name for name in run.record.metrics if not name.startswith("cost/")]
    assert len(found) == len(measured) > 40


def test_told_are_command_point_masks_and_versions(
    run: StoredRun, mmx_repro: Callable[..., tuple[int, str]]
) -> None:
    code, told = mmx_repro(name=run.record.title)
    assert code == 0
    for part in (
        run.record.point,
        run.record.masks,
        "command  mmx",
        f"torch {torch.__version__.partition('+')[0]}",
    ):
        assert part in told


def test_told_as_json(run: StoredRun, mmx_repro: Callable[..., tuple[int, str]]) -> None:
    told = json.loads(mmx_repro("--json")[1])
    assert told["spec"] == json.loads(json.dumps(run.spec.to_dict())) and told["differs"] == []
    assert told["deviations"] is None and told["environment"]["packages"]


def test_written_sweep_is_the_same_point(
    run: StoredRun, mmx_repro: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    assert mmx_repro("--out", str(tmp_path / "again"))[0] == 0
    plan = open_plan(tmp_path / "again" / "sweep.yaml")
    assert [cell.spec.point for cell in plan.cells] == [run.record.point]
    assert plan.sweep.search.seeds == (run.record.seed,)
    assert "torch==" in (tmp_path / "again" / "requirements.txt").read_text(encoding="utf-8")


def test_sweep_with_phases_is_written_as_a_file_says_it(
    run: StoredRun, plan_toy: Callable[..., Any], tmp_path: Path
) -> None:
    phases = [
        {"procedure": "alternating", "epochs": 1},
        {
            "adapter": {"m0": "frozen", "m1": "full"},
            "rate": {"m0": 0.5},
            "modalities": ["m0"],
            "restart": True,
        },
    ]
    run.spec = plan_toy({"training.phases": phases, "fusion": "entropy"}).cells[0].spec  # type: ignore[misc]
    path = tmp_path / "sweep.yaml"
    path.write_text(json.dumps(sweep_of(run)), encoding="utf-8")
    assert open_plan(path).cells[0].spec == run.spec


@pytest.fixture
def with_a_file(run: StoredRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the run have used a strategy of a one-off file."""
    import mmx.runs

    plugins = [*run.environment["plugins"], {"kind": "strategy", "name": "mine", "distribution": "mine.py",
               "version": "file"}]  # fmt: skip
    environment = {**run.environment, "plugins": plugins}
    monkeypatch.setattr(mmx.runs.StoredRun, "environment", environment)


FILE = """
from mmx import Component, hookimpl

@hookimpl
def register_strategies():
    return [Component("mine", "mmx_strategies.skip:Skip")]
"""


def test_one_off_plugin_that_a_run_needs_is_asked_for(
    with_a_file: None, mmx_repro: Callable[..., tuple[int, str]]
) -> None:
    with pytest.raises(
        InputError, match=r"used the one-off plugin 'mine\.py'; give the file: --plugin mine\.py"
    ):
        mmx_repro()


def test_one_off_plugin_goes_along_with_the_written_sweep(
    with_a_file: None, run: StoredRun, mmx_repro: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(FILE, encoding="utf-8")
    assert mmx_repro("--plugin", str(tmp_path / "mine.py"), "--out", str(tmp_path / "again"))[0] == 0
    assert open_plan(tmp_path / "again" / "sweep.yaml").cells[0].spec.point == run.record.point
    assert (tmp_path / "again" / "mine.py").read_text(encoding="utf-8") == FILE


def test_place_that_cannot_be_written_is_told(
    mmx_repro: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="is no folder that can be written"):
        mmx_repro("--out", str(tmp_path / "file"))
