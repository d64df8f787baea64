"""The site of the documentation: it is whole, asks no other host, and shows valid sweeps."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mmx.config import read_sweep
from mmx.config.space import cells
from mmx.registry import Registry
from mmx.sweep import plan_sweep
from mmx.sweep.resolve import Resolver

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FETCHED = re.compile(r"<(?:script|img|iframe)[^>]*\ssrc=.?https?:|<link[^>]*\shref=.?https?:")
MADE_UP = {"strategy", "fusion", "adapter", "procedure", "protocol", "tracker"}
"""Kinds whose sweeps are on made-up data, and can be planned to the end."""


def module(name: str) -> Any:
    """Import one of the modules that make the site; they lie beside the pages."""
    sys.path.insert(0, str(DOCS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(DOCS))


def test_site_is_built_without_a_warning_and_asks_no_other_host(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "-f", ".mkdocs.yml", "-d", str(tmp_path)]
    told = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    ran = subprocess.run(command, cwd=ROOT, env=told, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    # A quiet build would not count its warnings, and so pass with them.
    assert "Documentation built" in ran.stderr
    pages = {p.relative_to(tmp_path).as_posix(): p.read_text("utf-8") for p in tmp_path.rglob("*.html")}
    assert [name for name, text in pages.items() if FETCHED.search(text)] == []
    places = {page.place.replace(".md", ".html") for page in module("component_pages").component_pages()}
    assert places <= set(pages)
    assert "<math" in pages["methods.html"]


@pytest.mark.parametrize("page", module("component_pages").component_pages(), ids=lambda page: page.place)
def test_sweep_on_a_component_page_is_valid(page: Any, registry: Registry) -> None:
    shown = re.search(r"```yaml\n(.*?)```", page.text(), re.DOTALL)
    if shown is None:
        assert page.offer.lack
        return
    sweep = read_sweep(shown[1], "sweep.yaml")
    if page.offer.kind in MADE_UP:
        assert len(plan_sweep(sweep, registry).cells) == 1
        return
    faults: list[Any] = []
    (raw,) = cells(sweep.trial, sweep.search, faults)
    Resolver(sweep, registry, faults).resolve(raw.trial, raw.assigned, raw.tune)
    assert faults == []


def test_what_belongs_to_an_item_is_indented_by_four_a_level() -> None:
    text = "1. One\n\n   ```text\n   code\n   ```\n\n   - inner\n     goes on\n2. Two"
    indented = "1. One\n\n    ```text\n    code\n    ```\n\n    - inner\n        goes on\n2. Two"
    assert module("site_text").indent_lists(text) == indented


def test_list_begins_after_a_blank_line() -> None:
    assert module("site_text").indent_lists("Two:\n- a\n- b") == "Two:\n\n- a\n- b"


def test_dash_in_indented_code_begins_no_list() -> None:
    text = "As here:\n\n    phases:\n      - one\n      - two"
    assert module("site_text").indent_lists(text) == text


def test_link_out_of_the_pages_leads_to_a_page_that_shows_the_file() -> None:
    text = "[u](../sweeps/u2a.yaml) [r](../README.md#a)"
    linked = module("site_text").relink("docs/methods.md", "methods.md", text)
    assert linked == "[u](source/sweeps/u2a.yaml.md) [r](quickstart.md#a)"


def test_link_that_is_named_like_its_file_loses_the_ending() -> None:
    linked = module("site_text").relink("README.md", "quickstart.md", "[docs/sweeps.md](docs/sweeps.md#run)")
    assert linked == "[sweeps](sweeps.md#run)"


def test_link_in_code_is_left_alone() -> None:
    text = "```text\n[u](../sweeps/u2a.yaml)\n```"
    assert module("site_text").relink("docs/methods.md", "methods.md", text) == text


def test_bar_in_a_table_is_shown_without_its_backslash() -> None:
    row = r"| `a` | `str \| None` |"
    assert module("site_text").plain_pipes(row) == "| `a` | `str | None` |"


def test_equation_is_drawn_with_its_number() -> None:
    pytest.importorskip("latex2mathml")
    drawn = module("site_equations").fence(r"z = \frac{a}{b} \tag{2}")
    assert "<mfrac>" in drawn
    assert "(2)</span>" in drawn
