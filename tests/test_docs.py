"""The documentation is true: what it shows runs, what it lists is all there is, what it links to is there."""

import dataclasses
import inspect
import os
import re
import runpy
import shutil
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import Mock

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from mmx import config, hookspecs
from mmx.cli.open import open_plan
from mmx.contracts import Tracker, TrialRecord
from mmx.registry import KINDS, OWN, Registry

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((DOCS / "tutorials").glob("*.md"))]
PAGES = sorted({*GUIDES, ROOT / "CHANGELOG.md", *DOCS.rglob("*.md")})
MARKED = re.compile(
    r'^[ ]*<!-- tested(?:: (?P<file>\S+?)(?: after "(?P<after>.+?)")?)? -->\n'
    r"(?P<fence>[ ]*```)(?P<language>\w+)\n(?P<body>.*?)^(?P=fence)$",
    re.MULTILINE | re.DOTALL,
)


def told(*pages: str) -> str:
    """Read pages of docs/ as one text, line breaks taken as spaces."""
    texts = [(DOCS / page).read_text(encoding="utf-8") for page in pages]
    return re.sub(r"\s+", " ", "\n".join(texts))


# What is shown runs.


class Block(NamedTuple):
    """A marked block: a file to write (or to put in after a text), or commands to run."""

    file: str | None
    after: str | None
    language: str
    body: str


class Section(NamedTuple):
    """A section with commands, with the files that the sections before it wrote."""

    title: str
    given: list[Block]
    blocks: list[Block]

    def __str__(self) -> str:
        return self.title


def blocks_of(text: str) -> list[Block]:
    """Find the marked blocks of a text."""
    return [
        Block(m["file"], m["after"], m["language"], textwrap.dedent(m["body"])) for m in MARKED.finditer(text)
    ]


def sections() -> Iterator[Section]:
    """Cut the guides into sections, each of which is tried in a folder of its own."""
    for guide in GUIDES:
        given: list[Block] = []
        for part in re.split(r"^(?=#{2,3} )", guide.read_text(encoding="utf-8"), flags=re.MULTILINE):
            blocks = blocks_of(part)
            if any(block.file is None for block in blocks):
                yield Section(f"{guide.name}: {part.splitlines()[0].strip('# ')}", list(given), blocks)
            # What changes a file that is there, or installs something, is this section's alone.
            given += [b for b in blocks if b.file and "/" not in b.file]


def write(block: Block, folder: Path) -> None:
    """Write a block's file, or put it in after the first occurrence of a text."""
    assert block.file is not None
    path = folder / block.file
    if block.after is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.body, encoding="utf-8")
        return
    before, found, rest = path.read_text(encoding="utf-8").partition(block.after)
    assert found, f"{block.file} has no '{block.after}'"
    path.write_text(f"{before}{found}\n{block.body}{rest}", encoding="utf-8")


