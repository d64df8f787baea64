"""MLflow's own page, opened in a real browser: the prepared view shows robustness curves, named."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmx.builtin.trackers import mlflow_view
from mmx.builtin.trackers.mlflow import Mlflow
from mmx.cli.app import app

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def opened(page: str, folder: Path) -> Iterator[str]:
    """Open a page again and again: the browser's virtual clock may run ahead of a busy server."""
    for budget in (30_000, 60_000, 120_000, 240_000):
        command = [
            *(str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1600,2400"),
            *(f"--user-data-dir={folder}", f"--virtual-time-budget={budget}", "--dump-dom", page),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
        except subprocess.TimeoutExpired:
            continue
        if done.returncode:
            pytest.skip(f"Chromium does not start here: {done.stderr.strip().splitlines()[-1:]}")
        yield done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_prepared_view_shows_a_named_curve_for_each_strategy(mlflow_page: str, tmp_path: Path) -> None:
    series = re.compile(r"(zero_fill|mask_token|skip)[^<]*\(robustness/")
    named, shown = set[str](), ""
    for shown in opened(mlflow_page, tmp_path):
        named = set(series.findall(shown))
        if len(named) == 3:
            break
    assert named == {"zero_fill", "mask_token", "skip"}
    assert "robustness/accuracy_missing_any" in shown


def test_hint_is_given_only_where_the_view_may_not_open(
    finished: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = finished.tracker
    assert tracker.hint("toy") == "" and tracker.hint("nothing") == ""
    monkeypatch.setattr("mlflow.__version__", "9.1.0")
    told = tracker.hint("toy")
    assert "'Group by' strategy" in told and "chart view" in told
    monkeypatch.setattr("mlflow.__version__", "3.17.2")
    monkeypatch.setattr(mlflow_view, "TAG", "another")
    assert "'Group by' strategy" in tracker.hint("toy")


@pytest.mark.parametrize(
    ("version", "known"),
    [("3.15.0", True), ("3.17.2", True), ("3.18.0", False), ("3.14.1", False), ("4.0.0rc1", False)],
)
def test_versions_of_mlflow_whose_page_was_seen(version: str, known: bool) -> None:
    assert mlflow_view.is_known(version) == known


def test_ui_on_a_server_prints_links_and_starts_nothing(
    finished: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mmx.sweep.open_tracker", lambda registry, address: Mlflow(finished.address))
    monkeypatch.setattr("subprocess.call", lambda *given, **more: pytest.fail("a server was started"))
    assert app(["ui", "--store", "http://me:secret@host:5000"], standalone_mode=False) == 0
    told = capsys.readouterr().out
    assert "toy: http://host:5000/#/experiments/" in told and "secret" not in told
