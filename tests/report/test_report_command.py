"""`mmx report`: sweeps by file and by name, forms, places, and what is told of a user's mistakes."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmx.cli import main


class Called:
    """How a call of the command ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def call(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Callable[..., Called]:
    def run(*arguments: str) -> Called:
        monkeypatch.setattr(sys, "argv", ["mmx", "report", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        return Called(int(ended.value.code or 0), told.out, told.err)

    return run


Call = Callable[..., Called]


def test_sweep_is_found_by_its_name_and_told_as_markdown(call: Call) -> None:
    found = call("toy")
    assert found.code == 0 and found.out.startswith("# toy: accuracy as any modality goes missing")
    assert "## Paired tests" in found.out


def test_sweep_is_found_by_its_file_and_gives_the_same(
    call: Call, here: Path, finished: Any, toy: Callable[..., dict[str, Any]]
) -> None:
    search = {"axes": {"strategy.name": ["zero_fill", "mask_token", "skip"]}, "seeds": [0, 1]}
    study = {"study": f"sqlite:///{finished.folder}/optuna.db"}
    (here / "sweep.yaml").write_text(json.dumps(toy({"search": search, "store": study})))
    assert call("sweep.yaml").out == call("toy").out
    other = call("sweep.yaml", "training.epochs=7")
    assert other.code == 2 and "has no finished trial yet" in other.err


def test_each_form_can_be_printed(call: Call) -> None:
    assert call("toy", "--html").out.startswith("<!doctype html>")
    assert call("toy", "--csv").out.startswith("axis,value,point,")
    assert r"\begin{tabular}" in call("toy", "--latex").out
    assert call("toy", "--markdown").out == call("toy").out
    assert json.loads(call("toy", "--json").out)["sweep"] == "toy"


def test_form_is_written_to_a_place(call: Call, here: Path) -> None:
    assert call("toy", "--html", "--out", "page.html").out.strip() == "written: page.html"
    assert (here / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "tables in tables" in call("toy", "--csv", "--out", "tables").out
    assert (here / "tables" / "tidy.csv").exists()


def test_score_target_confidence_and_limit_are_heard(call: Call) -> None:
    found = json.loads(call("toy", "--json", "--score", "auroc", "--target", "m0", "--confidence", "0.9").out)
    assert (found["score"], found["target"], found["confidence"]) == ("auroc", "m0", 0.9)
    smallest = json.loads(call("toy", "--json", "--max-trainable-params", "1000000").out)
    assert any("1,000,000" in note for note in smallest["notes"])


def test_all_are_tested_against_a_control(call: Call) -> None:
    against = {
        name: json.loads(call("toy", "--json", "--against", name).out)["comparisons"]
        for name in ("zero_fill", "skip")
    }
    assert {c["one"] for c in against["zero_fill"]} == {"zero_fill"}
    (one,) = [c for c in against["zero_fill"] if c["other"] == "skip"]
    (back,) = [c for c in against["skip"] if c["other"] == "zero_fill"]
    assert one["difference"] == pytest.approx(-back["difference"]) and one["p"] == back["p"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["tyo"], "no sweep file and no sweep of the store. Did you mean 'toy'?"),
        (["toy", "training.epochs=3"], "'training.epochs=3' changes a sweep file"),
        (["nothing.yaml"], "cannot read sweep file 'nothing.yaml'"),
        (["toy", "--html", "--csv"], "--html and --csv are two forms"),
        (["toy", "--confidence", "95"], "--confidence 95 is not between 0.5 and 1"),
        (["toy", "--score", "acc"], "--score 'acc' has no curve here"),
        (["toy", "--target", "image"], "--target 'image' was not evaluated. Known: any, m0, m1."),
        (["toy", "--against", "skp"], "--against 'skp' is no value of the first table. Did you mean 'skip'?"),
        (["toy", "--max-trainable-params", "2"], "no point of 'toy' trains so few"),
        (["toy", "--out", "no/such/place.md"], "'no/such/place.md' cannot be written"),
    ],
)
def test_mistake_is_told_in_one_line(call: Call, arguments: list[str], told: str) -> None:
    found = call(*arguments)
    assert found.code == 2 and told in found.err and "Traceback" not in found.err


def test_sweep_without_a_finished_trial_is_told(
    call: Call, here: Path, stores: Path, toy: Callable[..., dict[str, Any]]
) -> None:
    (stores / "sweep.yaml").write_text(json.dumps(toy({})))
    found = call("sweep.yaml", "--store", f"sqlite:///{stores}/mlflow.db")
    assert found.code == 2 and "'toy' has no finished trial yet" in found.err


def test_on_a_terminal_markdown_is_laid_out(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    found = call("toy").out
    assert "zero_fill" in found and "| --- |" not in found


def test_help_has_an_example(call: Call) -> None:
    assert "Example: mmx report sweep.yaml" in call("--help").out
