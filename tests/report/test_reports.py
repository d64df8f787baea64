"""A report of a finished sweep: what it is made from, and that all its forms say the same."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import mean, stdev
from typing import Any

import pytest

from mmx.contracts import TrialRecord
from mmx.errors import InputError
from mmx.report.comparison import Comparison, compare, compare_all, measure, sentences
from mmx.report.content import Report, all_bands, as_data, bands_of, report_on
from mmx.report.fairness import warnings_of
from mmx.report.latex import escaped, latex
from mmx.report.markdown import markdown
from mmx.report.results import Results
from mmx.report.tables import row_of, told
from mmx.report.tidy import TIDY, tidy, write_folder

STRATEGIES = {"zero_fill", "mask_token", "skip"}


def changed(results: Results, strategy: str, **more: Any) -> Results:
    """Change the records of one strategy; `params` and `metrics` are put over what is there."""

    def one(record: TrialRecord) -> TrialRecord:
        if record.params["strategy"] != strategy:
            return record
        own = {k: {**getattr(record, k), **v} if isinstance(v, dict) else v for k, v in more.items()}
        return replace(record, **own)

    return replace(results, records=[one(r) for r in results.records], _curves={}, _runs={})


# --------------------------------------------------------------------------------------------- tables


def test_first_table_has_the_best_point_of_each_strategy(report: Report) -> None:
    first = report.tables[0]
    assert first.axis == "strategy" and {row.label for row in first.rows} == STRATEGIES
    assert first.rates == [0, 50, 100]


def test_figures_of_the_primary_score_are_those_that_the_trial_logged(results: Results) -> None:
    record = results.found[0].records[0]
    row = row_of(results, "x", results.found[0], "accuracy", "any")
    for name in ("clean", "worst", "drop_at_50", "retention"):
        assert row.figures[name][record.seed] == pytest.approx(record.metrics[f"summary/{name}"])
    robust = record.metrics["summary/robust_accuracy"]
    assert row.figures["robust"][record.seed] == pytest.approx(robust)


def test_area_is_that_of_trapezia_over_the_range_of_rates(results: Results) -> None:
    row = row_of(results, "x", results.found[0], "accuracy", "any")
    a, b, c = (row.rates[p][0] for p in (0, 50, 100))
    assert row.figures["area"][0] == pytest.approx(((a + b) / 2 + (b + c) / 2) / 2)


def test_worst_pattern_is_no_figure_of_one_modality_s_absence(results: Results) -> None:
    assert "worst" not in row_of(results, "x", results.found[0], "accuracy", "m0").figures
    assert "worst" in row_of(results, "x", results.found[0], "auroc", "any").figures


def test_best_point_of_a_value_is_picked_on_validation_and_never_on_test(results: Results) -> None:
    records = [replace(r, params={**r.params, "strategy": "one"}) for r in results.records]
    ranked = replace(results, records=records).best("strategy")["one"]
    by_point: dict[str, list[float]] = {}
    for r in records:
        by_point.setdefault(r.point, []).append(r.metrics["selection/robust_accuracy"])
    assert ranked.point == max(by_point, key=lambda p: mean(by_point[p]))


def test_sweep_of_one_strategy_is_compared_by_the_first_axis_that_varies(results: Results) -> None:
    sizes = {"zero_fill": "4", "mask_token": "8", "skip": "16"}
    own = [
        {**r.params, "strategy": "one", "adapter.rank": sizes[r.params["strategy"]]} for r in results.records
    ]
    records = [replace(r, params=params) for r, params in zip(results.records, own, strict=True)]
    search = replace(results.search, axes={"adapter.rank": [4, 8, 16]})
    found = report_on(replace(results, records=records, search=search))
    assert [table.axis for table in found.tables] == ["adapter.rank"] and len(found.comparisons) == 2
    assert report_on(results).tables[0].axis == "strategy"


def test_values_of_an_axis_are_in_the_order_of_numbers_and_none_is_last(results: Results) -> None:
    names = {"zero_fill": "16", "mask_token": "none", "skip": "2"}
    records = [replace(r, params={**r.params, "rank": names[r.params["strategy"]]}) for r in results.records]
    assert list(replace(results, records=records).best("rank")) == ["2", "16", "none"]


def test_spread_is_the_sample_standard_deviation_and_one_seed_has_none() -> None:
    assert told({0: 0.5, 1: 0.7}) == f"0.600 ± {stdev([0.5, 0.7]):.3f}"
    assert told({0: 0.5}) == "0.500" and told({}) == "–"
    assert told({0: 12345.0}, "trainable_params") == "12,345"


@pytest.mark.parametrize(("figure", "better"), [(0, max), ("drop_at_50", min), ("trainable_params", min)])
def test_best_of_a_column_goes_by_its_direction(report: Report, figure: Any, better: Any) -> None:
    table = report.tables[0]
    means = {row.label: mean(row.values(figure).values()) for row in table.rows}
    assert table.best(figure) == {label for label, m in means.items() if m == better(means.values())}


def test_of_a_score_that_is_better_when_low_the_lowest_is_best(report: Report) -> None:
    table = replace(report.tables[0], higher=False)
    means = {row.label: mean(row.values(50).values()) for row in table.rows}
    assert min(means, key=lambda label: means[label]) in table.best(50)


@pytest.mark.parametrize(
    ("higher", "figure", "better"),
    [
        (True, "drop_at_50", min),  # of a merit the least is lost
        (False, "drop_at_50", max),  # an error that rises drops below zero
        (True, "retention", max),
        (False, "retention", min),
        (True, "worst", max),
        (False, "worst", min),
        (False, "train_seconds", min),
    ],
)
def test_direction_of_a_figure_turns_with_the_score_and_a_costs_does_not(
    report: Report, higher: bool, figure: str, better: Any
) -> None:
    rows = [replace(row, figures={figure: {0: value}}) for row, value in zip(
        report.tables[0].rows, (0.1, 0.3, -0.2), strict=False)]  # fmt: skip
    table = replace(report.tables[0], rows=rows, higher=higher)
    wanted = better((0.1, 0.3, -0.2)[: len(rows)])
    assert table.best(figure) == {row.label for row in rows if row.figures[figure][0] == wanted}


def test_worst_is_of_all_patterns_though_the_trial_logged_only_some(results: Results) -> None:
    standing = results.found[0]
    some = [
        replace(
            r,
            metrics={
                k: v for k, v in r.metrics.items() if not k.startswith("pattern/") or k.endswith("m0.m1")
            },
        )
        for r in standing.records
    ]
    for record in some:
        run = replace(results.run(record))
        missing = replace(run.spec.missing, eval=replace(run.spec.missing.eval, patterns=("m0.m1",)))
        run.spec = replace(run.spec, missing=missing)  # type: ignore[misc]
        found = replace(results, _runs={record.run_id: run})
        full = next(r for r in standing.records if r.run_id == record.run_id)
        for score in ("accuracy", "macro_f1", "auroc"):
            whole = [v for k, v in full.metrics.items() if k.startswith(f"pattern/{score}_has_")]
            table = row_of(found, "x", replace(standing, records=[record]), score, "any")
            assert table.figures["worst"][record.seed] == pytest.approx(min(whole), abs=1e-12)


def test_other_score_and_target_can_be_asked_for(results: Results) -> None:
    found = report_on(results, "macro_f1", "m1", patient=False)
    record = results.found[0].records[0]
    (row,) = (r for r in found.tables[0].rows if r.standing is results.found[0])
    assert row.rates[50][record.seed] == results.curve(record, "macro_f1", "m1")[50]


@pytest.mark.parametrize(
    ("asked", "message"),
    [({"score": "acuracy"}, "Did you mean 'accuracy'"), ({"target": "m9"}, "--target 'm9' was not")],
)
def test_score_or_target_that_is_not_there_is_told(results: Results, asked: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        report_on(results, **asked)


# ---------------------------------------------------------------------------------------------- tests


def test_best_is_compared_with_each_other_one_on_all_seeds(report: Report, results: Results) -> None:
    best = results.found[0].params["strategy"]
    assert {c.one for c in report.comparisons} == {best}
    assert {c.other for c in report.comparisons} == STRATEGIES - {best}
    assert all((c.seeds, c.samples, c.refused) == (2, 40, "") for c in report.comparisons)


def test_difference_is_that_of_the_logged_figures(report: Report, results: Results) -> None:
    robust = {n: s.mean("summary/robust_accuracy") for n, s in results.best("strategy").items()}
    for c in report.comparisons:
        assert c.difference == pytest.approx(robust[c.one] - robust[c.other])


@pytest.mark.parametrize("score", ["accuracy", "auroc"])
def test_band_or_outputs_of_a_trial_are_those_of_its_curve(results: Results, score: str) -> None:
    record = results.found[0].records[0]
    found = measure(results, record, score, "m0")
    if found.score.per_sample:
        curve = results.curve(record, score, "m0")
        assert found.values.mean(axis=1) == pytest.approx([curve[round(100 * r)] for r in found.rates])
    else:
        assert found.values.shape == (3, 40, results.task.out)
    assert list(found.ids) == sorted(found.ids)


def test_intervals_of_a_curve_hold_its_mean(report: Report) -> None:
    for row in report.tables[0].rows:
        band = bands_of(report, row)
        for percent, (low, high) in band.items():
            assert low <= mean(row.rates[percent].values()) <= high


def test_score_that_is_no_mean_is_tested_by_the_bootstrap_and_the_text_says_so(results: Results) -> None:
    found = report_on(results, "macro_f1")
    assert all(not c.by_sample and "bootstrap p" in c.told() for c in found.comparisons)
    assert any("macro_f1 is no mean over samples" in note for note in found.notes)


def test_page_of_a_sweep_leaves_slow_tests_out_and_says_where_they_are(results: Results) -> None:
    found = report_on(results, "macro_f1", patient=False)
    assert not found.comparisons and any("mmx report toy" in note for note in found.notes)


def test_p_values_are_corrected_for_all_comparisons(report: Report) -> None:
    smallest = min(report.comparisons, key=lambda c: c.p)
    assert smallest.corrected == pytest.approx(min(1.0, smallest.p * len(report.comparisons)))


def test_sides_without_a_shared_seed_are_not_compared(results: Results) -> None:
    best = results.best("strategy")
    one, other = list(best)[:2]
    alone = {
        one: replace(best[one], records=best[one].records[:1]),
        other: replace(best[other], records=best[other].records[1:]),
    }
    (found,) = compare_all(results, alone, "accuracy", "any", 0.95)
    assert "share no seed" in found.told() and not found.better and math.isnan(found.p)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"ids": ["x"] * 40}, "test samples differ"),
        ({"targets": None}, "test samples differ"),
        ({"rates": (0.0, 0.1, 0.2)}, "different rates"),
    ],
)
def test_what_is_not_the_same_is_not_paired(results: Results, change: dict[str, Any], told: str) -> None:
    found = measure(results, results.found[0].records[0], "accuracy", "any")
    if "targets" in change:
        change = {"targets": 1 - found.targets}
    with pytest.raises(InputError, match=told):
        compare(Comparison("a", "b"), [found], [replace(found, **change)])


def test_refusals_of_one_reason_share_a_sentence() -> None:
    found = [Comparison("a", n, refused="no") for n in "bc"] + [Comparison("a", "d", refused="never")]
    assert sentences(found) == ["a is not compared with b, c: no", "a is not compared with d: never"]


def test_lost_predictions_are_told_and_the_rest_is_compared(results: Results) -> None:
    lost = changed(results, next(iter(STRATEGIES - {results.found[0].params["strategy"]})), run_id="0" * 32)
    lost._curves.update(results._curves)
    found = compare_all(lost, lost.best("strategy"), "accuracy", "any", 0.95)
    assert sorted(bool(c.refused) for c in found) == [False, True]


FOUND = "95 % interval 0.012 to 0.030; Holm-corrected p"


def sentence(low: float, high: float, corrected: float) -> str:
    difference = (low + high) / 2
    return Comparison("a", "b", difference, low, high, corrected, corrected, seeds=3, samples=900).told()


@pytest.mark.parametrize(
    ("low", "high", "corrected", "begins"),
    [
        (0.012, 0.030, 0.004, f"a is better than b by 0.021 ({FOUND} = 0.004"),
        (-0.030, -0.012, 0.0001, f"b is better than a by 0.021 ({FOUND} < 0.001"),
        (-0.010, 0.030, 0.004, "no difference can be told between a and b (+0.010 for a;"),
        (0.012, 0.030, 0.06, "no difference can be told between a and b"),
    ],
    ids=["better", "worse", "interval over zero", "p too high"],
)
def test_difference_is_told_only_where_interval_and_test_agree(
    low: float, high: float, corrected: float, begins: str
) -> None:
    assert sentence(low, high, corrected).startswith(begins)


# ------------------------------------------------------------------------------------------- warnings


def test_fair_sweep_is_warned_of_nothing_but_its_few_seeds(results: Results) -> None:
    (warning,) = warnings_of(results)
    assert warning.startswith("2 seeds tell little")


def last(results: Results) -> TrialRecord:
    return [r for r in results.records if r.params["strategy"] == "skip"][-1]


def add(results: Results, *records: TrialRecord) -> Results:
    return replace(results, records=[*results.records, *records])


def test_more_tries_of_one_side_are_told(results: Results) -> None:
    more = [replace(r, point="other") for r in results.records if r.params["strategy"] == "skip"]
    assert any("points tried differ" in w and "2 (skip)" in w for w in warnings_of(add(results, *more)))


def test_fewer_seeds_of_one_side_are_told(results: Results) -> None:
    fewer = replace(results, records=[r for r in results.records if r is not last(results)])
    assert any(w.startswith("seeds differ") for w in warnings_of(fewer))
    assert any("unknown" in w for w in warnings_of(fewer))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"masks": "f00d"}, "evaluation masks differ"),
        ({"params": {"training.epochs": "9"}}, "training budgets differ"),
        (
            {"params": {"training.phases.0": "epochs=5", "training.phases.1": "rate=0.1"}},
            "7 epochs of batches of 16 (skip)",
        ),
        ({"reason": "pruned by median at epoch 1"}, "were pruned: skip 2"),
    ],
)
def test_what_was_not_the_same_is_told(results: Results, change: dict[str, Any], told: str) -> None:
    assert any(told in w for w in warnings_of(changed(results, "skip", **change)))


def test_budget_that_the_sweep_varies_is_no_fault(results: Results) -> None:
    search = replace(results.search, axes={"training.epochs": [1, 9]})
    varied = replace(changed(results, "skip", params={"training.epochs": "9"}), search=search)
    assert not any("budget" in w for w in warnings_of(varied))


def test_failed_trials_are_told(results: Results) -> None:
    failed = replace(last(results), state="failed", seed=7, run_id="f")
    assert any("failed: skip 1" in w for w in warnings_of(add(results, failed)))


# ------------------------------------------------------------------------------------ equal parameters


def test_points_that_train_too_much_are_left_out_before_the_best_is_picked(results: Results) -> None:
    sizes = {s.params["strategy"]: s.mean("cost/trainable_params") for s in results.found}
    small = results.restricted(int(min(sizes.values())))
    least = {name for name, size in sizes.items() if size == min(sizes.values())}
    assert {s.params["strategy"] for s in small.found} == least
    assert any("are compared;" in note and "left out" in note for note in report_on(small).notes)


def test_limit_that_leaves_nothing_is_told_with_the_smallest(results: Results) -> None:
    with pytest.raises(InputError, match="the smallest trains"):
        results.restricted(1)


# ---------------------------------------------------------------------------------------------- forms


def test_markdown_has_each_table_and_each_sentence(report: Report) -> None:
    text = markdown(report)
    assert all(c.told() in text for c in report.comparisons) and all(w in text for w in report.warnings)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert sum(line.startswith("| --- ") for line in lines) == 2 * len(report.tables)
    for row in report.tables[0].rows:
        assert f"| {row.label} | {told(row.rates[0])} |" in text


def test_tidy_table_has_a_line_for_each_value_rate_and_seed(report: Report) -> None:
    rows = list(csv.DictReader(io.StringIO(tidy(report))))
    assert tuple(rows[0]) == TIDY
    curve = [r for r in rows if r["figure"] == "curve" and r["axis"] == "strategy"]
    assert len(curve) == 3 * 3 * 2
    values = {row.label: row for row in report.tables[0].rows}
    for r in curve:
        assert float(r["result"]) == values[r["value"]].rates[int(r["percent_missing"])][int(r["seed"])]


def test_folder_of_tables_has_tests_and_patterns(report: Report, tmp_path: Any) -> None:
    names = {path.name for path in write_folder(tmp_path / "new" / "tables", report)}
    assert names == {"tidy.csv", "by_strategy.csv", "tests.csv", "patterns.csv", "warnings.csv"}
    with (tmp_path / "new" / "tables" / "patterns.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 3 * 2 * 3
    with (tmp_path / "new" / "tables" / "tests.csv").open(encoding="utf-8") as file:
        assert [row["told"] for row in csv.DictReader(file)] == [c.told() for c in report.comparisons]


def test_json_holds_everything_and_no_figure_that_json_has_not(report: Report) -> None:
    lost = replace(report, comparisons=[Comparison("a", "b", refused="no")])
    data = json.loads(json.dumps(as_data(lost), allow_nan=False))
    assert data["comparisons"][0]["p"] is None and data["comparisons"][0]["refused"] == "no"
    assert data["tables"][0]["axis"] == "strategy" and set(data["fronts"]) == {
        "cost/trainable_params",
        "cost/train_seconds",
    }


def bodies(text: str) -> list[list[str]]:
    """Give the rows of each tabular."""
    parts = [part.partition(r"\end{tabular}")[0] for part in text.split(r"\begin{tabular}")[1:]]
    return [[line for line in part.splitlines() if line.endswith(r"\\")] for part in parts]


def columns(text: str) -> Sequence[int]:
    return [1 + len(part.partition("}")[0].removeprefix("{l")) for part in text.split(r"\begin{tabular}")[1:]]


def test_latex_has_a_cell_for_each_column_and_closes_what_it_opens(report: Report) -> None:
    text = latex(report)
    for count, rows in zip(columns(text), bodies(text), strict=True):
        assert {line.replace(r"\&", "").count("&") for line in rows} == {count - 1}
    for name in ("table", "tabular"):
        assert text.count(f"\\begin{{{name}}}") == text.count(f"\\end{{{name}}}") == 2 * len(report.tables)
    assert all(text.count(rule) == 2 for rule in (r"\toprule", r"\midrule", r"\bottomrule"))
    lines = [line for line in text.splitlines() if not line.startswith("%")]
    assert all(line.count("{") == line.count("}") and line.count("$") % 2 == 0 for line in lines)


def test_latex_has_the_best_in_bold_and_the_number_of_seeds(report: Report) -> None:
    text = latex(report)
    assert r"\mathbf{" in text and r"\pm" in text and "over 2 seeds" in text
    best = report.tables[0].best(0)
    rows = {line.split(" & ")[0].replace(r"\_", "_"): line.split(" & ")[1] for line in bodies(text)[0][1:]}
    assert {label for label, cell in rows.items() if "mathbf" in cell} == best


def test_latex_shows_what_it_is_given() -> None:
    assert escaped(r"50% of a_b & {c} $x$ #1 ~^ \d – ±") == (
        r"50\% of a\_b \& \{c\} \$x\$ \#1 \textasciitilde{}\textasciicircum{} \textbackslash{}d -- $\pm$"
    )


def test_latex_compiles(report: Report, tmp_path: Any) -> None:
    import shutil
    import subprocess

    if shutil.which("pdflatex") is None:
        pytest.skip("there is no pdflatex")
    head = r"\documentclass{article}\usepackage{booktabs}\begin{document}"
    (tmp_path / "t.tex").write_text(f"{head}\n{latex(report)}\n\\end{{document}}\n", encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)


def test_bands_are_given_for_each_row_of_the_first_table(report: Report) -> None:
    found = {label: set(band) for label, band in all_bands(report).items()}
    assert found.keys() == STRATEGIES and all(percents == {0, 50, 100} for percents in found.values())