def install(project: Path, site: Path) -> None:
    """Do what installing a project does to entry points, without an installer."""
    facts = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    place = site / f"{facts['name'].replace('-', '_')}-{facts['version']}.dist-info"
    place.mkdir(parents=True)
    head = f"Metadata-Version: 2.1\nName: {facts['name']}\nVersion: {facts['version']}\n"
    (place / "METADATA").write_text(head, encoding="utf-8")
    lines = [
        line
        for group, points in facts["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {target}" for name, target in points.items()))
    ]
    (place / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")


def environment(folder: Path, site: Path) -> dict[str, str]:
    """Let commands find this installation, the folder's copies first."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MMX_", "MLFLOW_"))}
    projects = [str(path.parent) for path in folder.glob("*/pyproject.toml")]
    paths = [str(folder / "plugins" / "strategies"), str(site), *projects, kept.get("PYTHONPATH", "")]
    return kept | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OMP_NUM_THREADS": "1",
    }


@pytest.mark.parametrize("section", sections(), ids=str)
def test_marked_commands_of_a_guide_run(section: Section, tmp_path: Path, blank_stores: Path) -> None:
    folder, site = tmp_path / "folder", tmp_path / "site"
    shutil.copytree(ROOT / "sweeps", folder / "sweeps")
    shutil.copytree(ROOT / "plugins" / "strategies", folder / "plugins" / "strategies")
    for name in ("mlflow.db", "optuna.db"):
        shutil.copy(blank_stores / name, folder / name)
    for block in section.given:
        write(block, folder)
    for block in section.blocks:
        if block.file:
            write(block, folder)
            if block.file.endswith("pyproject.toml"):
                install(folder / block.file, site)
        else:
            command = ["bash", "-euo", "pipefail", "-c", block.body]
            ran = subprocess.run(
                command,
                cwd=folder,
                env=environment(folder, site),
                capture_output=True,
                text=True,
                check=False,
            )
            assert ran.returncode == 0, f"{block.body}\n{ran.stdout}\n{ran.stderr}"


def test_every_way_to_add_a_strategy_is_tried() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    ways = re.findall(r"^### (As a .*)$", text, flags=re.MULTILINE)
    tried = {section.title.removeprefix("CONTRIBUTING.md: ") for section in sections()}
    assert ways and tried >= set(ways)


def made_up_table(columns: Mapping[str, str], path: Path) -> Path:
    """Write a few rows of numbers that mean nothing."""
    rows = range(24)
    cells = {name: [[float(row), 1.0, 2.0] for row in rows] for name in columns}
    splits = [("train", "val", "test")[row // 2 % 3] for row in rows]
    labels = [str(row % 2) for row in rows]
    table = {"id": [f"r{row}" for row in rows], **cells, "label": labels, "split": splits}
    parquet.write_table(pa.table(table), path)
    return path


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda path: path.name)
def test_sweep_can_be_planned(path: Path, tmp_path: Path) -> None:
    overrides = []
    dataset = config.load_sweep(path).trial["dataset"]
    if dataset["name"] == "manifest":
        overrides.append(f"dataset.table={made_up_table(dataset['columns'], tmp_path / 'table.parquet')}")
    if dataset["name"] == "avmnist":
        shared = Path(os.environ.get("MMX_SHARED_DATA", ROOT.parent / "shared" / "data"))
        if not (shared / "avmnist").is_dir():
            pytest.skip("avmnist is not on this disk; set MMX_SHARED_DATA to the folder that holds it")
        overrides.append(f"dataset.root={shared / 'avmnist'}")
    plan = open_plan(path, overrides)
    assert plan.parameters.keys() == {cell.id for cell in plan.cells}  # each model was built


# What is listed is all there is.


def test_page_of_components_is_up_to_date() -> None:
    written = (DOCS / "components.md").read_text(encoding="utf-8")
    assert runpy.run_path(str(DOCS / "generate.py"))["render"]() == written, "run `make docs`"


def hooks() -> dict[str, str]:
    """Give every hook with its arguments."""
    found = inspect.getmembers(hookspecs, lambda value: hasattr(value, "mmx_spec"))
    return {name: ", ".join(inspect.signature(hook).parameters) for name, hook in found}


@pytest.mark.parametrize(("name", "arguments"), hooks().items())
def test_hook_is_documented_with_its_arguments(name: str, arguments: str) -> None:
    pages = [path.read_text(encoding="utf-8") for path in PAGES]
    assert any(f"`{name}({arguments})`" in page for page in pages)


@pytest.mark.parametrize("kind", KINDS)
def test_kind_has_its_row_in_the_guide(kind: str) -> None:
    assert f"\n| {kind} | " in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_every_protocol_is_defined(registry: Registry) -> None:
    page = (DOCS / "protocols.md").read_text(encoding="utf-8")
    own = [o.component.name for o in registry.offers if o.kind == "protocol" and o.distribution == OWN]
    assert [name for name in own if f"\n## `{name}`\n" not in page] == []


FORMS = (
    (r"accuracy|macro_f1|auroc", "<score>"),
    (r"missing_(any|m\d)$", "missing_<target>"),
    (r"has_[m\d.]+$", "has_<a.b>"),
    (r"(shapley|realised_rate)_m\d$", r"\1_<modality>"),
    (r"^train/(?!loss$).*", "train/<part>"),
    (r"/mask_token_", "/<strategy>_"),
)


def form(key: str) -> str:
    """Put placeholders in a metric's key, as the page writes it."""
    for pattern, placeholder in FORMS:
        key = re.sub(pattern, placeholder, key)
    return key


def test_every_metric_is_documented(plan_toy: Callable[..., Any]) -> None:
    from mmx.report.standings import Standing, parent_curves
    from mmx.trial import run_trial

    plan = plan_toy({"strategy": "mask_token"})
    figures = run_trial(plan.cells[0].spec, plan.bench, torch.device("cpu")).last()
    record = TrialRecord("run", "point", 0, "done", params={"strategy": "mask_token"}, metrics=figures)
    tracker = Mock(spec=Tracker)
    tracker.history.return_value = {0: 1.0}
    curves = parent_curves(tracker, [Standing("point", record.params, [record])])
    page = told("metrics.md")
    assert {form(key) for key in (*figures, *curves) if f"`{form(key)}`" not in page} == set()


def test_every_tag_is_documented() -> None:
    core = ROOT / "core" / "mmx"
    sources = [*(core / "sweep").glob("*.py"), *(core / "builtin" / "trackers").glob("*.py")]
    tags = {
        tag
        for path in sources
        for tag in re.findall(r'"(mmx\.[a-z_]+)":|\["(mmx\.[a-z_]+)"\]', path.read_text())
    }
    names = {name for pair in tags for name in pair if name}
    assert names and {name for name in names if f"| `{name}` |" not in told("metrics.md")} == set()


PARTS: Mapping[str, type] = {
    "training": config.TrainingSpec,
    "missing": config.MissingSpec,
    "missing.train": config.TrainMissingSpec,
    "missing.eval": config.EvalMissingSpec,
    "search": config.SearchSpec,
    "run": config.RunSpec,
    "store": config.StoreSpec,
}


def keys_with_defaults() -> Iterator[tuple[str, str]]:
    """Give every key of a sweep file below a part, with its default as the page writes it."""
    for part, cls in PARTS.items():
        for field in dataclasses.fields(cls):
            key = f"{part}.{field.name}"
            if key not in PARTS:
                yield key, written(field)


def written(field: dataclasses.Field[Any]) -> str:
    """Write a default as a sweep file would."""
    if field.default_factory is not dataclasses.MISSING:
        return f"`{field.default_factory()}`"
    if field.default is dataclasses.MISSING:
        return "required"
    if isinstance(field.default, config.ComponentSpec):
        return f"`{field.default.name}`"
    if isinstance(field.default, tuple):
        return f"`[{', '.join(map(str, field.default))}]`"
    if isinstance(field.default, bool):
        return f"`{str(field.default).lower()}`"
    return f"`{field.default or repr(field.default)}`"


@pytest.mark.parametrize(("key", "default"), keys_with_defaults())
def test_key_of_a_sweep_is_documented_with_its_default(key: str, default: str) -> None:
    assert f"\n| `{key}` | {default} | " in (DOCS / "sweeps.md").read_text(encoding="utf-8")


def test_every_top_level_key_is_documented() -> None:
    from mmx.config.load import DEFAULTS, REQUIRED_KEYS, SWEEP_KEYS, TRIAL_KEYS

    page = (DOCS / "sweeps.md").read_text(encoding="utf-8")
    for key in (*TRIAL_KEYS, *SWEEP_KEYS):
        assert f"\n| `{key}` | " in page or f"\n## `{key}`\n" in page, key
    for key in REQUIRED_KEYS:
        assert f"\n| `{key}` | required | " in page or f"| `{key}.protocol` | required |" in page, key
    for key, default in DEFAULTS.items():
        assert not default or f"\n| `{key}` | `{default}` | " in page, key


def test_every_command_is_documented() -> None:
    from mmx.cli.app import app

    names = [f"mmx {command.name}" for command in app.registered_commands]
    for group in app.registered_groups:
        assert group.typer_instance is not None
        names += [f"mmx {group.name} {command.name}" for command in group.typer_instance.registered_commands]
    page = told("sweeps.md")
    assert [name for name in names if f"`{name}" not in page] == []


def test_every_environment_variable_is_documented() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "core").rglob("*.py")]
    names = {name for text in texts for name in re.findall(r"\bMMX_[A-Z_]+[A-Z]\b", text)}
    assert names and {name for name in names if f"| `{name}` |" not in told("sweeps.md")} == set()


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [
        *project["dependencies"],
        *(r for extra in project["optional-dependencies"].values() for r in extra),
    ]
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    names = {re.split(r"[<>=\[]", line)[0] for line in (*asked, *pinned) if not line.startswith("#")} - {
        OWN,
        "",
    }
    page = told("decisions/0003-dependencies.md")
    assert {name for name in names if not re.search(rf"`{name}`", page)} == set()


