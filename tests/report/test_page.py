"""The page of a report: it needs nothing else, says everything as text, and shows the data of each figure."""

import base64
import csv
import io
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from mmx.report.comparison import Comparison
from mmx.report.content import Report, all_bands
from mmx.report.drawing import COLOURS
from mmx.report.files import write_report
from mmx.report.page import html, least_width
from mmx.report.plots import (
    differences_of,
    draw_contributions,
    draw_curves,
    draw_differences,
    draw_lattice,
    lattice_of,
)
from mmx.report.results import Results
from mmx.sweep.close import close_sweep

ROOT = Path(__file__).parents[2]
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Reader(HTMLParser):
    """Checks that elements close in order, and notes the attributes of each."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, Mapping[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[Mapping[str, str | None]]:
        return [attributes for name, attributes in self.seen if name == tag]


@pytest.fixture(scope="module")
def page(report: Report) -> str:
    return html(report, all_bands(report))


@pytest.fixture(scope="module")
def read(page: str) -> Reader:
    return Reader(page)


def test_every_element_is_closed(read: Reader) -> None:
    assert read.open == []


def test_page_asks_for_nothing_from_elsewhere(read: Reader, page: str) -> None:
    places = [a[k] for _, a in read.seen for k in ("src", "href", "xlink:href", "action") if a.get(k)]
    assert places and all(str(place).startswith(("#", "data:text/csv")) for place in places)
    assert not re.search(r"url\((?!#)|@import|<script|<link", page)


def test_each_figure_has_words_for_who_cannot_see_it(read: Reader) -> None:
    figures = list(read.all("svg"))
    assert figures and all(a["role"] == "img" and a["aria-label"] for a in figures)
    assert len(read.all("figcaption")) == len(figures)


def test_text_of_figures_stays_text(page: str) -> None:
    for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        assert "<text" in svg and "<image" not in svg


def test_there_is_a_curve_of_each_score_and_target(page: str, results: Results) -> None:
    for score in ("Accuracy", "Macro F1", "AUROC"):
        for target in ("any modality", "m0", "m1"):
            assert f"<h3>{score}, {target} goes missing</h3>" in page


def test_each_figure_has_its_data_as_a_table_and_to_take_along(read: Reader, page: str) -> None:
    count = len(read.all("figure"))
    assert len(read.all("details")) == count
    links = [a for a in read.all("a") if "download" in a]
    assert len(links) == count + 1  # and the tidy table
    for a in links:
        content = base64.b64decode(str(a["href"]).partition("base64,")[2]).decode()
        rows = list(csv.reader(io.StringIO(content)))
        assert len(rows) > 1 and len({len(row) for row in rows}) == 1


def test_page_says_tests_and_warnings(page: str, report: Report) -> None:
    text = re.sub(r"\s+", " ", page)
    assert all(c.told() in text for c in report.comparisons)
    assert all(w in text for w in report.warnings)


def test_page_fits_phones_and_paper(page: str) -> None:
    assert 'name="viewport"' in page and "overflow-x: auto" in page and "@media print" in page


def test_names_from_a_sweep_file_cannot_become_markup(report: Report) -> None:
    evil = "<script>alert(1)</script>"
    rows = [replace(row, label=evil) for row in report.tables[0].rows]
    own = replace(report, tables=[replace(report.tables[0], rows=rows)], warnings=[evil])
    assert "<script" not in html(own, {})


def test_the_same_results_give_the_same_page(report: Report, page: str) -> None:
    assert html(report, all_bands(report)) == page


def test_patterns_stand_in_the_order_of_how_many_are_present(report: Report) -> None:
    names, means = lattice_of(report.tables[0], "accuracy")
    assert names[0] == "m0.m1" and set(names[1:]) == {"m0", "m1"}
    assert all(len(line) == len(report.tables[0].rows) for line in means)


def test_curves_are_told_apart_by_colour_marker_and_dashes(report: Report) -> None:
    (axis,) = draw_curves(report.tables[0], {}, "accuracy", "any").axes
    lines = axis.get_lines()
    for look in ("get_color", "get_marker", "get_linestyle"):
        assert len({getattr(line, look)() for line in lines}) == len(lines) == 3


def test_many_curves_are_named_below_them_and_a_wide_lattice_is_scrolled(report: Report) -> None:
    row = report.tables[0].rows[0]
    many = replace(report.tables[0], rows=[replace(row, label=f"m{n}") for n in range(12)])
    figure = draw_curves(many, {}, "accuracy", "any")
    assert figure.axes[0].get_legend() is None and len(figure.legends[0].get_texts()) == 12
    assert least_width(figure) < 22 and least_width(draw_lattice(many, "accuracy")) > 40


def test_a_crowd_has_no_bands(report: Report) -> None:
    (row, *_), few = report.tables[0].rows, report.tables[0]
    crowd = replace(few, rows=[row] * 9)
    drawn = [len(draw_curves(t, {}, "accuracy", "any").axes[0].collections) for t in (few, crowd)]
    assert drawn == [len(few.rows), 0]


def test_differences_are_turned_from_the_one_to_the_others() -> None:
    found = [
        Comparison("a", "worse", 0.2, 0.1, 0.3, 0.001, 0.001),
        Comparison("a", "level", 0.0, -0.1, 0.1, 0.5, 0.5),
        Comparison("a", "better", -0.2, -0.3, -0.1, 0.001, 0.001),
        Comparison("a", "unlike", refused="no"),
    ]
    turned = differences_of(found)
    assert [(c.one, c.difference, c.low, c.high, c.better) for c in turned] == [
        ("better", 0.2, 0.1, 0.3, "better"), ("level", 0.0, -0.1, 0.1, ""), ("worse", -0.2, -0.3, -0.1, "a")
    ]  # fmt: skip
    (axis,) = draw_differences(turned, "accuracy").axes
    dots = [line for line in axis.lines if line.get_marker() == "o"]
    assert [float(dot.get_xdata()[0]) for dot in dots] == [0.2, 0.0, -0.2]
    assert [dot.get_markerfacecolor() for dot in dots] == [COLOURS[0], "white", COLOURS[1]]
    assert axis.get_xlabel() == "accuracy: better than a by" and axis.get_ylim()[0] > axis.get_ylim()[1]


def test_bars_and_lattice_have_a_mark_for_each_value(report: Report) -> None:
    table = report.tables[0]
    lattice = draw_lattice(table, "accuracy").axes[0]
    assert len(lattice.texts) == 3 * len(table.rows)
    assert len(draw_contributions(table, "accuracy").axes[0].patches) == 2 * len(table.rows)


Close = Callable[..., dict[str, bytes]]


@pytest.fixture
def close(finished: Any, monkeypatch: pytest.MonkeyPatch) -> Close:
    """Close the finished sweep, with its plots, and give the files that its parent run would keep."""

    def run(plots: bool = True) -> dict[str, bytes]:
        kept: dict[str, bytes] = {}

        def keep(curves: Any, files: list[Path], axes: Any, state: str) -> None:
            kept.update({path.name: path.read_bytes() for path in files})

        tracker, sweep = finished.tracker, finished.plan.sweep
        monkeypatch.setattr(tracker, "close_sweep", keep)
        monkeypatch.setattr("mmx.sweep.close.shutil.rmtree", lambda *_, **__: None)
        own = replace(finished.plan, sweep=replace(sweep, run=replace(sweep.run, plots=plots)))
        assert close_sweep(own, tracker).counts["done"] == 6
        return kept

    return run


def test_sweep_keeps_its_page_and_plots(close: Close) -> None:
    kept = close()
    for name in ("curves", "lattice", "pareto_params", "pareto_seconds"):
        assert kept[f"{name}.png"].startswith(b"\x89PNG")
    assert b"<svg" in kept["report.html"] and "pareto.png" not in kept


def test_sweep_that_wants_no_plots_is_not_drawn(close: Close) -> None:
    assert not [name for name in close(plots=False) if name.endswith((".png", ".html"))]


def test_page_that_cannot_be_drawn_ends_no_sweep(close: Close, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no fonts")

    monkeypatch.setattr("mmx.report.files.figures_of_report", broken)
    with pytest.warns(UserWarning, match=r"report of 'toy' could not be drawn \(RuntimeError: no fonts\)"):
        kept = close()
    assert {"leaderboard.csv", "report.html"} <= kept.keys()


def test_sweep_without_predictions_has_a_page_all_the_same(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = replace(results, records=[replace(r, run_id="0" * 32) for r in results.records])
    lost = replace(lost, _runs={}, _curves={})
    for record in results.records:
        for score in results.scores:
            lost._curves["0" * 32, f"robustness/{score}_missing_any"] = results.curve(record, score, "any")
    monkeypatch.setattr(Results, "targets", ["any"])
    write_report(tmp_path, lost)
    assert "is not compared with" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_sweep_whose_points_were_all_pruned_has_a_page_with_the_reasons(
    results: Results, tmp_path: Path
) -> None:
    records = [replace(r, reason="pruned by median at epoch 0") for r in results.records]
    assert write_report(tmp_path, replace(results, records=records))
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.count('<td class="text">pruned by median at epoch 0</td>') == 3
    assert '<h2 id="tables">' not in text


def test_template_travels_in_the_wheel(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    from hatchling.builders.wheel import WheelBuilder

    wheel = next(iter(WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])))
    assert "mmx/report/templates/report.html" in zipfile.ZipFile(wheel).namelist()
