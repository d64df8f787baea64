"""What the repository page understands and the site does not: lists, and links that leave docs/."""

import posixpath
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "quickstart.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages of the site that lie outside docs/."""
STATIC = {".svg", ".png", ".html", ".css"}
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml"}
LINK = re.compile(r"(?<=\]\()(?!https?://|mailto:|#)([^)\s#]+)")
CODE = re.compile(r"`[^`]+`")
FENCE = re.compile(r"^ *(`{3,})")
NAMED = re.compile(r"\[(?:\.\./|docs/)*(\w+)\.md\]\(")
ITEM = re.compile(r"^( *)([-*+]|\d+\.) +(?=\S)")


def place(path: str) -> str:
    """Say where on the site a file or folder of the repository is shown."""
    if path in PAGES:
        return PAGES[path]
    inner = path.removeprefix("docs/")
    if inner != path and Path(path).suffix in {".md", *STATIC}:
        return inner
    return f"source/{path}/files.md" if (ROOT / path).is_dir() else f"source/{path}.md"


def targets(path: str, text: str) -> set[str]:
    """Give what a file of the repository links to, as paths from its root."""
    return {_from_root(path, m[1]) for line in plain_lines(text) for m in LINK.finditer(line)}


def relink(path: str, here: str, text: str) -> str:
    """Make links of a file at `path` right for a page at `here`; `[sweeps.md](…)` reads "sweeps" there."""

    def moved(match: re.Match[str]) -> str:
        return posixpath.relpath(place(_from_root(path, match[1])), posixpath.dirname(here) or ".")

    return _outside_fences(text, lambda line: NAMED.sub(r"[\1](", LINK.sub(moved, line)))


def _from_root(path: str, target: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), target))


def plain_lines(text: str) -> Iterator[str]:
    """Give the lines outside of code."""
    return (line for line, code in _with_code(text.splitlines()) if not code)


def plain_pipes(text: str) -> str:
    """Write `|` in a table's code as it is: only the repository page needs the backslash before it."""

    def code(match: re.Match[str]) -> str:
        return match[0].replace(r"\|", "|")

    return _outside_fences(text, lambda line: CODE.sub(code, line) if line.startswith("|") else line)


def _outside_fences(text: str, change: Callable[[str], str]) -> str:
    return "\n".join(line if code else change(line) for line, code in _with_code(text.splitlines()))


def _with_code(lines: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Tell of each line whether it is code; a fence's own lines are."""
    fence = ""
    for line in lines:
        found = FENCE.match(line)
        if fence:
            yield line, True
            fence = "" if found and found[1] == fence and line.strip() == fence else fence
        else:
            yield line, bool(found)
            fence = found[1] if found else ""


def indent_lists(text: str) -> str:
    """Indent what belongs to a list's item by four spaces a level, and let a list begin after a blank line.

    The repository page takes the column of an item's text; Python-Markdown knows multiples of four only.
    """
    columns: list[int] = []
    out: list[str] = []
    blank, inset = True, False  # inset: code by four spaces, which has no fence
    for line, code in _with_code(text.splitlines()):
        width = len(line) - len(line.lstrip())
        inset = width >= 4 and (inset or (blank and not columns))
        item = None if code or inset else ITEM.match(line)
        if not line.strip():
            out.append("")
        else:
            # A line that goes on with a paragraph may stand further left than its item's text.
            if blank or item:
                _leave(columns, width)
            if item and not columns and not blank and not _in_list(out):
                out.append("")
            gone = min(width, columns[-1]) if columns else 0
            out.append(" " * 4 * len(columns) + line[gone:])
            if item:
                columns.append(item.end())
        blank = not line.strip()
    return "\n".join(out)


def _leave(columns: list[int], width: int) -> None:
    """Forget the items to which a line at this column does not belong."""
    while columns and width < columns[-1]:
        columns.pop()


def _in_list(lines: list[str]) -> bool:
    """Tell whether the paragraph that ends here is a list's."""
    for line in reversed(lines):
        if not line.strip():
            return False
        if ITEM.match(line):
            return True
    return False


def show(path: str) -> str:
    """Show a file of the repository, or the files of a folder, as a page."""
    file = ROOT / path
    if file.is_dir():
        names = sorted(child.name for child in file.iterdir() if not child.name.startswith(("_", ".")))
        rows = [f"- [{n}]({n})" if (file / n).suffix == ".md" else f"- `{n}`" for n in names]
        folders = [f"- [{n}]({n}/README.md)" for n in names if (file / n / "README.md").exists()]
        return f"# {path}\n\n" + "\n".join(folders or rows)
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".md":
        return text
    return f"# {file.name}\n\n`{path}`\n\n````{LANGUAGES.get(file.suffix, 'text')}\n{text}````\n"
