"""The Pareto front: its laws, its plot, and what `mmx status` and the page tell of it."""

import json
import math
import random
import re
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmx.config import SearchSpec
from mmx.contracts import Tracker, TrialRecord
from mmx.errors import InputError
from mmx.registry import Registry
from mmx.report.drawing import MARKERS, looks
from mmx.report.files import write_report
from mmx.report.pareto import draw_front, front, write_front
from mmx.report.results import Results
from mmx.report.standings import Standing
from mmx.tasks import SingleLabel
from mmx.worker import this_worker

SCORE, COST = "summary/worst", "cost/trainable_params"
OBJECTIVE = {SCORE: "maximize", COST: "minimize"}
Values = Sequence[float]


def standing(
    name: str,
    by_seed: Sequence[Mapping[str, float]],
    reason: str = "",
    **params: str,
) -> Standing:
    params = {"strategy": "skip", **params}
    records = [
        TrialRecord(f"{name}{n}", name, n, "done", reason, params=params, metrics=metrics)
        for n, metrics in enumerate(by_seed)
    ]
    return Standing(name, params, records)


def point(name: str, score: float, cost: float, tested: float | None = None, **more: Any) -> Standing:
    """Make a point with one seed."""
    test = score if tested is None else tested
    metrics = {"selection/worst": score, SCORE: test, COST: cost}
    return standing(name, [{figure: float(value) for figure, value in metrics.items()}], **more)


# ------------------------------------------------------------------------------------------------- laws

FIGURES = ("summary/a", "cost/b", "summary/c")
NUMBERS = st.one_of(st.integers(0, 3).map(float), st.floats(), st.just(math.nan))
CLOUDS = st.integers(1, 3).flatmap(
    lambda n: st.tuples(
        st.lists(st.sampled_from(["maximize", "minimize"]), min_size=n, max_size=n),
        st.lists(st.tuples(*[NUMBERS] * n), max_size=12),
    )
)


def made(values: Sequence[Values], objective: Mapping[str, str]) -> list[Standing]:
    names = [f.replace("summary/", "selection/") for f in objective]
    return [standing(f"p{i}", [dict(zip(names, v, strict=True))]) for i, v in enumerate(values)]


def beats(one: Values, other: Values, directions: Sequence[str]) -> bool:
    """Say it once more, in the words of the definition."""
    better = [a > b if d == "maximize" else a < b for a, b, d in zip(one, other, directions, strict=True)]
    equal = [a == b for a, b in zip(one, other, strict=True)]
    return any(better) and all(b or e for b, e in zip(better, equal, strict=True))


@settings(deadline=None)
@given(CLOUDS)
def test_no_member_is_beaten_and_everything_else_is_beaten_by_a_member(cloud: Any) -> None:
    directions, values = cloud
    objective = dict(zip(FIGURES, directions, strict=False))
    members = {int(s.point[1:]) for s in front(made(values, objective), objective)}
    for i, value in enumerate(values):
        if any(map(math.isnan, value)):
            assert i not in members
        else:
            assert any(beats(values[m], value, directions) for m in members) == (i not in members)


@settings(deadline=None)
@given(CLOUDS, st.randoms())
def test_order_does_not_matter(cloud: Any, chance: random.Random) -> None:
    directions, values = cloud
    objective = dict(zip(FIGURES, directions, strict=False))
    found = made(values, objective)
    assert front(chance.sample(found, len(found)), objective) == front(found, objective)


@settings(deadline=None)
@given(CLOUDS)
def test_equal_points_stay_together(cloud: Any) -> None:
    directions, values = cloud
    objective = dict(zip(FIGURES, directions, strict=False))
    once = [s.point for s in front(made(values, objective), objective)]
    twice = {s.point for s in front(made([*values, *values], objective), objective)}
    assert twice == {*once, *(f"p{int(name[1:]) + len(values)}" for name in once)}


