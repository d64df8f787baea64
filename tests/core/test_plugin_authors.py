"""An author's way: a package from a template, its laws tried, installed, used in a sweep."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from _pytest.outcomes import Failed, Skipped, XFailed

from mmx import Component, hookimpl
from mmx.cli import main
from mmx.cli.new_plugin import SUMMARIES
from mmx.cli.open import open_plan
from mmx.errors import PluginError
from mmx.registry import Registry
from mmx.testing import Case, NotHere, cases_of, parametrize_with_checks

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
SLOW = ("strategy", "fusion", "procedure")
"""Kinds whose laws build models by the dozen."""
BROKEN = """
from mmx import Component, hookimpl
from mmx.contracts import Filled, Strategy

class Leaky(Strategy):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def fill(self, tokens, presence, targets):
        raise RuntimeError("there is no way")

@hookimpl
def register_strategies():
    return [Component("leaky", f"{__name__}:Leaky")]
"""


@pytest.fixture
def mmx(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str]]:
    """Run the command in a folder of its own; give its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["mmx", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out + told.err

    return run


Mmx = Callable[..., tuple[int, str]]


# -------------------------------------------------------------------------------------------- plugins new


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.long if k in SLOW else ()) for k in SUMMARIES]
)
def test_new_package_obeys_every_law_of_its_kind(mmx: Mmx, kind: str) -> None:
    assert mmx("plugins", "new", kind, f"my-{kind}")[0] == 0
    code, told = mmx("plugins", "check", f"my_{kind}", "--file", f"my-{kind}/my_{kind}.py", "--json")
    counts = json.loads(told)
    assert code == 0 and counts["failed"] == 0 and counts["passed"] >= 1, told


@pytest.mark.parametrize("kind", SUMMARIES)
def test_sweep_of_a_new_package_can_be_run(mmx: Mmx, tmp_path: Path, kind: str) -> None:
    mmx("plugins", "new", kind, f"my-{kind}")
    sweep = tmp_path / f"my-{kind}" / "sweep.yaml"
    sweep.write_text(f"{sweep.read_text()}plugins: [./my_{kind}.py]\n", encoding="utf-8")
    assert len(open_plan(sweep).cells) == 2


