"""Writes docs/components.md from the registry: `make docs`."""

import re
from collections.abc import Iterator
from pathlib import Path

from mmx.errors import PluginError
from mmx.registry import KINDS, OWN, Offer, Registry, import_class
from mmx.registry.signature import REQUIRED, Option, options

PAGE = Path(__file__).with_name("components.md")
HEAD = """# Components

What ships with mmx, read off the registry. Do not edit this page: `make docs` writes it. `mmx plugins list`
shows other packages' components too, and `mmx cite SWEEP` prints the papers in full.
"""
PLURALS = {"strategy": "Strategies", "dataset": "Datasets"}
PAPER_KEY = re.compile(r"@\w+\s*\{\s*([^,\s]+)")


def render() -> str:
    """Give the page's text."""
    registry = Registry.load({"MMX_LOAD_PLUGINS": OWN})
    return "\n".join([HEAD, *(line for kind in KINDS for line in _table(registry, kind))])


def _table(registry: Registry, kind: str) -> Iterator[str]:
    yield f"## {PLURALS.get(kind, f'{kind.capitalize()}s')}\n"
    yield "| Name | Summary | Options | Paper | Distribution |"
    yield "| --- | --- | --- | --- | --- |"
    for offer in sorted((o for o in registry.offers if o.kind == kind), key=lambda o: o.component.name):
        yield f"| {' | '.join(_cells(offer))} |"
    yield ""


def _cells(offer: Offer) -> Iterator[str]:
    component = offer.component
    yield f"`{component.name}`"
    yield component.summary
    yield _options(offer)
    yield ", ".join(f"`{key}`" for key in PAPER_KEY.findall(component.paper)) or "none"
    yield offer.distribution


def _options(offer: Offer) -> str:
    """List the options, as far as the class can be imported where what it requires is not installed."""
    try:
        found = options(import_class(offer))
    except PluginError:
        if not offer.lack:
            raise
        return offer.lack
    return "<br>".join(_option(option) for option in found.values()) or "none"


def _option(option: Option) -> str:
    default = "" if option.default is REQUIRED else f" = {option.default!r}"
    text = f"{option.name}: {option.type_name}{default}".replace("|", r"\|")
    return f"`{text}`"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
