"""The command: exit codes, one clear message for a user's mistake, and the shapes that scripts rely on."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from mmx.cli import main
from mmx.cli.app import app
from mmx.cli.run import parse_duration
from mmx.errors import InputError

KINDS = {"encoder", "dataset", "strategy", "fusion", "adapter", "procedure", "protocol", "tracker"}
FAILING = """
from mmx import Component, hookimpl
from mmx.contracts import Filled, Strategy

class Failing(Strategy):
    def fill(self, tokens, presence, targets):
        if self.training:
            raise ValueError("always")
        return Filled(tokens)

@hookimpl
def register_strategies():
    return [Component("failing", f"{__name__}:Failing")]
"""


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed."""
        return json.loads(self.out)


@pytest.fixture
def mmx(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run the command in this process."""

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["mmx", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Done(int(ended.value.code or 0), out, err)

    return run


@pytest.fixture
def sweep(stores: Path, toy: Callable[..., dict[str, Any]]) -> Callable[..., str]:
    """Write the toy sweep, with changes, and give its path."""

    def write(changes: dict[str, Any] | None = None) -> str:
        (stores / "failing.py").write_text(FAILING, encoding="utf-8")
        small = {"training.epochs": 1, **(changes or {})}
        (stores / "sweep.yaml").write_text(json.dumps(toy(small)), encoding="utf-8")
        return "sweep.yaml"

    return write


Mmx = Callable[..., Done]
Write = Callable[..., str]
MISSING = {"done": 0, "missing": 1, "failed": 0, "running": 0}


def broken_distribution(folder: Path) -> Path:
    """Install a distribution whose plugin cannot be imported, by what pip would leave."""
    info = folder / "site" / "mmx_bad-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mmx-bad\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mmx]\nbad = no_such_module_at_all\n")
    return info.parent


# -------------------------------------------------------------------------------------------------- help


def commands() -> Iterator[tuple[str, Any]]:
    def walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        yield name, command
        for inner, found in getattr(command, "commands", {}).items():
            yield from walk(f"{name} {inner}", found)

    yield from walk("mmx", typer.main.get_command(app))


@pytest.mark.parametrize(("name", "command"), commands(), ids=lambda v: v if isinstance(v, str) else "")
def test_every_commands_help_shows_an_example(mmx: Mmx, name: str, command: Any) -> None:
    done = mmx(*name.split()[1:], "--help")
    assert done.code == 0 and "Example: mmx" in done.out


@pytest.mark.parametrize("arguments", [["--help"], ["plugins", "list", "--json"]], ids=str)
def test_help_and_listing_import_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys; from mmx.cli import main\n"
        f"sys.argv = ['mmx', *{arguments}]\n"
        "try: main()\n"
        "finally: sys.stderr.write(str([m for m in ('torch', 'mlflow', 'peft') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]"


def test_version_is_told(mmx: Mmx) -> None:
    from mmx import __version__

    assert mmx("--version").out.strip() == f"mmx {__version__}"


# ------------------------------------------------------------------------------------------- exit codes


def test_sweep_that_ends_well_exits_with_zero(mmx: Mmx, sweep: Write) -> None:
    done = mmx("run", sweep())
    assert done.code == 0 and "1 done" in done.out
    again = mmx("run", "sweep.yaml", "--json")
    assert again.json["counts"]["done"] == 1 and again.json["sweep"] == "toy"
    assert again.json["leaderboard"][0]["seeds"] == 1


def test_call_that_its_limit_ended_exits_with_zero(mmx: Mmx, sweep: Write) -> None:
    done = mmx("run", sweep(), "--max-trials", "0", "--json")
    assert done.code == 0 and done.json["counts"] == MISSING


def test_call_that_its_time_ended_exits_with_zero(mmx: Mmx, sweep: Write) -> None:
    assert mmx("run", sweep(), "--timeout", "0s").code == 0


def test_failed_trials_exit_with_one(mmx: Mmx, sweep: Write) -> None:
    done = mmx("run", sweep({"plugins": ["./failing.py"], "strategy": "failing"}), "--retry-failed", "1")
    assert done.code == 1 and "ValueError: always" in done.out and "1 failed" in done.out


MISTAKES: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "file": ({}, ["run", "no_such.yaml"], "no_such.yaml"),
    "key": ({"trainng": 1}, ["run", "sweep.yaml"], "Did you mean 'training'"),
    "name": ({"strategy": "zero_fil"}, ["run", "sweep.yaml"], "Did you mean 'zero_fill'"),
    "override": ({}, ["run", "sweep.yaml", "training.epoch=3"], "Did you mean 'epochs'"),
    "no override": ({}, ["run", "sweep.yaml", "epochs"], "no key=value"),
    "device": ({}, ["run", "sweep.yaml", "--device", "tpu"], "'tpu'"),
    "time": ({}, ["run", "sweep.yaml", "--timeout", "soon"], "'soon'"),
    "store": ({}, ["run", "sweep.yaml", "--store", "file:mlruns"], "sqlite:///"),
    "option": ({}, ["run", "sweep.yaml", "--bogus"], "--bogus"),
    "command": ({}, ["rnu"], "rnu"),
    "argument": ({}, ["run"], "sweep"),
    "plugin file": ({"plugins": ["./nowhere.py"]}, ["run", "sweep.yaml"], "nowhere.py"),
    "component": ({}, ["plugins", "info", "zero_fil"], "Did you mean 'zero_fill'"),
    "kind": ({}, ["plugins", "list", "--kind", "strategies"], "Did you mean 'strategy'"),
    "dataset": ({}, ["data", "info", "digts"], "Did you mean 'digits'"),
    "list": ({"search": {"objective": ["summary/worst"]}}, ["run", "sweep.yaml"], "search.objective"),
    "option type": ({"adapter": {"name": "lora", "targets": 3}}, ["run", "sweep.yaml"], "adapter.targets"),
    "size": ({"fusion": {"name": "concat", "hidden": -3}}, ["run", "sweep.yaml"], "concat"),
    "data": ({"dataset.features": 2}, ["run", "sweep.yaml"], "features"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_users_mistake_exits_with_two_and_one_message(mmx: Mmx, sweep: Write, case: str) -> None:
    changes, arguments, told = MISTAKES[case]
    sweep(changes)
    done = mmx(*arguments)
    assert done.code == 2 and told in done.err


def test_init_does_not_write_over_a_file(mmx: Mmx, sweep: Write) -> None:
    assert mmx("init", sweep()).code == 2


def test_broken_one_off_file_exits_with_three(mmx: Mmx, sweep: Write, stores: Path) -> None:
    sweep({"plugins": ["./broken.py"]})
    (stores / "broken.py").write_text("1 / 0", encoding="utf-8")
    done = mmx("run", "sweep.yaml", "--plan")
    assert done.code == 3 and "division by zero" in done.err


def test_broken_plugin_is_listed_and_hurts_nobody(
    mmx: Mmx, sweep: Write, stores: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(broken_distribution(stores)))
    listed = mmx("plugins", "list", "--json")
    (row,) = [r for r in listed.json if r["state"] == "broken"]
    assert listed.code == 0
    assert row["distribution"] == "mmx-bad" and "no_such_module_at_all" in row["reason"]
    assert mmx("run", sweep(), "--plan").code == 0


def test_name_that_a_broken_plugin_may_hold_exits_with_three(
    mmx: Mmx, sweep: Write, stores: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(broken_distribution(stores)))
    done = mmx("run", sweep({"strategy": "quantum"}))
    assert done.code == 3 and "mmx-bad" in done.err


def test_strict_plugins_refuses_a_broken_one(
    mmx: Mmx, sweep: Write, stores: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(broken_distribution(stores)))
    assert mmx("run", sweep(), "--plan", "--strict-plugins").code == 3


def test_interrupt_exits_with_130_and_keeps_what_was_finished(
    mmx: Mmx, sweep: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmx.sweep import attempt

    plain, calls = attempt.run_trial, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(*arguments)

    monkeypatch.setattr(attempt, "run_trial", interrupted)
    assert mmx("run", sweep({"search": {"seeds": [0, 1]}})).code == 130
    monkeypatch.setattr(attempt, "run_trial", plain)
    counts = mmx("status", "sweep.yaml", "--json").json["counts"]
    assert counts["done"] == 1 and counts["running"] == 0
    assert mmx("run", "sweep.yaml").code == 0


# --------------------------------------------------------------------------------------------------- JSON


def test_plan_as_json_has_the_promised_shape(mmx: Mmx, sweep: Write) -> None:
    path = sweep({"search": {"axes": {"strategy.name": ["skip", "zero_fill"]}, "seeds": [0, 1]}})
    found = mmx("run", path, "--plan", "--json").json
    assert found["counts"] == {"done": 0, "missing": 4, "failed": 0, "running": 0}
    assert [(p["seed"], p["state"]) for p in found["points"]] == [(0, "missing"), (1, "missing")] * 2
    assert all({"point", "seed", "state", "spec"} <= set(p) for p in found["points"])
    assert len({p["point"] for p in found["points"]}) == 2
    assert found["points"][0]["spec"]["strategy"]["name"] == "skip"


def test_plan_of_a_tuned_sweep_lists_its_whole_budget(mmx: Mmx, sweep: Write) -> None:
    tune = {"training.learning_rate": {"low": 0.001, "high": 0.1}}
    path = sweep({"search": {"tune": tune, "trials_per_cell": 3, "seeds": [0, 1]}})
    assert mmx("run", path, "--plan", "--json").json["counts"]["missing"] == 6


def test_plan_tells_parameters_and_runs_nothing(mmx: Mmx, sweep: Write) -> None:
    done = mmx("run", sweep(), "--plan")
    assert "1 missing" in done.out and "trainable" in done.out
    assert mmx("status", "sweep.yaml", "--json").json["counts"] == MISSING


def test_status_as_json_has_the_promised_shape(mmx: Mmx, sweep: Write) -> None:
    sweep()
    assert mmx("status", "sweep.yaml", "--json").json == {"sweep": "toy", "counts": MISSING, "best": None}
    mmx("run", "sweep.yaml")
    found = mmx("status", "sweep.yaml", "--json").json
    assert set(found) == {"sweep", "counts", "best"} and found["counts"]["done"] == 1
    assert found["best"]["strategy"] == "zero_fill"
    assert [f["sweep"] for f in mmx("status", "--json").json] == ["toy"]


def test_status_of_an_empty_store_says_so(mmx: Mmx, stores: Path) -> None:
    assert "no sweeps" in mmx("status").out


def test_list_of_plugins_as_json_has_the_promised_shape(mmx: Mmx) -> None:
    rows = mmx("plugins", "list", "--json").json
    wanted = {"name", "kind", "distribution", "version", "summary", "state", "reason"}
    assert all(wanted <= set(r) for r in rows)
    assert {r["kind"] for r in rows} == KINDS and {r["state"] for r in rows} == {"ok"}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_list_of_one_kind_holds_only_that(mmx: Mmx, kind: str) -> None:
    assert {r["kind"] for r in mmx("plugins", "list", "--kind", kind, "--json").json} == {kind}


def test_disabled_plugins_are_shown_with_all(mmx: Mmx, stores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(broken_distribution(stores)))
    monkeypatch.setenv("MMX_DISABLE_PLUGINS", "mmx-bad")
    assert all(r["state"] == "ok" for r in mmx("plugins", "list", "--json").json)
    states = {r["distribution"]: r["state"] for r in mmx("plugins", "list", "--json", "--all").json}
    assert states["mmx-bad"] == "disabled"


def test_info_of_a_plugin_adds_path_parameters_and_paper(mmx: Mmx) -> None:
    found = mmx("plugins", "info", "lora", "--json").json
    (row,) = found if isinstance(found, list) else [found]
    assert row["path"] == "mmx.builtin.adapters.lora:Lora" and "hu2022lora" in row["paper"]
    parameters = {p["name"]: p for p in row["parameters"]}
    assert parameters["rank"]["type"] == "int" and parameters["rank"]["default"] == 8


def test_list_of_datasets_names_the_built_in_ones(mmx: Mmx) -> None:
    assert {"digits", "toy_world"} <= {r["name"] for r in mmx("data", "list", "--json").json}
    assert "digits" in mmx("data", "list").out


def test_info_of_a_dataset_shows_its_card(mmx: Mmx) -> None:
    found = mmx("data", "info", "digits", "--json").json
    assert found["card"]["licence"] and found["card"]["source"]
    assert "licence" in mmx("data", "info", "digits").out


# ------------------------------------------------------------------------------------------------- others


@pytest.mark.parametrize("options", [[], ["--toy"]], ids=["digits", "toy"])
def test_sweep_that_init_writes_can_be_planned(mmx: Mmx, stores: Path, options: list[str]) -> None:
    assert mmx("init", *options).code == 0
    found = mmx("run", "sweep.yaml", "--plan", "--json")
    assert found.code == 0 and found.json["counts"]["missing"] > 0


def test_cite_prints_the_papers_of_what_a_sweep_uses(mmx: Mmx, sweep: Write) -> None:
    out = mmx("cite", sweep({"strategy": "mask_token", "adapter": {"name": "lora", "rank": 2}})).out
    assert {"reza2025cmpt", "hu2022lora", "williams2010nonnegative"} <= {
        line.split("{")[1].rstrip(",") for line in out.splitlines() if line.startswith("@")
    }


def test_cite_counts_every_choice_of_an_axis(mmx: Mmx, sweep: Write) -> None:
    out = mmx("cite", sweep({"search": {"axes": {"strategy.name": ["skip", "mask_token"]}}})).out
    assert "reza2025cmpt" in out and "hu2022lora" not in out


def test_doctor_finds_this_installation_well(mmx: Mmx, stores: Path) -> None:
    done = mmx("doctor", "--json")
    assert [f for f in done.json if f["state"] == "problem"] == []
    assert done.code == 0


def test_doctor_tells_a_broken_plugin(mmx: Mmx, stores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(broken_distribution(stores)))
    done = mmx("doctor")
    assert done.code == 1 and "mmx-bad" in done.out


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("30m", 1800), ("4h", 14400), ("1.5h", 5400)])
def test_duration_is_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["soon", "4 hours", "-3", "h"])
def test_text_that_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--timeout"):
        parse_duration(text)


def test_command_leaves_no_traceback_in_a_process_of_its_own(tmp_path: Path) -> None:
    code = "from mmx.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "run", "no.yaml"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr and "no.yaml" in done.stderr


def test_figure_that_there_is_none_of_is_null_in_json_and_a_dash_for_readers(mmx: Mmx, sweep: Write) -> None:
    path = sweep({"missing.eval.rates": [0.5]})  # no rate 0, so nothing is clean
    done = mmx("run", path, "--json")
    assert done.code == 0 and "NaN" not in done.out
    assert done.json["leaderboard"][0]["summary/clean"] is None
    assert "–" in mmx("run", path).out


def test_link_that_a_run_ends_with_can_be_pasted(
    mmx: Mmx, sweep: Write, stores: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sweep()
    (stores / "my folder").mkdir()
    done = mmx("run", path, "--store", f"sqlite:///{stores}/my folder/mlflow.db", "--max-trials", "0")
    assert f"mmx ui --store 'sqlite:///{stores}/my folder/mlflow.db'" in done.out
    assert "/#/experiments/1/runs?viewStateShareKey=robustness" in done.out