@settings(deadline=None)
@given(CLOUDS)
def test_front_begins_with_the_best_by_the_first_objective(cloud: Any) -> None:
    directions, values = cloud
    objective = dict(zip(FIGURES, directions, strict=False))
    first = [values[int(s.point[1:])][0] for s in front(made(values, objective), objective)]
    assert first == sorted(first, reverse=directions[0] == "maximize")


def test_front_is_picked_on_validation_and_never_on_test() -> None:
    found = [point("a", 0.9, 10, tested=0.1), point("b", 0.8, 10, tested=0.9)]
    assert [s.point for s in front(found, OBJECTIVE)] == ["a"]


def test_front_goes_by_the_mean_over_seeds() -> None:
    lucky = standing("lucky", [{"selection/worst": v, COST: 1.0} for v in (0.9, 0.1)])
    steady = standing("steady", [{"selection/worst": v, COST: 1.0} for v in (0.6, 0.6)])
    assert front([lucky, steady], OBJECTIVE) == [steady]


def test_point_that_lacks_a_seeds_value_is_never_on_the_front() -> None:
    half = standing("half", [{"selection/worst": 0.9, COST: 1.0}, {COST: 1.0}])
    assert front([half], OBJECTIVE) == []


def test_pruned_point_is_never_on_the_front() -> None:
    found = [point("a", 0.9, 1, reason="pruned by wilcoxon at seed 4"), point("b", 0.5, 1)]
    assert [s.point for s in front(found, OBJECTIVE)] == ["b"]


# ------------------------------------------------------------------------------------------------- plot

FOUND = [
    point("a", 0.9, 50_000, strategy="prompt"),
    point("b", 0.7, 1_000, strategy="skip"),
    point("c", 0.6, 9_000, strategy="skip"),
]
LABELS = ("prompt", "skip", "front", "validation split")


def words(figure: Any) -> list[str]:
    """Give what a plot says."""
    (axis,), (legend,) = figure.axes, figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    return [*labels, axis.get_xlabel(), axis.get_ylabel(), figure.get_supxlabel()]


def test_svg_is_one_and_says_everything_as_text(tmp_path: Path) -> None:
    write_front(tmp_path / "front.svg", FOUND, OBJECTIVE)
    root = ElementTree.fromstring((tmp_path / "front.svg").read_text(encoding="utf-8"))  # noqa: S314 our own
    told = " ".join("".join(e.itertext()) for e in root.iter() if e.tag.endswith("text"))
    assert root.tag.endswith("svg")
    for label in (*LABELS, "trainable params (lower is better)", "worst (higher is better)"):
        assert label in told


def test_png_is_one_with_pixels(tmp_path: Path) -> None:
    write_front(tmp_path / "front.png", FOUND, OBJECTIVE)
    data = (tmp_path / "front.png").read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", data[16:24])
    assert width > 600 and height > 400


def test_other_kinds_of_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"front\.txt"):
        write_front(tmp_path / "front.txt", FOUND, OBJECTIVE)


def test_cost_lies_on_the_horizontal_axis_whatever_stands_first() -> None:
    for objective in (OBJECTIVE, dict(reversed(OBJECTIVE.items()))):
        assert "params" in draw_front(FOUND, objective).axes[0].get_xlabel()


@pytest.mark.parametrize(("highest", "scale"), [(19_000, "linear"), (21_000, "log")])
def test_wide_range_of_a_cost_has_a_log_axis(highest: float, scale: str) -> None:
    found = [point("a", 0.9, highest), point("b", 0.1, 1_000)]
    (axis,) = draw_front(found, OBJECTIVE).axes
    assert (axis.get_xscale(), axis.get_yscale()) == (scale, "linear")


def test_cost_of_nothing_has_no_log_axis() -> None:
    assert draw_front([point("a", 0.9, 10), point("b", 0.1, 0)], OBJECTIVE).axes[0].get_xscale() == "linear"


@pytest.mark.parametrize(("direction", "style"), [("minimize", "steps-post"), ("maximize", "steps-pre")])
def test_steps_show_the_best_that_can_be_had(direction: str, style: str) -> None:
    (axis,) = draw_front(FOUND, {SCORE: "maximize", COST: direction}).axes
    (line,) = [line for line in axis.get_lines() if line.get_label() == "front"]
    assert line.get_drawstyle() == style


