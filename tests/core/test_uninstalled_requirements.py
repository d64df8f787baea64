"""A component whose library is not installed is told as such, everywhere, and stops nothing."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from _pytest.outcomes import Skipped

from mmx import Component, hookimpl
from mmx.cli import main
from mmx.errors import PluginError
from mmx.registry import Registry, import_class, requirements
from mmx.testing import cases_of, world

GENERATE = Path(__file__).parents[2] / "docs" / "generate.py"
LACK = "needs no_such_library: install it first"
LAZY = """
from mmx import Component, hookimpl
from mmx.contracts import Fusion

class Lazy(Fusion):
    def __init__(self, depth: int = 3):
        super().__init__()
        import no_such_library

    def forward(self, tokens):
        raise NotImplementedError

@hookimpl
def register_fusions():
    return [Component("lazy", f"{__name__}:Lazy", "a made-up fusion", requires=("no_such_library",))]
"""


class Plugin:
    """Offers a fusion whose module cannot be imported, since its library is not there."""

    @hookimpl
    def register_fusions(self) -> list[Component]:
        """Offer it."""
        return [
            Component("absent", "no_such_library.fusion:Absent", "made-up", requires=("no_such_library",))
        ]


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Give every command a registry with the made-up fusion."""
    registry = Registry.load({"MMX_LOAD_PLUGINS": "mmx"})
    registry.add_plugin(Plugin(), "absent", "mmx-absent", "1.0")
    monkeypatch.setattr(Registry, "load", classmethod(lambda *given, **named: registry))
    return registry


Mmx = Callable[..., tuple[int, str]]


@pytest.fixture
def mmx(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Mmx:
    """Run the command in a folder of its own; give its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["mmx", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out + told.err

    return run


def test_use_of_a_component_without_its_library_is_refused_with_what_to_do(lacking: Registry) -> None:
    with pytest.raises(PluginError, match=rf"fusion 'absent' of 'mmx-absent' {LACK}"):
        lacking.load_class("fusion", "absent")


def test_smallest_extra_that_brings_the_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [
        "no-such>=1; extra == 'wrong'",
        "no-such-library-two; extra == 'two'",
        "another; extra == 'all'",
        "no_such_library>=1; extra == 'all'",
        "No-Such-Library>=1 ; python_version > '3' and extra == \"one\"",
    ]
    monkeypatch.setattr(requirements.metadata, "requires", lambda distribution: listed)
    told = requirements.told_lack(("json", "no_such_library"), "mmx-absent")
    assert told == "needs no_such_library: pip install 'mmx-absent[one]'"


def test_nothing_is_told_where_all_is_installed() -> None:
    assert requirements.told_lack(("json", "torch.nn"), "mmx") == ""


def test_every_law_of_it_is_skipped_with_the_reason(lacking: Registry) -> None:
    cases = cases_of(lacking, lacking.find("fusion", "absent"))
    verdicts = {(case.verdict().state, case.verdict().reason) for case in cases}
    assert cases and verdicts == {("skipped", LACK)}
    with pytest.raises(Skipped, match=LACK):
        cases[0].check()


def test_other_components_are_not_tried_with_it(lacking: Registry) -> None:
    names = [offer.component.name for offer in world.partners(lacking, "fusion")]
    assert "concat" in names and "absent" not in names


def test_list_shows_it_as_disabled_with_the_reason(lacking: Registry, mmx: Mmx) -> None:
    rows = json.loads(mmx("plugins", "list", "--kind", "fusion", "--json")[1])
    found = {row["name"]: (row["state"], row["reason"]) for row in rows}
    assert found["absent"] == ("disabled", LACK) and found["concat"] == ("ok", "")
    code, told = mmx("plugins", "list")
    assert code == 0 and f"made-up; {LACK}" in told


def test_info_shows_it_with_the_reason(lacking: Registry, mmx: Mmx) -> None:
    code, told = mmx("plugins", "info", "absent")
    assert code == 0 and "made-up" in told and LACK in told
    facts = json.loads(mmx("plugins", "info", "absent", "--json")[1])
    assert (facts["state"], facts["reason"], facts["parameters"]) == ("disabled", LACK, [])


def test_check_skips_and_fails_nothing(lacking: Registry, mmx: Mmx) -> None:
    code, told = mmx("plugins", "check", "absent")
    assert code == 0 and f"skipped  model treats rows apart: {LACK}" in told


def test_options_are_read_where_the_class_imports_its_library_late(mmx: Mmx, tmp_path: Path) -> None:
    (tmp_path / "lazy.py").write_text(LAZY, encoding="utf-8")
    offer = Registry.load(files=[tmp_path / "lazy.py"]).find("fusion", "lazy")
    assert offer.lack == LACK and import_class(offer).__name__ == "Lazy"
    code, told = mmx("plugins", "check", "lazy", "--file", "lazy.py", "--json")
    counts = json.loads(told)
    assert code == 0 and counts["skipped"] == counts["run"] > 0


def test_page_of_components_lists_it(lacking: Registry) -> None:
    page: dict[str, Any] = runpy.run_path(str(GENERATE))
    assert f"| `absent` | made-up | {LACK} | none | mmx-absent |" in page["render"]()
