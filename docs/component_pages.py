"""A page for each built-in component of the site, written from the registry."""

import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from component_sweeps import sweep_text

from mmx.errors import PluginError
from mmx.registry import KINDS, OWN, Offer, Registry, import_class
from mmx.registry.signature import REQUIRED, options

PLURALS = {"strategy": "Strategies"}
GUIDES = {
    "adapter": "[phases](../../sweeps.md#phases), and [LoRA's targets](../../encoders.md)",
    "dataset": "[Datasets](../../datasets.md)",
    "encoder": "[Encoders](../../encoders.md)",
    "fusion": "[Concepts](../../concepts.md)",
    "method": "[equations, and what is the source's](../../methods.md)",
    "procedure": "[Concepts](../../concepts.md)",
    "protocol": "[its definition](../../protocols.md#{name})",
    "strategy": "[Concepts](../../concepts.md)",
    "tracker": "[What a run logs](../../metrics.md), and [stores](../../sweeps.md#store)",
}
"""Where a kind is written about; `method` is for what has a paper of its own."""
TAGS = re.compile(r"<(?=\w)")


@dataclass(frozen=True)
class ComponentPage:
    """A component's page: its place on the site, and its text, for which the class is imported."""

    offer: Offer

    @property
    def name(self) -> str:
        """The name in a sweep file."""
        return self.offer.component.name

    @property
    def group(self) -> str:
        """The kind, in the plural."""
        return PLURALS.get(self.offer.kind, f"{self.offer.kind.capitalize()}s")

    @property
    def place(self) -> str:
        """The path below docs/."""
        return f"components/{self.offer.kind}/{self.name}.md"

    def text(self) -> str:
        """Write the page."""
        return "\n".join(_lines(self.offer, _class_of(self.offer)))


@cache
def component_pages() -> tuple[ComponentPage, ...]:
    """Give the pages of what ships with mmx, by kind and name."""
    registry = Registry.load({"MMX_LOAD_PLUGINS": OWN})
    order = list(KINDS)
    offers = sorted(registry.offers, key=lambda o: (order.index(o.kind), o.component.name))
    return tuple(ComponentPage(offer) for offer in offers if offer.distribution == OWN)


def _class_of(offer: Offer) -> Any:
    """Import the class; None where what it requires is not installed."""
    try:
        return import_class(offer)
    except PluginError:
        if not offer.lack:
            raise
        return None


def _lines(offer: Offer, cls: Any) -> Iterator[str]:
    component = offer.component
    yield f"# {component.name}\n"
    yield f"{component.summary[:1].upper()}{component.summary[1:]}.\n"
    yield from _facts(offer)
    yield f"More: {GUIDES[_guide(offer)].format(name=component.name)}.\n"
    if cls is None:
        yield f"Its options cannot be shown here: {offer.lack}.\n"
        return
    yield from _options(offer, cls)
    yield from _sweep(offer, cls)
    yield from _docstrings(cls)
    if component.paper:
        yield f"\n## Paper\n\n```bibtex\n{component.paper}\n```\n"
        yield "`mmx cite SWEEP` prints the papers of a sweep."


def _guide(offer: Offer) -> str:
    own = offer.component.path.startswith("mmx_strategies") and offer.component.paper
    return "method" if own else offer.kind


def _facts(offer: Offer) -> Iterator[str]:
    component = offer.component
    requires = ", ".join(f"`{name}`" for name in component.requires) or "nothing beside mmx"
    yield f"| Kind | {offer.kind} |\n| --- | --- |"
    yield f"| Distribution | {offer.distribution} |"
    yield f"| Class | `{component.path}` |"
    yield f"| Needs | {requires} |\n"


def _options(offer: Offer, cls: Any) -> Iterator[str]:
    known = options(cls)
    yield "\n## Options\n"
    if not known:
        yield "None.\n"
        return
    parts = [
        f"    {o.name}: {o.type_name}" + ("" if o.default is REQUIRED else f" = {o.default!r}")
        for o in known.values()
    ]
    yield (
        "```python\n"
        + "\n".join([f"{offer.component.name}(", *(f"{part}," for part in parts), ")"])
        + "\n```\n"
    )
    if required := [o.name for o in known.values() if o.default is REQUIRED]:
        yield f"Without a default, so that a sweep must say: {', '.join(f'`{name}`' for name in required)}.\n"


def _sweep(offer: Offer, cls: Any) -> Iterator[str]:
    yield "\n## A sweep with it\n"
    yield f"```yaml\n{sweep_text(offer.kind, offer.component, cls)}```\n"


def _docstrings(cls: Any) -> Iterator[str]:
    """Render the docstring of the class, and that of its file where it says more than a line."""
    yield f"\n## What it does\n\n{markdown(inspect.getdoc(cls) or '')}\n"
    head = inspect.cleandoc(sys.modules[cls.__module__].__doc__ or "")
    if "\n" in head.strip():
        file = Path(inspect.getfile(cls)).name
        yield f"\n## Source and choices\n\nThe head of `{file}`:\n\n{markdown(head)}\n"


def markdown(docstring: str) -> str:
    """Keep what looks like HTML from being taken for it, outside of code."""
    lines = docstring.splitlines()
    return "\n".join(line if line.startswith("    ") else _escaped(line) for line in lines)


def _escaped(line: str) -> str:
    parts = line.split("`")
    return "`".join(part if i % 2 else TAGS.sub("&lt;", part) for i, part in enumerate(parts))