def test_plot_shows_figures_from_the_test_split() -> None:
    (axis,) = draw_front([point("a", 0.9, 10, tested=0.25)], OBJECTIVE).axes
    (line,) = [line for line in axis.get_lines() if line.get_label() == "front"]
    assert list(line.get_ydata()) == [0.25]


def test_methods_are_told_apart_by_name_colour_and_marker() -> None:
    found = [point(f"p{n}", score, 1, method=f"m{n}") for n, score in ((1, 0.1), (2, 0.9), (3, 0.5))]
    assert words(draw_front(found, OBJECTIVE))[1:4] == ["m1", "m2", "m3"]
    many = looks([point(f"p{n}", n, n, method=f"m{n}") for n in range(len(MARKERS) ** 2)])
    assert len(set(many.values())) == len(many)


def test_points_without_a_front_can_be_drawn() -> None:
    found = [standing("a", [{SCORE: 0.5, COST: 1.0}])]  # nothing on validation
    assert "front" not in words(draw_front(found, OBJECTIVE))


@pytest.mark.parametrize(
    ("found", "objective", "told"),
    [(FOUND, {SCORE: "maximize"}, "not 1"), ([standing("a", [{COST: 1.0}])], OBJECTIVE, "nothing to draw")],
)
def test_what_cannot_be_drawn_is_told(found: Any, objective: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        draw_front(found, objective)


# ------------------------------------------------------------------------------------------------- page

CURVE = {"robustness/accuracy_missing_any": 0.5}


@pytest.fixture
def page(tmp_path: Path, registry: Registry) -> Callable[..., str]:
    """Write a sweep's page and read it."""

    def write(found: Sequence[Standing], objective: Mapping[str, str]) -> str:
        tracker = Mock(spec=Tracker)
        tracker.history.return_value = {0: 0.9, 50: 0.5}
        tracker.fetch.side_effect = InputError("there are no predictions")
        records = [record for standing in found for record in standing.records]
        results = Results("toy", SearchSpec(), objective, tracker, registry, SingleLabel(2), records)
        write_report(tmp_path, results)
        return (tmp_path / "report.html").read_text(encoding="utf-8")

    return write


def test_page_shows_the_front_of_two_objectives(page: Callable[..., str]) -> None:
    text = page(FOUND, OBJECTIVE)
    assert "Worst against trainable params" in text and "trainable params (lower is better)" in text


def test_page_shows_no_front_of_one_objective(page: Callable[..., str], tmp_path: Path) -> None:
    text = page(FOUND, {SCORE: "maximize"})
    assert "is better)" not in text and "<svg" not in text and not (tmp_path / "pareto.png").exists()


def test_page_shows_curves_where_there_are_any(page: Callable[..., str]) -> None:
    found = [standing("a", [{**CURVE, "selection/worst": 0.5}])]
    assert page(found, {SCORE: "maximize"}).count("<svg") == 1


def test_page_says_which_points_were_pruned(page: Callable[..., str]) -> None:
    reason = "pruned by median at epoch 3: val/accuracy 0.41"
    assert "pruned" not in page(FOUND, {SCORE: "maximize"})
    found = [*FOUND, standing("d", [{"val/accuracy": 0.41}], reason=reason)]
    text = page(found, {SCORE: "maximize"})
    assert text.count(reason) == 1 and "nan" not in re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL)


# ----------------------------------------------------------------------------------------------- status