def test_files_of_a_new_package(mmx: Mmx, tmp_path: Path) -> None:
    code, told = mmx("plugins", "new", "strategy", "late_night")
    assert code == 0 and "mmx plugins check late-night" in told
    files = {str(p.relative_to(tmp_path / "late-night")) for p in (tmp_path / "late-night").rglob("*.*")}
    assert files == {
        "pyproject.toml",
        "README.md",
        "sweep.yaml",
        "late_night.py",
        "tests/test_conformance.py",
    }
    text = (tmp_path / "late-night" / "late_night.py").read_text(encoding="utf-8")
    assert "class LateNight(Strategy)" in text and "$" not in text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("strategi", "mine"), "'strategi' is no kind that there is a template for. Did you mean 'strategy'"),
        (("strategy", "My Plugin"), "'My Plugin' is no name for a package"),
        (("strategy", "../mine"), "is no name for a package"),
        (("strategy", "json"), "'json' is a module that is installed here"),
        (("strategy", "torch"), "'torch' is a module that is installed here"),
        (("strategy", "zero-fill"), "there is a strategy 'zero_fill' already"),
        (("strategy", "mine", "--folder", "full"), "'full' is there already and not empty"),
    ],
)
def test_name_that_cannot_be_is_refused_and_nothing_written(
    mmx: Mmx, tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept.txt").write_text("mine", encoding="utf-8")
    code, said = mmx("plugins", "new", *arguments)
    assert code == 2 and told in said
    assert {p.name for p in tmp_path.iterdir()} == {"full"}


# ------------------------------------------------------------------------------------------ plugins check


def test_check_counts_what_it_tried_and_tells_what_broke(mmx: Mmx, tmp_path: Path) -> None:
    (tmp_path / "leaky.py").write_text(BROKEN, encoding="utf-8")
    code, said = mmx("plugins", "check", "leaky", "--file", "leaky.py")
    assert code == 1 and "RuntimeError in fill" in said and "there is no way" in said
    assert "9 laws tried on 1 component(s): 8 failed, 1 passed" in said  # it hides nothing


def test_check_of_a_distribution_tries_all_that_it_offers(mmx: Mmx, tmp_path: Path) -> None:
    (tmp_path / "leaky.py").write_text(BROKEN, encoding="utf-8")
    code, said = mmx("plugins", "check", "leaky.py", "--file", "leaky.py", "--json")
    told = json.loads(said)
    assert code == 1 and (told["run"], told["failed"]) == (9, 8)
    assert {(row["kind"], row["name"]) for row in told["checks"]} == {("strategy", "leaky")}


def test_check_of_what_is_not_there_is_refused(mmx: Mmx) -> None:
    code, said = mmx("plugins", "check", "mask_tokn")
    assert code == 2 and "Did you mean 'mask_token'" in said


def test_check_of_a_plugin_that_cannot_be_used_says_why(mmx: Mmx, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import nothing_of_that_name\n", encoding="utf-8")
    code, said = mmx("plugins", "check", "bad.py", "--file", "bad.py")
    assert code == 3 and "'bad.py' is broken: cannot be imported" in said


# -------------------------------------------------------------------------------------- expected failures


class Offers:
    """A plugin that offers `skip` again, with declarations of its own."""

    def __init__(self, expected: Mapping[str, str]) -> None:
        self.expected = expected

    @hookimpl
    def register_protocols(self) -> list[Component]:
        """Offer a protocol."""
        path = "mmx.builtin.protocols.per_modality:PerModality"
        return [Component("another", path, expected_failures=self.expected)]


def case_of(expected: Mapping[str, str], law: Callable[..., None] | None = None) -> Case:
    registry = Registry()
    registry.add_plugin(Offers(expected), "another", "another", "1")
    (case,) = cases_of(registry, registry.offers[0])
    return case if law is None else Case(case.registry, case.offer, law)


def protocol_keeps_its_word(registry: Any, offer: Any) -> None:
    raise AssertionError("it does not")


def not_here(registry: Any, offer: Any) -> None:
    raise NotHere("no data")


DECLARED = {"protocol_keeps_its_word": "a known gap"}


def test_law_that_is_declared_to_be_broken_fails_nothing() -> None:
    case = case_of(DECLARED, protocol_keeps_its_word)
    assert (case.verdict().state, case.verdict().reason) == ("expected", "a known gap")
    with pytest.raises(XFailed, match="a known gap"):
        case.check()


def test_law_that_holds_although_it_is_declared_broken_is_told() -> None:
    case = case_of(DECLARED)
    assert case.verdict().state == "failed" and "declare no more" in case.verdict().reason
    with pytest.raises(Failed, match="although it is declared not to"):
        case.check()


def test_law_that_is_broken_undeclared_fails_with_its_own_error() -> None:
    case = case_of({}, protocol_keeps_its_word)
    assert case.verdict().state == "failed" and "it does not" in case.verdict().reason
    with pytest.raises(AssertionError, match="it does not"):
        case.check()


def test_law_that_cannot_be_tried_is_skipped_with_the_reason() -> None:
    case = case_of({}, not_here)
    assert (case.verdict().state, case.verdict().reason) == ("skipped", "no data")
    with pytest.raises(Skipped, match="no data"):
        case.check()


def test_declaration_of_a_law_that_does_not_exist_is_refused() -> None:
    with pytest.raises(
        PluginError, match=r"which is no law of its kind\. Did you mean 'protocol_keeps_its_word'"
    ):
        case_of({"protocol_keeps_its_wrd": "why"})


def test_tests_of_a_distribution_that_offers_nothing_do_not_pass() -> None:
    with pytest.raises(RuntimeError, match="'nobody' offers no component"):
        parametrize_with_checks("nobody")


# ------------------------------------------------------------------------------------ packages, installed


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the example packages beside mmx, as pip would, without a network."""
    uv = Path(sys.executable).with_name("uv")
    if not uv.exists() or not shutil.which("uv", path=str(uv.parent)):
        pytest.skip("no uv in this environment: `make setup` brings it")
    copies = tmp_path_factory.mktemp("examples") / "packages"
    shutil.copytree(EXAMPLES, copies, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    place = copies.parent / "site"
    options = ["--no-deps", "--no-build-isolation", "--offline", "--quiet", "--python", sys.executable]
    packages = [str(p) for p in sorted(copies.iterdir()) if p.is_dir()]
    done = subprocess.run(
        [str(uv), "pip", "install", *options, "--target", str(place), *packages],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return copies


def with_site(packages: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(packages.parent / "site"), "OMP_NUM_THREADS": "1"}


def test_installed_examples_are_found(installed: Path) -> None:
    command = [sys.executable, "-m", "mmx", "plugins", "list", "--json"]
    done = subprocess.run(command, env=with_site(installed), capture_output=True, text=True, check=True)
    found = {(row["distribution"], row["kind"], row["name"]) for row in json.loads(done.stdout)}
    assert {("mmx-noise-fill", "strategy", "noise_fill"), ("mmx-patches", "encoder", "patches")} <= found


@pytest.mark.parametrize(
    "name", ["mmx-patches", "mmx-trial-journal", pytest.param("mmx-noise-fill", marks=pytest.mark.long)]
)
def test_tests_of_an_example_pass(installed: Path, name: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(
        command, env=with_site(installed), cwd=installed / name, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def test_sweep_of_an_example_runs_and_the_journal_has_a_line_a_trial(installed: Path, stores: Path) -> None:
    """One sweep, two packages: a strategy, and an observer of its trials."""
    sweep = str(installed / "mmx-noise-fill" / "sweep.yaml")
    command = [sys.executable, "-m", "mmx", "run", sweep, "training.epochs=1", "run.plots=false"]
    env = {**with_site(installed), "MMX_TRIAL_JOURNAL": str(stores / "journal.jsonl")}
    done = subprocess.run(command, env=env, cwd=stores, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (stores / "journal.jsonl").read_text().splitlines()]
    assert sorted((line["strategy"], line["seed"], line["state"]) for line in lines) == [
        (strategy, seed, "done") for strategy in ("noise_fill", "zero_fill") for seed in (0, 1)
    ]


OBSERVER = """
from mmx import hookimpl

@hookimpl
def trial_ended(spec, outcome):
    pass
"""


def test_what_only_observes_is_listed_and_has_no_laws(
    mmx: Mmx, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "watcher.py").write_text(OBSERVER)
    load = Registry.load
    monkeypatch.setattr(Registry, "load", lambda files=(): load(files=[tmp_path / "watcher.py"]))
    assert mmx("plugins", "check", "watcher")[1].startswith("'watcher' only observes")
    assert json.loads(mmx("plugins", "info", "watcher", "--json")[1])["kind"] == "observer"
    assert (
        "watcher" in mmx("plugins", "list")[1]
        and "watcher" not in mmx("plugins", "list", "--kind", "fusion")[1]
    )


def test_no_name_is_cut_off_in_the_list(mmx: Mmx, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    told = mmx("plugins", "list")[1]
    assert all(f" {offer.component.name} " in told for offer in Registry.load().offers)
