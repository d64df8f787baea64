"""A finished run is scored again: what it logged comes back, what else is asked is what a trial would log."""

import csv
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from mmx.builtin.protocols.per_modality import PerModality
from mmx.cli import main
from mmx.config import ComponentSpec, TrialSpec
from mmx.contracts import Task, Tracker, TrialRecord
from mmx.errors import InputError
from mmx.evaluate import Predictions
from mmx.metrics import area
from mmx.registry import Registry
from mmx.runs import PREDICTIONS, SPEC, StoredRun, open_run
from mmx.runs.again import MODEL, STORED, Asked, Found, score_again
from mmx.runs.predictions import write_predictions
from mmx.sweep import Plan, open_tracker
from mmx.tasks import Regression, SingleLabel
from mmx.trial import Bench, run_trial

CPU = torch.device("cpu")
OWN = """
from mmx import Component, hookimpl
from mmx.builtin.protocols.per_sample import PerSample

class Half(PerSample):
    def highest_rate(self, modalities):
        return 0.5

@hookimpl
def register_protocols():
    return [Component("half", f"{__name__}:Half")]
"""


def figures(found: Found) -> dict[str, dict[int, float]]:
    """Name figures as a trial logs them; a trial sums only its primary score up."""
    logged: dict[str, dict[int, float]] = {}
    for target, curves in found.curves.items():
        for score, curve in curves.items():
            logged[f"robustness/{score}_missing_{target}"] = {round(100 * r): v for r, v in curve.items()}
    for score, patterns in found.patterns.items():
        logged |= {f"pattern/{score}_has_{name}": {0: value} for name, value in patterns.items()}
    for place, (score, summary) in enumerate(found.summaries["any"].items()):
        logged[f"summary/robust_{score}"] = {0: summary["robust"]}
        if place == 0:
            rest = {k: v for k, v in summary.items() if k not in ("robust", "area")}
            logged |= {f"summary/{name}": {0: value} for name, value in rest.items()}
    for m, curve in found.realised.items():
        logged[f"missing/realised_rate_{m}"] = {round(100 * r): v for r, v in curve.items()}
    return logged


def of_evaluation(metrics: Mapping[str, Any]) -> dict[str, Any]:
    kinds = ("robustness/", "pattern/", "summary/", "missing/")
    return {name: value for name, value in metrics.items() if name.startswith(kinds)}


LOGGED = Asked(scores=("accuracy", "macro_f1", "auroc"))


@pytest.fixture
def run(finished: Any) -> StoredRun:
    return open_run(finished.tracker, finished.tracker.records("toy")[0].run_id)


@pytest.fixture
def left(tmp_path: Path) -> Callable[..., StoredRun]:
    """Make a run of what a trial leaves, without a store."""

    def make(spec: TrialSpec, predictions: Predictions, task: Task) -> StoredRun:
        (tmp_path / SPEC).write_text(json.dumps(spec.to_dict()), encoding="utf-8")
        write_predictions(tmp_path / PREDICTIONS, predictions, task, "test")
        tracker = Mock(spec=Tracker)
        tracker.fetch.side_effect = lambda run_id, name, folder: tmp_path / name
        return StoredRun(tracker, "toy", TrialRecord("run", spec.point, spec.seed, "done", title="t0"))

    return make


# ------------------------------------------------------------------------------------- what a run has logged


def test_without_options_every_figure_is_the_one_that_the_run_logged(finished: Any) -> None:
    tracker = finished.tracker
    for record in tracker.records("toy"):
        found = score_again(open_run(tracker, record.run_id), LOGGED, finished.plan.registry, CPU)
        wanted = {n: tracker.history(record.run_id, n) for n in of_evaluation(record.metrics)}
        assert figures(found) == wanted
        assert found.masks == record.masks and found.source == STORED and found.samples == 40


