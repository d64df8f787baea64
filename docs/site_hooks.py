"""mkdocs asks here for what docs/ does not hold: pages of components, of the README, of files of code."""

import re
from typing import Any

from component_pages import component_pages
from mkdocs.structure.files import File, Files
from site_equations import fence
from site_text import PAGES, ROOT, indent_lists, place, plain_pipes, relink, show, targets

COMPONENT_ROW = re.compile(r"^\| `([^`|]+)` \|", re.MULTILINE)
SECTION = re.compile(r"^## (\w+)$", re.MULTILINE)
ORIGINS: dict[str, str] = {}
"""Where in the repository the text of a page comes from."""


def on_config(config: Any) -> Any:
    """Put the components' pages into the navigation, and let blocks of LaTeX be drawn."""
    math = {"name": "math", "class": "equation", "format": fence}
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [math]
    kinds: dict[str, list[dict[str, str]]] = {}
    for page in component_pages():
        kinds.setdefault(page.group, []).append({page.name: page.place})
    listed = [{"All": "components.md"}, *({group: rows} for group, rows in kinds.items())]
    config.nav = [{"Components": listed} if "Components" in part else part for part in config.nav]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made here."""
    ORIGINS.clear()
    ORIGINS.update({f.src_uri: f"docs/{f.src_uri}" for f in files.documentation_pages()})
    waiting = [*PAGES, *ORIGINS.values()]
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        text = show(path)
        if place(path) not in ORIGINS:
            ORIGINS[place(path)] = path
            files.append(File.generated(config, place(path), content=text))
        if path.endswith(".md") or (ROOT / path).is_dir():
            new = _shown(targets(path, text) if path.endswith(".md") else _inside(path, text)) - seen
            seen |= new
            waiting += sorted(new)
    for page in component_pages():
        files.append(File.generated(config, page.place, content=page.text()))
    return files


def _inside(folder: str, text: str) -> set[str]:
    return targets(f"{folder}/files", text)


def _shown(paths: set[str]) -> set[str]:
    """Of what is linked to, keep what needs a page of its own; the strict build tells what is not there."""
    return {path for path in paths if (ROOT / path).exists() and place(path).startswith("source/")}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Mend links and lists."""
    here = page.file.src_uri
    if here == "components.md":
        markdown = _link_components(markdown)
    origin = ORIGINS.get(here)
    if origin is None:
        return indent_lists(markdown)
    base = f"{origin}/files" if (ROOT / origin).is_dir() else origin
    return indent_lists(plain_pipes(relink(base, here, markdown)))


def _link_components(markdown: str) -> str:
    """Let each row of the list of components lead to the component's page."""
    places = {(page.group, page.name): page.place for page in component_pages()}
    first, *sections = re.split(r"^(?=## )", markdown, flags=re.MULTILINE)
    linked = [_link_rows(part, places) for part in sections]
    return "".join([first, *linked])


def _link_rows(part: str, places: dict[tuple[str, str], str]) -> str:
    heading = SECTION.match(part)
    group = heading[1] if heading else ""

    def row(match: re.Match[str]) -> str:
        return f"| [`{match[1]}`]({places[group, match[1]]}) |"

    return COMPONENT_ROW.sub(row, part)