@pytest.fixture
def status(
    stores: Path, toy: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> Callable[..., str]:
    """Show how a sweep stands whose records are given."""
    from mmx.builtin.trackers.mlflow import Mlflow
    from mmx.cli import main

    def run(records: Sequence[TrialRecord], objective: Mapping[str, str], *more: str) -> str:
        (stores / "sweep.yaml").write_text(json.dumps(toy({"search.objective": dict(objective)})))
        monkeypatch.setattr(Mlflow, "records", lambda self, name: list(records))
        monkeypatch.setattr(Mlflow, "find_sweeps", lambda self: ["toy"])
        monkeypatch.setattr(sys, "argv", ["mmx", "status", *more])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        return str(capsys.readouterr().out)

    return run


Status = Callable[..., str]
TWO = {"summary/worst": "maximize", "cost/trainable_params": "minimize"}


def records_of(found: Sequence[Standing]) -> list[TrialRecord]:
    return [record for s in found for record in s.records]


def test_status_shows_the_front_of_two_objectives_instead_of_one_best(status: Status) -> None:
    text = status(records_of(FOUND), TWO, "sweep.yaml")
    rows = [line.split()[:2] for line in text.splitlines() if line.strip()[:2] in ("a ", "b ", "c ")]
    assert rows == [["a", "prompt"], ["b", "skip"]] and "best" not in text


def test_status_as_json_has_the_front_beside_the_best(status: Status) -> None:
    found = json.loads(status(records_of(FOUND), TWO, "sweep.yaml", "--json"))
    assert [p["point"] for p in found["front"]] == ["a", "b"] and found["best"] == found["front"][0]
    assert found["front"][1]["figures"] == {"summary/worst": 0.7, "cost/trainable_params": 1000.0}


def test_status_of_one_objective_has_no_front(status: Status) -> None:
    found = json.loads(status(records_of(FOUND), {SCORE: "maximize"}, "sweep.yaml", "--json"))
    assert "front" not in found and found["best"]["point"] == "a"


def test_figure_that_no_seed_has_is_null(status: Status) -> None:
    records = records_of([standing("a", [{"val/loss": 1.0}], reason="pruned by median at epoch 0")])
    found = status(records, {SCORE: "maximize"}, "sweep.yaml", "--json")
    assert json.loads(found, parse_constant=pytest.fail)["best"]["figures"] == {SCORE: None}
    assert "–" in status(records, {SCORE: "maximize"}, "sweep.yaml")


def test_status_says_that_the_best_was_pruned_where_all_were(status: Status) -> None:
    reason = "pruned by median at epoch 0: val/loss 3"
    records = records_of([point("a", 0.5, 1, reason=reason)])
    assert (
        json.loads(status(records, {SCORE: "maximize"}, "sweep.yaml", "--json"))["best"]["pruned"] == reason
    )
    assert reason in status(records, {SCORE: "maximize"}, "sweep.yaml")


def running(worker: str) -> list[TrialRecord]:
    return [TrialRecord("run", "abc", 1, "running", worker=worker)]


def gone() -> str:
    """Name this process as if it had begun at another time, which no process of this number has."""
    host, process, _ = this_worker().split(":")
    return f"{host}:{process}:1000.00"


@pytest.mark.parametrize("file", [["sweep.yaml"], []], ids=["sweep", "store"])
@pytest.mark.parametrize(
    ("worker", "is_gone"), [(this_worker(), False), (gone(), True)], ids=["alive", "gone"]
)
def test_status_names_who_runs_what_and_who_is_gone(
    status: Status, worker: str, is_gone: bool, file: list[str]
) -> None:
    found = json.loads(status(running(worker), {}, *file, "--json"))
    (row,) = (found if file else found[0])["workers"]
    name = worker.rpartition(":")[0]
    assert {"worker": name, "point": "abc", "seed": 1, "gone": is_gone}.items() <= row.items()
    text = status(running(worker), {}, *file)
    assert f"worker {name} (since " in text and ("is gone" in text) == is_gone


def test_worker_that_nobody_named_is_told_as_unknown(status: Status) -> None:
    assert "worker unknown runs abc, seed 1" in status(running(""), {}, "sweep.yaml")


def test_status_tells_when_a_worker_began(status: Status) -> None:
    found = json.loads(status(running("elsewhere:7:1000.00"), {}, "sweep.yaml", "--json"))
    assert found["workers"] == [
        {
            "worker": "elsewhere:7",
            "since": "1970-01-01T00:16:40+00:00",
            "point": "abc",
            "seed": 1,
            "gone": False,
        }
    ]