def test_stored_predictions_need_neither_model_nor_dataset(
    run: StoredRun, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse = Mock(side_effect=AssertionError("opened"))
    monkeypatch.setattr(Bench, "dataset", refuse)
    monkeypatch.setattr(StoredRun, "model", refuse)
    assert score_again(run, Asked(), registry, CPU).source == STORED


def test_model_stands_in_for_predictions_that_are_gone(
    run: StoredRun, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = score_again(run, Asked(), registry, CPU)
    fetch = run.tracker.fetch

    def without(run_id: str, name: str, folder: Path) -> Path:
        if name == PREDICTIONS:
            raise InputError("gone")
        return fetch(run_id, name, folder)

    monkeypatch.setattr(run.tracker, "fetch", without)
    again = StoredRun(run.tracker, run.sweep, run.record)
    found = score_again(again, Asked(), registry, CPU)
    assert found == replace(stored, source=MODEL)


def test_validation_split_gives_what_selection_read(run: StoredRun, registry: Registry) -> None:
    found = score_again(run, replace(LOGGED, split="val"), registry, CPU)
    metrics = run.record.metrics
    selected = {n.removeprefix("selection/"): v for n, v in metrics.items() if n.startswith("selection/")}
    logged = {n.removeprefix("summary/"): v[0] for n, v in figures(found).items() if n.startswith("summary/")}
    assert logged == selected and found.source == MODEL and found.samples == 24


@pytest.mark.parametrize("seed", [0, 1])
def test_run_whose_samples_lack_modalities_by_nature_comes_back(
    plan_toy: Callable[..., Plan], left: Callable[..., StoredRun], registry: Registry, seed: int
) -> None:
    plan = plan_toy({"dataset.natural_missing": 0.4, "training.epochs": 1, "missing.seed": seed})
    spec = plan.cells[0].spec
    outcome = run_trial(spec, plan.bench, CPU)
    assert outcome.predictions is not None
    run = left(spec, outcome.predictions, plan.bench.dataset(spec.dataset).task)
    found = score_again(run, LOGGED, registry, CPU)
    assert found.source == STORED and figures(found) == of_evaluation(outcome.metrics)
    assert found.masks == outcome.mask_digest and list(run.stored[0].ids) == list(outcome.predictions.ids)


def test_exact_curve_is_rounded_as_it_always_was(run: StoredRun, registry: Registry) -> None:
    found = score_again(run, Asked(rates=(0.1, 0.3, 0.7)), registry, CPU)
    predictions = run.stored[0]
    hits = {p: float(np.sum(o.argmax(axis=1) == predictions.targets)) for p, o in predictions.outputs.items()}
    for rate, value in found.curves["any"]["accuracy"].items():
        weights = PerModality().weights(rate, predictions.modalities)
        total = 0.0
        for pattern, weight in weights.items():
            total += weight * hits[pattern]
        assert value == total / 40


# --------------------------------------------------------------------------------------- what else is asked


@pytest.mark.parametrize(
    ("name", "options", "rates"),
    [
        ("per_sample", {}, (0.0, 0.5, 1.0)),
        ("per_sample", {"which": "m1"}, (0.0, 0.3)),
        ("per_cell", {}, (0.0, 0.25, 0.5)),
        ("patterns", {"probabilities": {"m0": 0.2, "m0.m1": 0.8}}, (0.0, 1.0)),
    ],
)
def test_another_protocol_gives_what_a_trial_of_it_logs(
    plan_toy: Callable[..., Plan],
    left: Callable[..., StoredRun],
    registry: Registry,
    name: str,
    options: dict[str, Any],
    rates: tuple[float, ...],
) -> None:
    # Trained without absence, the models of both protocols are one and the same.
    spec = plan_toy({"missing.train.rate": 0.0}).cells[0].spec
    asked = {"name": name, **options}
    other = plan_toy(
        {"missing.train.rate": 0.0, "missing.protocol": asked, "missing.eval.rates": list(rates)}
    )
    bench = other.bench
    outcome = run_trial(spec, bench, CPU)
    assert outcome.predictions is not None
    run = left(spec, outcome.predictions, bench.dataset(spec.dataset).task)
    wanted = run_trial(other.cells[0].spec, bench, CPU)
    question = replace(LOGGED, protocol=ComponentSpec(name, options), rates=rates)
    found = score_again(run, question, registry, CPU)
    assert figures(found) == of_evaluation(wanted.metrics)
    assert found.masks == wanted.mask_digest != outcome.mask_digest


def test_more_rates_leave_the_others_as_they_are(run: StoredRun, registry: Registry) -> None:
    few = score_again(run, Asked(), registry, CPU)
    many = score_again(run, Asked(rates=(0.0, 0.25, 0.5, 0.75, 1.0)), registry, CPU)
    for target, curves in few.curves.items():
        for score, curve in curves.items():
            for rate, value in curve.items():
                assert many.curves[target][score][rate] == value
    assert many.patterns == few.patterns


def test_seed_draws_other_masks_and_leaves_exact_curves(run: StoredRun, registry: Registry) -> None:
    own, other = (score_again(run, Asked(seed=seed), registry, CPU) for seed in (None, 7))
    assert other.masks != own.masks and other.missing.seed == 7
    assert other.curves["any"]["accuracy"] == own.curves["any"]["accuracy"]
    assert other.curves["any"]["auroc"] != own.curves["any"]["auroc"]


def test_scores_targets_and_patterns_are_those_asked_for(run: StoredRun, registry: Registry) -> None:
    asked = Asked(scores=("balanced_accuracy", "accuracy"), targets=("m1", "m1"), patterns=("m1",))
    found = score_again(run, asked, registry, CPU)
    assert list(found.curves) == ["m1"] and list(found.curves["m1"]) == ["balanced_accuracy", "accuracy"]
    assert {score: list(p) for score, p in found.patterns.items()} == {
        "balanced_accuracy": ["m1"],
        "accuracy": ["m1"],
    }
    assert found.masks == "" and not found.realised and "worst" not in found.summaries["m1"]["accuracy"]


def test_every_score_of_the_task_is_told_without_names(run: StoredRun, registry: Registry) -> None:
    task = SingleLabel(4)
    names = [s.name for s in (*task.scores, *task.more_scores)]
    assert [s.name for s in score_again(run, Asked(), registry, CPU).scores] == names


def test_summary_of_each_target_is_that_of_its_curve(run: StoredRun, registry: Registry) -> None:
    found = score_again(run, Asked(rates=(1.0, 0.0, 0.5)), registry, CPU)
    for target, curves in found.curves.items():
        for score in found.scores:
            curve, summary = curves[score.name], found.summaries[target][score.name]
            assert summary["area"] == area(curve) == pytest.approx((curve[0] + 2 * curve[0.5] + curve[1]) / 4)
            assert summary["robust"] == pytest.approx(sum(curve.values()) / 3)
            assert summary["clean"] == curve[0] and summary["drop_at_50"] == curve[0] - curve[0.5]
    worst = found.summaries["any"]["expected_calibration_error"]["worst"]
    assert worst == max(found.patterns["expected_calibration_error"].values())


def test_protocol_that_lets_one_modality_go_further_takes_such_rates(
    run: StoredRun, registry: Registry
) -> None:
    asked = Asked(protocol=ComponentSpec("per_cell"), targets=("m0",), rates=(0.0, 1.0))
    found = score_again(run, asked, registry, CPU)
    only_m1 = found.patterns["accuracy"]["m1"]
    assert found.curves["m0"]["accuracy"][1.0] == pytest.approx(only_m1)


def test_task_of_a_stranger_is_asked_of_the_dataset(
    plan_toy: Callable[..., Plan], left: Callable[..., StoredRun], registry: Registry
) -> None:
    class Own(SingleLabel):
        """Not a task that a table of predictions names."""

    plan = plan_toy({"training.epochs": 1})
    spec = plan.cells[0].spec
    outcome = run_trial(spec, plan.bench, CPU)
    assert outcome.predictions is not None
    run = left(spec, outcome.predictions, Own(4))
    found = score_again(run, LOGGED, registry, CPU)
    assert found.source == STORED and figures(found) == of_evaluation(outcome.metrics)


def test_pattern_that_nobody_has_and_score_that_does_not_apply_are_not_defined(
    plan_toy: Callable[..., Plan], left: Callable[..., StoredRun], registry: Registry
) -> None:
    from mmx.cli.eval import told

    has = torch.arange(6) % 2 == 0
    values = np.arange(6.0)[:, None] * 10
    outputs = {
        frozenset({"m0"}): np.where(has[:, None].numpy(), values, np.nan),
        frozenset({"m1"}): np.where(has[:, None].numpy(), np.nan, values),
        frozenset({"m0", "m1"}): np.full((6, 1), np.nan),
    }
    ids = [f"s{i}" for i in range(6)]
    predictions = Predictions(ids, values, {"m0": has, "m1": ~has}, outputs, ("m0", "m1"))
    run = left(plan_toy().cells[0].spec, predictions, Regression())
    found = score_again(run, Asked(), registry, CPU)
    assert found.curves["any"]["mae"][1.0] == 0 and found.patterns["mae"]["m1"] == 0
    assert np.isnan(found.patterns["mae"]["m0.m1"]) and np.isnan(found.curves["any"]["acc7"][0.0])
    written = told(run, found)
    assert json.loads(json.dumps(written, allow_nan=False))["patterns"]["mae"]["m0.m1"] is None


# --------------------------------------------------------------------------------------------- the command


@pytest.fixture
def mmx_eval(
    finished: Any, run: StoredRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the command on a run of the toy sweep."""

    def call(*options: str, name: str = "", store: str = "") -> tuple[int, str, str]:
        given = [name or run.run_id, "--store", store or finished.address, "--device", "cpu", *options]
        monkeypatch.setattr(sys, "argv", ["mmx", "eval", *given])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return int(ended.value.code or 0), out, err

    return call


Command = Callable[..., tuple[int, str, str]]


def test_command_prints_tables_and_where_figures_come_from(mmx_eval: Command, run: StoredRun) -> None:
    code, out, _ = mmx_eval(name=run.record.title)
    assert code == 0
    assert "40 samples of the test split, from stored predictions" in out
    assert "protocol per_modality, mask seed 0, the run's own masks" in out
    accuracy = next(line for line in out.splitlines() if line.split()[:1] == ["accuracy"])
    history = run.tracker.history(run.run_id, "robustness/accuracy_missing_any")
    assert accuracy.split()[1:] == [f"{history[percent]:.4f}" for percent in (0, 50, 100)]
    assert "expected_calibration_error ↓" in out and "↓ lower is better" in out


def test_json_has_all_figures(mmx_eval: Command, run: StoredRun) -> None:
    code, out, _ = mmx_eval("--json", "--rates", "0,0.25", "--protocol", "{name: per_sample, which: m1}")
    facts = json.loads(out)
    assert code == 0 and facts["run"] == run.run_id and facts["source"] == "stored predictions"
    assert facts["protocol"] == {"name": "per_sample", "which": "m1"}
    assert set(facts["curves"]) == set(facts["summary"]) == {"any", "m0", "m1"}
    assert set(facts["curves"]["any"]["accuracy"]) == {"0.0", "0.25"}
    assert facts["curves"]["any"] == facts["curves"]["m1"] and facts["realised_rates"]["m0"]["0.25"] == 0
    assert set(facts["patterns"]["auroc"]) == {"m0.m1", "m0", "m1"}
    assert facts["higher_is_better"]["expected_calibration_error"] is False


def test_table_of_all_figures_is_written(mmx_eval: Command, tmp_path: Path) -> None:
    _, out, _ = mmx_eval("--json", "--csv", str(tmp_path / "figures.csv"))
    facts = json.loads(out)
    with (tmp_path / "figures.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    curves = {(r["score"], r["target"], r["rate"]): float(r["value"]) for r in rows if r["figure"] == "curve"}
    assert len(curves) == 8 * 3 * 3
    assert curves["macro_f1", "m0", "0.5"] == facts["curves"]["m0"]["macro_f1"]["0.5"]
    assert {r["figure"] for r in rows} == {"curve", "pattern", *facts["summary"]["any"]["accuracy"]}


@pytest.mark.parametrize(("name", "head"), [("curves.png", b"\x89PNG"), ("curves.svg", b"<?xml")])
def test_curves_are_drawn(mmx_eval: Command, tmp_path: Path, name: str, head: bytes) -> None:
    code, out, _ = mmx_eval("--plot", str(tmp_path / name), "--scores", "accuracy,auroc")
    drawn = (tmp_path / name).read_bytes()
    assert code == 0 and drawn.startswith(head) and f"written: {tmp_path / name}" in out
    if name.endswith("svg"):
        assert b"auroc" in drawn and b"m1" in drawn


def test_protocol_of_a_plugin_file_is_taken(mmx_eval: Command, tmp_path: Path) -> None:
    (tmp_path / "half.py").write_text(OWN, encoding="utf-8")
    plugin = ("--plugin", str(tmp_path / "half.py"), "--protocol", "half")
    code, out, _ = mmx_eval(*plugin, "--rates", "0,0.5")
    assert code == 0 and "protocol half" in out
    code, _, err = mmx_eval(*plugin, "--rates", "0.6")
    assert code == 2 and "rate 0.6 does not exist under protocol 'half'" in err and "0.5" in err


MISTAKES = {
    "score": (["--scores", "acuracy"], "no score 'acuracy'. Did you mean 'accuracy'?"),
    "no_scores": (["--scores", ","], "--scores ',' names nothing"),
    "rates_text": (["--rates", "0,half"], "--rates '0,half' is no list of fractions"),
    "no_rates": (["--rates", ","], "--rates ',' names nothing"),
    "no_targets": (["--targets", ""], "--targets '' names nothing"),
    "no_patterns": (["--patterns", ","], "--patterns ',' names nothing"),
    "rate_above_one": (["--rates", "0,50"], "rate 50 is no fraction between 0 and 1"),
    "rate_nan": (["--rates", "nan"], "rate nan is no fraction"),
    "rate_too_high": (["--rates", "0.7", "--protocol", "per_cell"], "the highest is 0.5"),
    "rates_of_the_run": (["--protocol", "per_cell"], "rate 1 does not exist under protocol 'per_cell'"),
    "target": (["--targets", "any,m9"], "'m9' is no target."),
    "pattern": (["--patterns", "m1.m0"], "'m1.m0' is no pattern of what is present. Known: m0, m0.m1, m1."),
    "split": (["--split", "tset"], "'tset' is no split. Did you mean 'test'?"),
    "protocol": (["--protocol", "per_modalty"], "unknown protocol 'per_modalty'. Did you mean"),
    "protocol_option": (["--protocol", "{name: per_sample, whch: m0}"], "no option 'whch'"),
    "protocol_option_lacking": (["--protocol", "patterns"], "needs the option 'probabilities'"),
    "protocol_yaml": (["--protocol", "{name: per_sample"], "is no YAML"),
    "protocol_no_name": (["--protocol", "{which: m0}"], "is no component"),
    "protocol_value": (["--protocol", "{name: patterns, probabilities: {m0: 0.4}}"], "add up to 0.4"),
    "picture": (["--plot", "curves.txt"], "is no picture"),
    "folder": (["--csv", "nowhere/figures.csv"], "there is no folder 'nowhere'"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistake_exits_with_two_and_one_message(mmx_eval: Command, case: str) -> None:
    options, message = MISTAKES[case]
    code, out, err = mmx_eval(*options)
    assert (code, out) == (2, "") and message in err and err.startswith("mmx: ")


def test_unknown_run_exits_with_two(mmx_eval: Command) -> None:
    code, _, err = mmx_eval(name="t9999-nothing-s0")
    assert code == 2 and "'t9999-nothing-s0' is no trial" in err


def test_run_that_has_not_finished_exits_with_two(
    mmx_eval: Command, stores: Path, registry: Registry
) -> None:
    address = f"sqlite:///{stores}/mlflow.db"
    tracker = open_tracker(registry, address)
    tracker.open_sweep("unfinished", {})
    tracker.open_trial("t0000-skip-s0", TrialRecord("", "point", 0, "running"))
    code, _, err = mmx_eval(name="t0000-skip-s0", store=address)
    assert code == 2 and "is running; only finished ones have results" in err
