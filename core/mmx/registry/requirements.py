"""What a component needs that is not installed here, and how it would be."""

import importlib.util
import re
from collections import Counter
from collections.abc import Sequence
from importlib import metadata

IN_EXTRA = re.compile(r"\bextra\s*==\s*['\"]([^'\"]+)['\"]")


def told_lack(requires: Sequence[str], distribution: str) -> str:
    """Say which of the modules are not installed, and what to install; empty where all are there.

    Where the distribution has an extra that brings a module's package, that extra is named.
    """
    lacking = [name for name in requires if not _is_there(name)]
    if not lacking:
        return ""
    extras = [_extra_with(name, distribution) for name in lacking]
    extra = next((e for e in extras if e), "")
    how = f"pip install '{distribution}[{extra}]'" if extra else "install it first"
    return f"needs {', '.join(lacking)}: {how}"


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module.partition(".")[0]) is not None
    except ValueError:  # imported by hand, from nowhere
        return True


def _extra_with(module: str, distribution: str) -> str:
    """Give the smallest extra of an installed distribution that lists a module's package; empty: none."""
    try:
        requirements = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:  # a plugin file
        return ""
    extras = [(line, extra[1]) for line in requirements if (extra := IN_EXTRA.search(line))]
    package = re.escape(module.partition(".")[0]).replace("_", "[-_.]")
    named = re.compile(rf"{package}\b(?![-_.])", re.IGNORECASE)
    sizes = Counter(extra for _, extra in extras)
    found = {extra for line, extra in extras if named.match(line)}
    return min(found, key=lambda extra: (sizes[extra], extra), default="")