# What is linked to is there, and nothing tells of the machine it was written on.


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("https://", "http://")):
            path, _, heading = target.partition("#")
            found = (page.parent / path).resolve() if path else page
            assert found.exists(), target
            assert not heading or heading in headings(found), target


def headings(page: Path) -> set[str]:
    """Give the anchors of a page's headings."""
    lines = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line).strip().lower().replace(" ", "-") for line in lines}


def test_every_page_is_on_the_map() -> None:
    page = (DOCS / "index.md").read_text(encoding="utf-8")
    others = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md") if path.name != "index.md"]
    assert [name for name in others if f"({name})" not in page] == []


MACHINE_PATH = re.compile(r"(?<![\w.:/}])/(?:work|tmp|home|root|Users|mnt|scratch)/\w")
TEXTS = {".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".json", ".csv", ".html", ".cfg", ""}
PARTS_OF_THE_TREE = ("core", "plugins", "sweeps", "tests", "docs", "benchmarks", ".ci")


def texts_of_the_tree() -> Iterator[Path]:
    """Give every text file of the project, not what a run or an environment left beside it."""
    files = [path for path in ROOT.iterdir() if path.is_file()]
    files += [path for part in PARTS_OF_THE_TREE for path in (ROOT / part).rglob("*") if path.is_file()]
    return (path for path in files if path.suffix in TEXTS and "__pycache__" not in path.parts)


def test_no_file_names_a_path_of_one_machine() -> None:
    guilty = [p for p in texts_of_the_tree() if MACHINE_PATH.search(p.read_text(encoding="utf-8"))]
    assert [str(path.relative_to(ROOT)) for path in guilty] == []
